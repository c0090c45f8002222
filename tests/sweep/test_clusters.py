"""Studies on a real Slurm of one node: sent, collected, retried, with the tables that the same study has here."""

from __future__ import annotations

import json
import sys

import pytest

from tests.jobs.slurm_node import SlurmNode, missing, until
from tests.sweep.conftest import command, finished, starts, write
from tests.sweep.test_transfer import ENTRY
from workflow.cli import workflow
from workflow.errors import ConfigError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
ON_SLURM = ("--executor", "slurm", "--template", "program.sh", "--cpus", "1")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with SlurmNode.running(tmp_path_factory.mktemp("slurm")) as node:
        yield node


@pytest.fixture
def program(place):
    """A template of jobs that run the made-up program, which fails with seed 1 where the settings ask for it."""
    (place / "program.sh").write_text(
        f"#!/bin/bash\n# {{job_name}} {{program}}\ncd {{directory}} || exit\nexec {sys.executable} -m tests.sweep.fake {{args}}\n"
    )
    return place


def test_a_transfer_matrix_has_the_same_tables_here_and_there(slurm, program):
    entries = {}
    for language in ("english", "spanish"):
        rows = [{"text": f"{language} {number}", "label": number % 3} for number in range(9)]
        write(program / f"{language}.json", {"train": rows, "eval": rows})
        entries[language] = {"topic": {"set": {**ENTRY, "dataset": f"{language}.json"}}}
    write(program / "registry.json", entries)
    models = [{"name": "bert", "model_init_name": "bert"}]
    matrix = {"registry": "registry.json", "task": "topic", "models": models, "metric": "accuracy"}
    write(program / "matrix.json", matrix)
    study = ("suite", "transfer", "matrix.json", "--jobs", "2", "--out")
    assert "3 of 3 runs are finished" in finished(command(*study, "here"))
    assert "nothing was run" in finished(command(*study, "there", *ON_SLURM))
    assert not slurm.ask("squeue", "--noheader").stdout
    sent = command(*study, "there", *ON_SLURM, "--submit", "--wait")
    told = finished(sent)
    assert sent.returncode == 0, told
    assert "sending 3 of 3 jobs to slurm, 2 at a time" in told
    assert "[3/3]" in told
    assert len(starts(program)) == 6
    for name in ("table.md", "table.csv", "heatmap.svg"):
        assert (program / "there" / name).read_bytes() == (program / "here" / name).read_bytes()
    assert "english+spanish" in (program / "there" / "table.md").read_text()


def test_what_was_sent_is_collected_and_failures_are_sent_again_on_demand(slurm, program, capsys):
    write(program / "grid.json", {"parameters": {"lr": [1e-3, 5e-4], "seed": [0, 1]}})
    write(program / "base.json", {**json.loads((program / "base.json").read_text()), "template": "fails"})
    study = ("sweep", "grid.json", "--entry", "clf", "--config", "base.json", "--out", "study", "--jobs", "2")
    first = finished(command(*study, *ON_SLURM, "--submit", seconds=4))
    assert "slurm has" in first
    assert "`workflow jobs status study`" in first
    with pytest.raises(ConfigError, match="of its jobs are with slurm"):  # not twice, here and there
        workflow([*study, "--submit"])

    def collected():
        workflow(["jobs", "status", "study"])
        return "2 done, 2 failed" in " ".join(capsys.readouterr().out.split()).replace(
            "2 failed, 2 done", "2 done, 2 failed"
        )

    until(collected, "the end of all jobs")
    table = (program / "study" / "table.md").read_text()
    assert table.count("error: the made-up failure") == 2
    assert json.loads((program / "study" / "best.json").read_text())["lr"] == 1e-3
    write(program / "mount" / "models" / "mended", {})
    again = command(*study, *ON_SLURM, "--submit", "--wait")
    assert "--retry_failed runs these again" in finished(again)
    assert (again.returncode, len(starts(program))) == (1, 4)
    told = finished(command(*study, *ON_SLURM, "--submit", "--wait", "--retry_failed"))
    assert "sending 2 of 4 jobs" in told
    assert "4 of 4 runs are finished" in told
    assert len(starts(program)) == 6
