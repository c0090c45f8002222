"""How a process ends: its code, what it leaves written, and, after it joined ranks, without tearing Python down."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = """
import atexit, os, sys
from workflow.exits import run_main
from workflow.runtime import Ranks, join_ranks, leave_ranks

class Held:
    def __del__(self):
        os.write(1, b"torn down\\n")

def command(argv):
    if argv:
        join_ranks(Ranks(), device="cpu")
        leave_ranks()
    atexit.register(print, "exit function")
    print("done", end=" ")
    return 3

held = Held()
run_main(command, sys.argv[1:])
"""


@pytest.mark.parametrize("joins", [False, True])
def test_a_process_that_joined_ranks_is_not_torn_down(joins):
    """gloo's threads abort a process that goes down under them (pytorch/pytorch#179291), whatever its code was."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(["join"] if joins else [])],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 3, ended.stderr
    assert ended.stdout.startswith("done exit function\n")
    assert ("torn down" in ended.stdout) is not joins
