"""What joins a model that scores with how its rows are read; training, batch scoring and serving share it.

Knows nothing of data files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from workflow import paths
from workflow.data.class_names import NO_NAMES, ClassNames
from workflow.data.encoders import INPUT, ScoreEncoder
from workflow.data.features import Features, Truncation
from workflow.data.scoring import Scoring, read_scoring
from workflow.data.sources import Row
from workflow.data.texts import read_template
from workflow.errors import ConfigError, ModelError
from workflow.evaluation.calibration import Calibration
from workflow.evaluation.metrics import Floats, Metric
from workflow.evaluation.score_evaluator import CalibrationPlan, RowLosses, constant_metrics
from workflow.evaluation.score_files import read_calibration
from workflow.inference.batch import requests_of
from workflow.inference.requests import ScoreRequest
from workflow.metric_names import usual_problem
from workflow.models.classifier import LoadedClassifier, load_classifier, read_own_head
from workflow.models.head_config import OwnHead, check_trained_head
from workflow.runtime import derived_seed
from workflow.training.objectives import score_losses

Targets = npt.NDArray[np.float32]
DEFAULT_SHARE = 0.5
"""Of the eval rows, to calibrate on."""


@dataclass(frozen=True)
class LoadedScorer:
    """A trained model that scores, how its rows are read, and its calibration, if it has one."""

    loaded: LoadedClassifier
    scoring: Scoring
    calibration: Calibration | None

    @cached_property
    def encoder(self) -> ScoreEncoder:
        """How rows become the model's inputs."""
        return score_encoder(self.loaded, self.scoring, self.scoring.max_length, with_targets=False)


def check_own_head(loaded: LoadedClassifier) -> None:
    """Raises ConfigError for a T5 whose head cannot be trained alone."""
    if loaded.start_token is not None and not loaded.has_own_head:
        raise ConfigError(
            "--ft_head_first: this T5's output head is its embeddings (T5 1.0), so there is no head to train alone; "
            "leave the flag out, or start from a T5 v1.1 or Flan-T5 model"
        )


def calibration_plan(split: str, own: Features, seed: int) -> CalibrationPlan:
    """What is calibrated on: the data's own rows for it, where there are any and `split` does not name a share of the eval rows."""
    is_share = split not in ("auto", "calibration")
    share = float(split) if is_share else DEFAULT_SHARE
    return CalibrationPlan(own if len(own) and not is_share else None, share, derived_seed(seed, "calibration"))


def constant_baseline(scoring: Scoring, train: Targets, held_out: Targets) -> dict[str, Metric]:
    """Metrics of the training targets' mean, whatever the input; targets are [rows, width]. None without rows."""
    if not len(held_out):
        return {}
    mean, targets = (np.asarray(part, dtype=np.float64) for part in (train, held_out))
    unit = scoring.high - scoring.low
    return constant_metrics(scoring.problem, mean.mean(axis=0), targets, row_losses(scoring.problem), unit=unit)


def scoring_of(name: str) -> tuple[Scoring | None, OwnHead | None]:
    """What a checkpoint, by path or hub name, says of its scores: in scoring.json, else in its head's configuration.

    Raises ModelError.
    """
    own = read_scoring(Path(name) / paths.SCORING_NAME)  # a hub name leads to no file
    if own is not None:
        return own, None
    head = read_own_head(name)
    return (Scoring(head.problem, head.names), head) if head is not None else (None, None)


def check_head(name: str, loaded: LoadedClassifier) -> None:
    """Raises ModelError where a model that is to be used as it is has no head for its labels."""
    if loaded.own_head is not None:
        check_trained_head(name, loaded.own_head, loaded.problem, loaded.labels)
    if loaded.has_new_head:
        raise ModelError(f"{name}: has no trained head for {', '.join(loaded.labels)}; train it with clf.py first")


def load_scorer(
    name: str,
    *,
    labels: Sequence[str] | None = None,
    problem: str | None = None,
    template: str | None = None,
    max_length: int | None = None,
    tokenizer: str | None = None,
    mapped: bool = True,
) -> LoadedScorer:
    """A trained checkpoint, by path or hub name, `mapped` as by `load_seq2seq`. What the checkpoint says of itself may only be repeated.

    Raises ConfigError for what contradicts the checkpoint, ModelError where it cannot score.
    """
    said, head = scoring_of(name)
    scoring = said or Scoring()
    asked: dict[str, Any] = {
        "labels": tuple(labels) if labels else None,
        "problem": problem,
        "template": read_template(template) if template is not None else None,
        "max_length": max_length,
    }
    asked = {key: value for key, value in asked.items() if value is not None}
    is_own = said is not None and head is None
    if not is_own:
        asked = _for_head(head, asked)
    changed = replace(scoring, **asked)
    if is_own and changed != scoring:
        differences = "; ".join(changed.differences(scoring))
        raise ConfigError(f"{name} was trained otherwise: {differences}; leave these flags out")
    loaded = load_classifier(name, problem=changed.problem, labels=changed.labels, tokenizer=tokenizer, mapped=mapped)
    check_head(name, loaded)
    if head is not None and not {"labels", "problem"} & asked.keys():
        loaded = replace(loaded, notes=(*loaded.notes, *head.notes()))
    if loaded.max_positions is not None:
        changed = replace(changed, max_length=min(changed.max_length, loaded.max_positions))
    return LoadedScorer(loaded, changed, read_calibration(Path(name) / paths.CALIBRATION_NAME))


def _for_head(head: OwnHead | None, asked: dict[str, Any]) -> dict[str, Any]:
    """What is asked of a checkpoint that has no scoring.json, with the half of labels and problem that it leaves out."""
    if (
        "problem" in asked
        and "labels" not in asked
        and asked["problem"] == "binary"
        and (head is None or head.outputs > 2)
    ):
        return {**asked, "labels": ("no", "yes")}
    if "labels" in asked and "problem" not in asked:
        says = head.says if head is not None and head.fits(head.says or "", asked["labels"]) else None
        return {**asked, "problem": says or usual_problem(asked["labels"])}
    return asked


def score_requests(scorer: LoadedScorer, rows: Sequence[Row]) -> list[ScoreRequest]:
    """The requests of good rows."""
    return counted_requests(scorer, rows)[0]


def counted_requests(scorer: LoadedScorer, rows: Sequence[Row]) -> tuple[list[ScoreRequest], Truncation]:
    """The requests of good rows, and how much of them was cut."""
    encoded = scorer.encoder.encode(rows)
    return requests_of({field: part.ids for field, part in encoded.items()}), encoded[INPUT].truncation


def cut_notes(cut: Truncation) -> list[str]:
    """What the limit of tokens cut off, if anything."""
    return [f"{cut.rows} rows lose {cut.tokens} tokens of their input to the length limit"] if cut.rows else []


def check_finite(logits: Floats, name: str, rows: Sequence[str]) -> None:
    """Raises ModelError, naming the model and the first such row, where logits [rows, width] are NaN or infinite."""
    strange = (~np.isfinite(logits)).any(axis=1)
    if strange.any():
        raise ModelError(
            f"{name}: its scores are NaN or infinite for {int(strange.sum())} of {len(rows)} rows, first for {rows[int(strange.argmax())]}; "
            "its weights are broken, or its numbers too large for bf16 (--precision fp32)"
        )


def score_encoder(
    loaded: LoadedClassifier,
    scoring: Scoring,
    max_length: int,
    *,
    with_targets: bool,
    from_text: bool = False,
    names: ClassNames = NO_NAMES,
) -> ScoreEncoder:
    """How rows of data with these class names become a model's inputs and, with targets, what they are measured by."""
    return ScoreEncoder(
        loaded.tokenizer,
        scoring.texts,
        max_length,
        scoring.keep_source,
        ends_in_eos=loaded.start_token is not None,
        has_types=loaded.takes_types,
        target_reader=scoring.targets(from_text=from_text, names=names) if with_targets else None,
    )


def scoring_notes(name: str, scoring: Scoring) -> list[str]:
    """How a checkpoint that was trained to score differs from what this run asks of it."""
    before = read_scoring(Path(name) / paths.SCORING_NAME)
    if before is None:
        return []
    mine, theirs = replace(scoring, max_length=0), replace(before, max_length=0)
    return [f"the checkpoint was trained otherwise: {difference}" for difference in theirs.differences(mine)]


def unfit_notes(calibration: Calibration | None) -> list[str]:
    """Why nothing was fitted, if so."""
    if calibration is None or not calibration.reason:
        return []
    return [f"no calibration and no threshold were fitted: {calibration.reason}"]


def row_losses(problem: str) -> RowLosses:
    """The training loss of each row, of numpy logits and targets [rows, width]."""

    def losses(logits: Floats, targets: Floats) -> Floats:
        found: Floats = score_losses(problem, torch.from_numpy(logits), torch.from_numpy(targets)).numpy()
        return found

    return losses
