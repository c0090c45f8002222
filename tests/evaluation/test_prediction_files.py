"""The truth that prediction files are measured with."""

from __future__ import annotations

import json

import numpy as np

from workflow.data.scoring import Scoring
from workflow.evaluation.prediction_files import truth_of
from workflow.evaluation.score_files import ScoreFile


def test_rows_without_a_label_are_none_of_those_that_a_run_scored(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKFLOW_CACHE", str(tmp_path / "cache"))
    rows = [{"input": "a", "label": label, "split": "eval"} for label in (1, -1, 0)]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    scores = ScoreFile(tmp_path / "preds.json", np.zeros((2, 2)), None)
    truth = truth_of(scores, Scoring(), str(tmp_path / "d.json"), tmp_path)
    assert truth.targets.tolist() == [[0, 1], [1, 0]]
    assert len(truth.rows) == 2
