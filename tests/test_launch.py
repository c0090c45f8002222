"""The launcher: what the ranks of a later start are told."""

from __future__ import annotations

import os

import pytest

from workflow import launch
from workflow.errors import RankLost, StartAgain


def test_later_starts_know_that_they_are(monkeypatch, tmp_path):
    (tmp_path / "dies.py").write_text(
        "import os, sys\n"
        f"print(os.environ.get('WORKFLOW_STARTED_AGAIN'), file=open({str(tmp_path / 'starts')!r}, 'a'))\n"
        "sys.exit(9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RankLost):
        launch.launch("dies", [], nproc=1, supervision=launch.Supervision(max_restarts=1))
    assert (tmp_path / "starts").read_text().split() == ["None", "1"]


def test_a_new_process_in_the_place_of_this_one_knows_it_too(monkeypatch):
    seen = {}
    monkeypatch.setattr(os, "execve", lambda program, argv, environment: seen.update(environment))
    launch.start_again("workflow", [], StartAgain("out of memory"))
    assert seen["WORKFLOW_STARTED_AGAIN"] == "1"
