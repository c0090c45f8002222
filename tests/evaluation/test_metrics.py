"""Metrics against the libraries' own values, their intervals, and the edges."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from workflow.evaluation.metrics import is_better, mean_metric, ratio_metric
from workflow.evaluation.text_metrics import normalise, text_metrics, token_f1

REFERENCES = ["the cat sat on the mat", "a dog", "yes", "two  words\nhere"]
PREDICTIONS = [["the cat on the mat"], ["a dog"], ["no"], ["two words here"]]


def test_values_equal_the_libraries():
    found = text_metrics(REFERENCES, PREDICTIONS)
    first = [normalise(samples[0]) for samples in PREDICTIONS]
    wanted = [normalise(text) for text in REFERENCES]
    assert found["exact_match"].value == 0.5
    assert found["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(first, [wanted]).score)
    assert found["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(first, [wanted]).score)
    scorer = RougeScorer(["rougeL"])
    expected = np.mean([scorer.score(want, text)["rougeL"].fmeasure for text, want in zip(first, wanted, strict=True)])
    assert found["rougeL"].value == pytest.approx(expected)
    for metric in found.values():
        assert metric.n == 4
        assert metric.low <= metric.value + 1e-9
        assert metric.high >= metric.value - 1e-9


def test_samples_are_averaged():
    found = text_metrics(["a", "b"], [["a", "x"], ["b", "b"]])
    assert found["exact_match"].value == 0.75


def test_token_f1():
    assert token_f1("a b c", "a b d") == pytest.approx(2 / 3)
    assert (token_f1("", ""), token_f1("", "a"), token_f1("a", "")) == (1, 0, 0)


def test_one_row_has_no_interval():
    for metric in text_metrics(["a b"], [["a b"]]).values():
        assert (metric.low, metric.high, metric.n) == (None, None, 1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        found = mean_metric((rng.random(80) < 0.3).astype(float), seed=trial)
        hits += found.low <= 0.3 <= found.high
    assert 0.88 < hits / 200 <= 1.0


def test_ratio_weighs_rows_by_their_size():
    found = ratio_metric(np.array([10.0, 0.0]), np.array([1.0, 9.0]))
    assert found.value == 1.0


def test_empty_and_strange_texts_do_not_crash():
    found = text_metrics(["", "ü\u2028", "a" * 2000], [[""], ["💥"], [""]])
    assert all(np.isfinite(metric.value) for metric in found.values())


def test_directions():
    assert is_better("exact_match", 0.5, None)
    assert is_better("exact_match", 0.5, 0.4)
    assert not is_better("exact_match", 0.4, 0.4)
    assert is_better("eval_loss", 0.4, 0.5)
