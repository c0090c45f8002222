"""Metrics of generated texts against references, each with a bootstrap 95 % interval over the eval rows.

Pure functions of texts and numbers. Runs of whitespace count as one space everywhere: T5's vocabulary cannot tell
them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workflow.evaluation.metrics import NUM_RESAMPLES, Floats, Metric, mean_metric

ROUGE_ROWS = 2000
"""ROUGE is computed on the first so many rows: its longest-common-subsequence step is slow in Python."""


def normalise(text: str) -> str:
    """The text with runs of whitespace as one space, none at the ends."""
    return " ".join(text.split())


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over whitespace tokens, as in SQuAD but without dropping articles."""
    predicted, expected = prediction.split(), reference.split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2.0 * common / (len(predicted) + len(expected))


OF_ROWS: dict[str, Callable[[str, str], float]] = {
    "exact_match": lambda text, want: float(text == want),
    "token_f1": token_f1,
}
"""Metrics that are means of one value a row, from normalised texts."""


def row_values(metric: str, references: Sequence[str], predictions: Sequence[Sequence[str]]) -> Floats:
    """The value of a metric of `OF_ROWS` for each row [n]: a mean over the row's samples."""
    of_texts = OF_ROWS[metric]
    wanted = [normalise(text) for text in references]
    given = [[normalise(text) for text in samples] for samples in predictions]
    values = [[of_texts(text, want) for text in samples] for want, samples in zip(wanted, given, strict=True)]
    return np.array([np.mean(row) for row in values])


def text_metrics(
    references: Sequence[str], predictions: Sequence[Sequence[str]], *, seed: int = 0
) -> dict[str, Metric]:
    """Metrics of each row's predictions: exact match and token F1 are means over its samples, the others use the first."""
    wanted = [normalise(text) for text in references]
    first = [normalise(samples[0]) for samples in predictions]
    return {
        **{name: mean_metric(row_values(name, references, predictions), seed=seed) for name in OF_ROWS},
        **_corpus_metrics(first, wanted, seed=seed),
        **_rouge(first[:ROUGE_ROWS], wanted[:ROUGE_ROWS], seed=seed),
    }


def _corpus_metrics(predictions: list[str], references: list[str], *, seed: int) -> dict[str, Metric]:
    """BLEU and chrF by sacrebleu, on its scale of 0 to 100, resampled by rows from its own sufficient statistics."""
    from sacrebleu.metrics import BLEU, CHRF

    return {
        name: _corpus_metric(metric, predictions, references, seed=seed)
        for name, metric in (("bleu", BLEU()), ("chrf", CHRF()))
    }


def _corpus_metric(metric: Any, predictions: list[str], references: list[str], *, seed: int) -> Metric:
    # sacrebleu's own bootstrap mixes number types and fails on some scores; a test holds these two to corpus_score.
    statistics = metric._extract_corpus_statistics(predictions, [references])
    value = float(metric._aggregate_and_compute(statistics).score)
    size = len(statistics)
    if size < 2:
        return Metric(value, None, None, size)
    table = np.array(statistics, dtype=np.float64)
    rng = np.random.default_rng(seed)
    sums = (table[rng.integers(0, size, size)].sum(axis=0) for _ in range(NUM_RESAMPLES))
    scores = [float(metric._compute_score_from_stats(row.tolist()).score) for row in sums]
    low, high = np.percentile(scores, [2.5, 97.5])
    return Metric(value, float(low), float(high), size)


def _rouge(predictions: list[str], references: list[str], *, seed: int) -> dict[str, Metric]:
    """ROUGE-1, -2 and -L F-measures by rouge-score, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names, use_stemmer=False)
    scores = [scorer.score(want, text) for text, want in zip(predictions, references, strict=True)]
    return {name: mean_metric(np.array([score[name].fmeasure for score in scores]), seed=seed) for name in names}
