"""Generates for the eval rows on all ranks, measures, and writes the prediction file.

Knows nothing of training. Every rank makes the same number of engine and loss calls, whatever its share of rows, so
that ranks that gather weights together (ZeRO-3) cannot wait for each other for ever.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from workflow.data.division import MicroBatchLimits, divide
from workflow.data.features import Features
from workflow.data.sources import Row
from workflow.errors import ConfigError, GivenUp, did_you_mean
from workflow.evaluation.metrics import Metric, mean_metric, ratio_metric
from workflow.evaluation.text_metrics import text_metrics
from workflow.files import whole_file
from workflow.inference.batch import generate_all
from workflow.inference.interface import Engine
from workflow.inference.requests import GenerateRequest, Result
from workflow.inference.sampling import SamplingParams
from workflow.runtime import Ranks, collectively, derived_seed, max_over_ranks
from workflow.watch.signals import asked

MAX_SLICES = 50

RowLosses = Callable[[Sequence[int]], torch.Tensor]
"""Row numbers of the eval split -> the summed loss of each; a collective call, made without rows too."""

Reference = Callable[[str], str]
"""What an answer can be of a completion."""


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found; complete on the first rank, empty on the others."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    slices: dict[str, dict[str, Metric]] = field(default_factory=dict)
    seconds: float = 0.0

    def one_line(self) -> str:
        """The metrics for a log."""
        shown = (f"{name} {metric.value:.4g}" for name, metric in self.metrics.items() if metric.value is not None)
        return "  ".join(shown) + f"  ({self.seconds:.0f} s)"


@dataclass(frozen=True)
class TextEvaluation(Evaluation):
    """With the answers to each row, in order."""

    results: list[Result] = field(default_factory=list)


def gathered(work: Callable[[], dict[int, Any]], ranks: Ranks) -> dict[int, Any]:
    """Everybody's entries on the first rank; a collective call, which raises what any rank's work raises."""
    mine = collectively(work, ranks)
    if ranks.world_size == 1:
        return mine
    parts: list[Any] | None = [None] * ranks.world_size if ranks.is_first else None
    dist.gather_object(mine, parts)
    return {row: value for part in parts or () for row, value in part.items()}


def give_up_together(ranks: Ranks) -> None:
    """Raises GivenUp on all ranks where any was asked to stop; a collective call."""
    if max_over_ranks(asked(), ranks):
        raise GivenUp("left because a signal asked to stop")


def check_slice_key(rows: Sequence[Row], key: str | None, *, what: str) -> None:
    """Refuses a slice key that none of the rows has; `what` they are called. Raises ConfigError."""
    if key is None or not len(rows) or any(key in row for row in rows):
        return
    raise ConfigError(
        f"--slice_by {key}: no {what} has this key{did_you_mean(key, rows[0])}; the first has {', '.join(rows[0])}"
    )


def share_by_length(lengths: np.ndarray, ranks: Ranks) -> list[int]:
    """This rank's rows, dealt out by length so that the work is even."""
    by_length: list[int] = np.argsort(-lengths, kind="stable").tolist()
    return by_length[ranks.rank :: ranks.world_size]


def slices_of(rows: Sequence[Row], key: str | None, *, most: int | None = MAX_SLICES) -> dict[str, list[int]]:
    """Value of the slice key -> its rows, at most this many values (None: all), the largest first."""
    if key is None:
        return {}
    found: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        value = row.get(key)
        found.setdefault(value if isinstance(value, str) else json.dumps(value), []).append(number)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))[:most])


class TextEvaluator:
    """Evaluates one model on one set of rows, any number of times."""

    def __init__(
        self,
        engine: Engine,
        row_losses: RowLosses,
        rows: Sequence[Row],
        features: Features,
        params: SamplingParams,
        *,
        ranks: Ranks,
        batch_size: int,
        seed: int,
        label_tokens: tuple[int, ...] | None = None,
        slice_by: str | None = None,
        reference: Reference = str,
    ) -> None:
        self.reference = reference
        self.engine = engine
        self.row_losses = row_losses
        self.rows = rows
        self.features = features
        self.params = params
        self.ranks = ranks
        self.batch_size = batch_size
        self.seed = seed
        self.label_tokens = label_tokens
        self.slice_by = slice_by

    def evaluate(self) -> TextEvaluation:
        """A collective call: all ranks make it, the first one gets the results."""
        started = time.perf_counter()
        results = gathered(self._generate, self.ranks)
        losses = gathered(self._losses, self.ranks)
        if not self.ranks.is_first:
            return TextEvaluation()
        ordered = [results[row] for row in range(len(self.rows))]
        loss_sums = np.array([losses[row] for row in range(len(self.rows))])
        metrics = self._metrics(range(len(self.rows)), ordered, loss_sums)
        slices = {
            name: self._metrics(rows, ordered, loss_sums) for name, rows in slices_of(self.rows, self.slice_by).items()
        }
        return TextEvaluation(metrics, slices, time.perf_counter() - started, ordered)

    def _generate(self) -> dict[int, Result]:
        """The answers to this rank's share."""
        lengths = self.features.lengths("prompt")[: len(self.rows)]
        mine = share_by_length(lengths, self.ranks)
        requests = [
            GenerateRequest(
                self.features.row("prompt", row).tolist(),
                self.params,
                seed=derived_seed(self.seed, "sampling", row),
                label_tokens=self.label_tokens,
            )
            for row in mine
        ]
        return dict(zip(mine, generate_all(self.engine, requests), strict=True))

    def _losses(self) -> dict[int, float]:
        """The summed loss of each of this rank's rows."""
        rows = np.arange(len(self.rows))
        sources, targets = (self.features.lengths(field)[: len(rows)] for field in ("prompt", "completion"))
        limits = MicroBatchLimits(rows=self.batch_size)
        found: dict[int, float] = {}
        for part in divide(rows, sources, targets, world_size=self.ranks.world_size, limits=limits)[self.ranks.rank]:
            give_up_together(self.ranks)
            found.update(zip(part, self.row_losses(part).double().tolist(), strict=True))
        return found

    def _metrics(self, rows: Sequence[int], results: list[Result], loss_sums: np.ndarray) -> dict[str, Metric]:
        chosen = list(rows)
        generations = [results[row].generations for row in chosen]
        cut = [np.mean([generation.finish_reason == "length" for generation in answers]) for answers in generations]
        labels = self.features.lengths("completion")[chosen].astype(np.float64)
        return {
            "eval_loss": ratio_metric(loss_sums[chosen], labels),
            **text_metrics(
                [self.reference(self.rows[row]["completion"]) for row in chosen],
                [[answer.text for answer in answers] for answers in generations],
            ),
            "cut_by_length": mean_metric(np.array(cut, dtype=np.float64)),
        }


def prediction_record(row: Row, result: Result, reference: Reference = str) -> dict[str, Any]:
    """One record of a prediction file. `scores` are [p(no), p(yes)], null where the vocabulary has no such tokens.

    `reference` stands there where an answer can be only that of the completion.
    """
    scores = list(result.scores) if result.scores is not None else None
    wanted = reference(row["completion"]) if "completion" in row else None
    return {
        "prompt": row["prompt"],
        **({"reference": wanted} if wanted != row.get("completion") else {}),
        "generations": [
            {"lm_postprocess": generation.text.strip(), "scores": scores, "full_generated": generation.text}
            for generation in result.generations
        ],
        "demonstration": row.get("demonstration", ""),
        "orig_d": row,
    }


def write_predictions(
    path: Path, rows: Sequence[Row], results: Sequence[Result], *, reference: Reference = str
) -> None:
    """Writes the records as one JSON list, in the order of the rows, duplicates apart."""
    with whole_file(path) as file:
        file.write("[")
        for number, result in enumerate(results):
            file.write(",\n" if number else "\n")
            json.dump(prediction_record(rows[number], result, reference), file, ensure_ascii=False, allow_nan=False)
        file.write("\n]\n")
