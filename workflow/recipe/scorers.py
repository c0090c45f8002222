"""What joins a model that scores with how its rows are read; training, batch scoring and serving share it.

Knows nothing of data files.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from workflow import paths as names
from workflow.data.encoders import ScoreEncoder
from workflow.data.scoring import Scoring, read_scoring
from workflow.evaluation.metrics import Floats
from workflow.evaluation.score_evaluator import RowLosses
from workflow.models.classifier import LoadedClassifier
from workflow.models.load import is_path
from workflow.training.objectives import score_losses


def score_encoder(
    loaded: LoadedClassifier, scoring: Scoring, max_length: int, *, with_targets: bool, from_text: bool = False
) -> ScoreEncoder:
    """How rows become a model's inputs."""
    return ScoreEncoder(
        loaded.tokenizer,
        scoring.texts,
        max_length,
        scoring.keep_source,
        ends_in_eos=loaded.start_token is not None,
        has_types=loaded.takes_types,
        target_reader=scoring.targets(from_text=from_text) if with_targets else None,
    )


def scoring_notes(name: str, scoring: Scoring) -> list[str]:
    """How a checkpoint that was trained to score differs from what this run asks of it."""
    before = read_scoring(Path(name) / names.SCORING_NAME) if is_path(name) else None
    if before is None:
        return []
    mine, theirs = replace(scoring, max_length=0), replace(before, max_length=0)
    return [f"the checkpoint was trained otherwise: {difference}" for difference in theirs.differences(mine)]


def row_losses(problem: str) -> RowLosses:
    """The training loss of each row, of numpy logits and targets [rows, width]."""

    def losses(logits: Floats, targets: Floats) -> Floats:
        found: Floats = score_losses(problem, torch.from_numpy(logits), torch.from_numpy(targets)).numpy()
        return found

    return losses
