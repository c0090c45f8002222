"""Text metrics of given rows in both forms, as `score_forms` has score metrics: value, and statistic of row weights.

Knows nothing of how rows are resampled. Tests hold the values to `text_metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workflow.evaluation import weighted_metrics as weighted
from workflow.evaluation.metrics import Floats, Metric
from workflow.evaluation.resampling import Statistic
from workflow.evaluation.score_forms import Form
from workflow.evaluation.text_metrics import corpus_statistics, exact_rows, normalise, overlap_rows, rouge_rows

CORPUS = ("bleu", "chrf")
ROUGE = ("rouge1", "rouge2", "rougeL")
PREDICTED = ("exact_match", "token_f1", *CORPUS, *ROUGE)
"""The text metrics that texts alone give; the others are of the model."""


def text_form(metric: str, references: Sequence[str], predictions: Sequence[Sequence[str]]) -> Form:
    """The form of one of PREDICTED; predictions are each row's samples, of which all but exact match and F1 use the first."""
    wanted = [normalise(text) for text in references]
    given = [[normalise(text) for text in samples] for samples in predictions]
    if metric in CORPUS:
        return _corpus_form(metric, [samples[0] for samples in given], wanted)
    values = _row_values(metric, given, wanted)
    return Form(Metric(float(values.mean()), None, None, len(values)), weighted.mean(values))


def _row_values(metric: str, given: list[list[str]], wanted: list[str]) -> Floats:
    if metric in ROUGE:
        return rouge_rows([metric], [samples[0] for samples in given], wanted)[metric]
    rows: dict[str, Callable[[list[list[str]], list[str]], Floats]] = {
        "exact_match": exact_rows,
        "token_f1": overlap_rows,
    }
    return rows[metric](given, wanted)


def _corpus_form(metric: str, given: list[str], wanted: list[str]) -> Form:
    scorer, table = corpus_statistics(metric, given, wanted)
    statistic = _corpus_statistic(scorer, table)
    return Form(Metric(float(statistic(np.ones((1, len(table))))[0]), None, None, len(table)), statistic)


def _corpus_statistic(scorer: Any, table: Floats) -> Statistic:
    """sacrebleu's score from its sufficient statistics, which add up over rows."""
    return lambda weights: np.array(
        [float(scorer._compute_score_from_stats(sums).score) for sums in (weights @ table).tolist()]
    )
