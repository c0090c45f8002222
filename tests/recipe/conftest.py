"""Commands in this process, as one rank on the CPU, and a small checkpoint that scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workflow import cli, entry
from workflow.console import make_console
from workflow.data.scoring import Scoring
from workflow.files import write_json
from workflow.models.classifier import load_classifier
from workflow.models.save import write_model
from workflow.paths import find_mount
from workflow.recipe.place import Place
from workflow.runtime import Ranks


@pytest.fixture
def command(monkeypatch):
    """Runs `workflow COMMAND ...` here; what it raises is the caller's."""

    def in_place(_module, _argv, settings, work, **_):
        work(Place(Ranks(), "cpu", find_mount(settings.mount), make_console()))
        return 0

    monkeypatch.setattr(entry, "in_ranks", in_place)
    return lambda *arguments: cli.workflow([str(argument) for argument in arguments])


@pytest.fixture
def scorer(bert_like, tmp_path) -> Path:
    """A BERT with a head, as a run leaves it."""
    return write_scorer(tmp_path / "scorer", bert_like)


def write_scorer(folder: Path, start: Path, scoring: Scoring | None = None, **calibration) -> Path:
    scoring = scoring or Scoring(max_length=32)
    loaded = load_classifier(str(start), problem=scoring.problem, labels=scoring.labels, seed=3)
    folder.mkdir(parents=True)
    write_model(folder, loaded.model, loaded.tokenizer, loaded.model.state_dict())
    write_json(folder / "scoring.json", scoring.as_json())
    if calibration:
        (folder / "calibration.json").write_text(json.dumps(calibration))
    return folder
