"""Exit of tools: exit codes, one-line errors, tracebacks on request only, fast help."""

import argparse
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sohes_d2.cli.runner import choose_threads, make_main, tool_parser
from sohes_d2.errors import ConfigError, CorruptFileError, InputError, SOHESError, WeightsError

REPOSITORY = Path(__file__).parents[2]
TOOLS = sorted(path.name for path in (REPOSITORY / "tools").glob("*.py"))
LIMIT_SECONDS = 1.0  # CPU time of --help


def parse(arguments):
    parser = tool_parser("A tool.")
    parser.add_argument("--n", type=int)
    return parser.parse_args(arguments)


def raising(error):
    def command(args):
        raise error

    return command


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # restored after the test, since make_main changes it


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("no key A"), 2, "tool: no key A"),
        (InputError("a.json: no images"), 2, "tool: a.json: no images"),
        (WeightsError("w.pth: cut"), 2, "tool: w.pth: cut"),
        (CorruptFileError("shard: flipped"), 2, "tool: shard: flipped"),
        (SOHESError("a worker died"), 1, "tool: a worker died"),
        (MemoryError(), 1, "tool: not enough memory"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.json"),
            1,
            "tool: No space left on device: 'x.json'; make room",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "tool: Permission denied: 'x'"),
        (FloatingPointError("loss is nan"), 1, "tool: loss is nan"),
        (KeyError("a"), 1, "tool: KeyError: 'a' (--debug shows where)"),
        (RuntimeError("line\nline\n" * 2000), 1, "tool: RuntimeError: line line"),
        (ValueError(), 1, "tool: ValueError (--debug shows where)"),
    ],
)
def test_errors_give_one_line_and_a_code(error, code, line, capsys):
    assert make_main("tool", parse, raising(error))([]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(line)
    assert printed.err.count("\n") == 1 and len(printed.err) < 1200
    assert make_main("tool", parse, raising(error))(["--debug"]) == code
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_exit_codes_of_results_interrupts_and_failures(capsys):
    assert make_main("tool", parse, lambda args: None)([]) == 0
    assert make_main("tool", parse, lambda args: 3)([]) == 3
    assert make_main("tool", parse, raising(KeyboardInterrupt()), when_stopped="continue with --resume")([]) == 130
    assert capsys.readouterr().err == "\ntool: stopped; continue with --resume\n"
    assert make_main("tool", parse, raising(SOHESError("x")), when_failed="Kept.")([]) == 1
    assert capsys.readouterr().err == "tool: x\nKept.\n"
    assert make_main("tool", parse, raising(InputError("x")), when_failed="Kept.")([]) == 2
    assert capsys.readouterr().err == "tool: x\n"
    with pytest.raises(SystemExit) as end:
        make_main("tool", parse, lambda args: 0)(["--n", "many"])
    assert end.value.code == 2


@pytest.mark.parametrize("name", TOOLS)
def test_help_is_fast(name):
    """Measured in CPU time of the child, which depends little on other processes."""
    before = os.times()
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / name), "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert result.returncode == 0 and result.stdout.startswith("usage:") and result.stderr == ""
    assert seconds < LIMIT_SECONDS


def test_a_closed_pipe_is_not_an_error(tmp_path):
    script = (
        "import sys; from sohes_d2.cli.runner import make_main, tool_parser\n"
        "def talk(args):\n"
        "    for _ in range(100000): print('x' * 100)\n"
        "sys.exit(make_main('tool', tool_parser('A tool.').parse_args, talk)([]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


def test_threads_follow_the_load_unless_set_by_the_user(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for load, expected in ((0.0, 8), (2.6, 5), (7.9, 1), (30.0, 1)):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert choose_threads() == expected == int(os.environ["OMP_NUM_THREADS"])
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert choose_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert choose_threads() == 4


def test_the_common_options():
    args = tool_parser("A tool.").parse_args(["--debug", "-v"])
    assert isinstance(args, argparse.Namespace) and args.debug and args.verbose
