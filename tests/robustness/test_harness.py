"""The harness distinguishes all kinds of failure from success."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
from helpers.harness import load_tool, run_forked, violation


def prints_and_returns(code, text):
    def main(arguments):
        print(text, file=sys.stderr)
        return code

    return main


def raises(arguments):
    raise ValueError("odd")


@pytest.mark.parametrize(
    ("main", "wrong"),
    [
        (prints_and_returns(0, ""), None),
        (prints_and_returns(3, "skipped a.png"), None),
        (prints_and_returns(2, "inspect_labels: x.json: no images"), None),
        (prints_and_returns(2, ""), "without a word"),
        (prints_and_returns(2, "line\n" * 9), "9 lines"),
        (prints_and_returns(7, ""), "exit code 7"),
        (raises, "traceback on stderr: ValueError: odd"),
        (lambda arguments: os.kill(os.getpid(), signal.SIGSEGV), "signal 11"),
        (lambda arguments: time.sleep(60), "still running"),
        (lambda arguments: len(bytearray(1 << 31)), "MemoryError"),
        (lambda arguments: sys.exit("a sentence"), None),
    ],
)
def test_every_ending_is_checked(main, wrong):
    found = violation(run_forked(main, [], seconds=1.5 if wrong == "still running" else 60, memory=1 << 30))
    assert found is None if wrong is None else wrong in found


def test_output_and_code_of_a_tool():
    outcome = run_forked(load_tool("inspect_labels"), ["--labels", "missing.json"], seconds=60)
    assert outcome.code == 2 and "missing.json" in outcome.stderr and violation(outcome) is None
    assert outcome.seconds < 60 and outcome.peak > 0
