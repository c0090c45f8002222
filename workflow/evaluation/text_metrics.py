"""Metrics of generated texts against references, each with a bootstrap 95 % interval over the eval rows.

Pure functions of texts and numbers. Runs of whitespace count as one space everywhere: T5's vocabulary cannot tell
them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from workflow.evaluation.metrics import NUM_RESAMPLES, Floats, Metric, mean_metric

ROUGE_ROWS = 2000
"""ROUGE is computed on the first so many rows: its longest-common-subsequence step is slow in Python."""


def normalise(text: str) -> str:
    """The text with runs of whitespace as one space, none at the ends."""
    return " ".join(text.split())


def wanted_text(record: Mapping[str, Any]) -> str:
    """What a record's answers are measured against."""
    return str(record.get("reference", (record.get("orig_d") or {}).get("completion", "")))


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over whitespace tokens, as in SQuAD but without dropping articles."""
    predicted, expected = prediction.split(), reference.split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2.0 * common / (len(predicted) + len(expected))


def text_metrics(
    references: Sequence[str], predictions: Sequence[Sequence[str]], *, seed: int = 0
) -> dict[str, Metric]:
    """Metrics of each row's predictions: exact match and token F1 are means over its samples, the others use the first."""
    wanted = [normalise(text) for text in references]
    given = [[normalise(text) for text in samples] for samples in predictions]
    first = [samples[0] for samples in given]
    return {
        **{name: mean_metric(rows(given, wanted), seed=seed) for name, rows in OF_ROWS.items()},
        **{name: _corpus_metric(name, first, wanted, seed=seed) for name in ("bleu", "chrf")},
        **_rouge(first[:ROUGE_ROWS], wanted[:ROUGE_ROWS], seed=seed),
    }


def exact_rows(given: Sequence[Sequence[str]], wanted: Sequence[str]) -> Floats:
    """The share of each row's samples that are its reference: [n]."""
    return np.array([np.mean([text == want for text in samples]) for want, samples in zip(wanted, given, strict=True)])


def overlap_rows(given: Sequence[Sequence[str]], wanted: Sequence[str]) -> Floats:
    """The mean token F1 of each row's samples: [n]."""
    return np.array(
        [np.mean([token_f1(text, want) for text in samples]) for want, samples in zip(wanted, given, strict=True)]
    )


OF_ROWS: dict[str, Callable[[Sequence[Sequence[str]], Sequence[str]], Floats]] = {
    "exact_match": exact_rows,
    "token_f1": overlap_rows,
}
"""Metrics that are means of one value a row, from normalised texts."""


def corpus_statistics(name: str, predictions: list[str], references: list[str]) -> tuple[Any, Floats]:
    """sacrebleu's scorer of BLEU or chrF, and its sufficient statistics of each row: [n, k]; they add up over rows."""
    from sacrebleu.metrics import BLEU, CHRF

    scorer: Any = {"bleu": BLEU, "chrf": CHRF}[name]()
    return scorer, np.array(scorer._extract_corpus_statistics(predictions, [references]), dtype=np.float64)


def _corpus_metric(name: str, predictions: list[str], references: list[str], *, seed: int) -> Metric:
    """BLEU or chrF by sacrebleu, on its scale of 0 to 100, resampled by rows from its own sufficient statistics."""
    # sacrebleu's own bootstrap mixes number types and fails on some scores; a test holds these two to corpus_score.
    scorer, table = corpus_statistics(name, predictions, references)
    size = len(table)

    def score(sums: Floats) -> float:
        return float(scorer._compute_score_from_stats(sums.tolist()).score)

    value = score(table.sum(axis=0))
    if size < 2:
        return Metric(value, None, None, size)
    rng = np.random.default_rng(seed)
    scores = [score(table[rng.integers(0, size, size)].sum(axis=0)) for _ in range(NUM_RESAMPLES)]
    low, high = np.percentile(scores, [2.5, 97.5])
    return Metric(value, float(low), float(high), size)


def rouge_rows(names: Sequence[str], predictions: list[str], references: list[str]) -> dict[str, Floats]:
    """ROUGE-1, -2 and -L F-measures of each row by rouge-score, without stemming: [n] each."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(names), use_stemmer=False)
    scores = [scorer.score(want, text) for text, want in zip(predictions, references, strict=True)]
    return {name: np.array([score[name].fmeasure for score in scores]) for name in names}


def _rouge(predictions: list[str], references: list[str], *, seed: int) -> dict[str, Metric]:
    found = rouge_rows(["rouge1", "rouge2", "rougeL"], predictions, references)
    return {name: mean_metric(values, seed=seed) for name, values in found.items()}
