"""Run a tool's `main` in a forked child and check how it ended, which must be clean for any input.

    tool = load_tool("inspect_labels")
    warm_up(tool, ["--labels", good_file])          # imports and compiled code, once, in this process
    outcome = run_forked(tool, ["--labels", odd_file])
    assert violation(outcome) is None

The child is a fork of the warmed-up process, so that an example takes about 20 ms instead of seconds of imports and a
crash does not affect the test. Its memory and time are limited. `settings` reads how many examples to try from the
environment (EXAMPLES), so that `make test` and `make fuzz EXAMPLES=20000` run the same tests.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib.util
import io
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis

REPOSITORY = Path(__file__).parents[2]
EXIT_CODES = frozenset({0, 1, 2, 3, 130})
TRACEBACK = "Traceback (most recent call last)"
# With exit code 2, stderr has a short message or the usage of argparse.
MAX_LINES_OF_ERROR = 4

EXAMPLES = int(os.environ.get("EXAMPLES", "0"))


def settings(examples: int) -> Any:
    """Hypothesis settings: ``examples`` from fixed seeds in a plain test run, EXAMPLES random ones if that is set."""
    return hypothesis.settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@dataclass(frozen=True)
class Outcome:
    """Result of a child process.

    Attributes:
        code: exit code; None if a signal ended it, also at the time limit.
        signal: number of the signal that ended it, 0 for none.
        timed_out: whether it was killed at the time limit.
        stdout, stderr: what it printed.
        seconds: wall time.
        peak: peak resident memory in bytes.
    """

    code: int | None
    signal: int
    timed_out: bool
    stdout: str
    stderr: str
    seconds: float
    peak: int


def load_tool(name: str, folder: str = "tools") -> Callable[[list[str]], int]:
    """`main` of a script of tools/ or datasets/."""
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", REPOSITORY / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.main


def warm_up(main: Callable[[list[str]], int], arguments: Sequence[str]) -> int:
    """Run a tool in this process, without output, so that children inherit imports and compiled code."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return main([str(a) for a in arguments])
        except SystemExit as end:
            return int(end.code or 0)


def run_forked(
    main: Callable[[list[str]], int],
    arguments: Sequence[str],
    seconds: float = 20.0,
    memory: int = 1536 << 20,
    setup: Callable[[], None] | None = None,
) -> Outcome:
    """Run ``main(arguments)`` in a child.

    Args:
        main: of a tool; exceptions end the child as they would end a script.
        arguments: command-line arguments.
        seconds: limit of wall time and CPU time.
        memory: bytes of address space that the child may use in addition to those of this process.
        setup: called in the child before ``main``.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        gc.freeze()
        start = time.monotonic()
        child = os.fork()
        if not child:
            _child(main, [str(a) for a in arguments], out.fileno(), err.fileno(), seconds, memory, setup)
        status, usage, timed_out = _wait(child, start + seconds)
        elapsed = time.monotonic() - start
        out.seek(0)
        err.seek(0)
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return Outcome(
            code=None if ended else os.WEXITSTATUS(status),
            signal=ended,
            timed_out=timed_out or ended == signal.SIGXCPU,
            stdout=out.read().decode("utf-8", "replace"),
            stderr=err.read().decode("utf-8", "replace"),
            seconds=elapsed,
            peak=usage.ru_maxrss * 1024,
        )


def violation(outcome: Outcome) -> str | None:
    """Description of a forbidden outcome; None if the outcome is allowed."""
    if outcome.timed_out:
        return f"still running after {outcome.seconds:.0f} s"
    if outcome.signal:
        return f"ended by signal {outcome.signal}"
    if outcome.code not in EXIT_CODES:
        return f"exit code {outcome.code}"
    for name, text in (("stdout", outcome.stdout), ("stderr", outcome.stderr)):
        if TRACEBACK in text:
            last = [line for line in text.strip().splitlines() if re.match(r"\S*(Error|Exception|Exit)\b", line)]
            return f"traceback on {name}: {(last or ['?'])[-1][:200]}"
    if outcome.code == 2:
        lines = [line for line in outcome.stderr.splitlines() if line.strip()]
        if not lines:
            return "exit code 2 without a word on stderr"
        if len(lines) > MAX_LINES_OF_ERROR and not lines[0].startswith("usage:"):
            return f"exit code 2 with {len(lines)} lines on stderr"
    return None


def _wait(child: int, end: float) -> tuple[int, Any, bool]:
    pause, timed_out = 0.001, False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage, timed_out
        if time.monotonic() > end and not timed_out:
            timed_out = True
            with contextlib.suppress(ProcessLookupError):  # it may not have its own group yet
                os.killpg(child, signal.SIGKILL)
            os.kill(child, signal.SIGKILL)
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def _child(
    main: Callable[[list[str]], int],
    arguments: list[str],
    out: int,
    err: int,
    seconds: float,
    memory: int,
    setup: Callable[[], None] | None,
) -> None:
    code = 70  # of any failure below: if the child did not exit, it would continue the tests
    try:
        os.setsid()
        faulthandler.disable()  # pytest's would print to the parent's stderr
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdin = open(os.devnull)
        sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_CPU, int(seconds) + 1)
        _limit(resource.RLIMIT_AS, _address_space() + memory)
        if setup is not None:
            setup()
        code = main(arguments)
        code = 0 if code is None else int(code)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")
