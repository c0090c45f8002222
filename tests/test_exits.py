"""How a process ends: its code, what it leaves written, and, after it joined ranks, without tearing Python down."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT
from workflow import runtime

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


@pytest.mark.parametrize("of", ["notebook", "prompt"])
def test_a_process_that_somebody_works_in_is_left_to_them(of, monkeypatch):
    """`%run seq2seq.py` in a notebook ends the program, not the kernel."""
    monkeypatch.setattr(runtime, "_joined", SimpleNamespace(is_set=lambda: True))
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("the process was ended"))
    if of == "notebook":
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=object))
    else:
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(SystemExit) as ended:
        runtime.exit_process(3)
    assert ended.value.code == 3


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
