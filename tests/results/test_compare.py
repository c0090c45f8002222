"""`workflow compare`: its p-values and values computed a second way, and what it refuses."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from tests.results.made_up import point, write_run, write_study
from workflow.cli import workflow
from workflow.errors import ConfigError, ResultsError
from workflow.evaluation.comparison import holm
from workflow.evaluation.text_forms import PREDICTED, text_form
from workflow.evaluation.text_metrics import text_metrics

RNG = np.random.default_rng(3)
TARGETS = (RNG.random(60) < 0.4).astype(float)


def scores(strength, seed):
    noise = np.random.default_rng(seed).random(len(TARGETS))
    return np.clip(TARGETS * strength + noise * (1 - strength), 0, 1)


def write_scores(path, values, targets=TARGETS):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"input": f"text {number}", "target": target} for number, target in enumerate(targets)]
    path.write_text(json.dumps([{"orig_d": r, "pred_score": s} for r, s in zip(rows, values, strict=True)]))
    return str(path)


def write_texts(path, texts, references):
    records = [
        {"prompt": "p", "generations": [{"full_generated": text}], "orig_d": {"prompt": "p", "completion": reference}}
        for text, reference in zip(texts, references, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))
    return str(path)


@pytest.fixture
def compare(tmp_path, capsys):
    def run(*arguments, rounds=2000):
        given = [*map(str, arguments), "--mount", str(tmp_path), "--rounds", str(rounds), "--json"]
        assert workflow(["compare", *given]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_p_value_is_that_of_all_exchanges_of_eight_rows(tmp_path, compare):
    few = slice(0, 8)
    one, two = scores(0.5, 1)[few], scores(0.2, 2)[few]
    files = [write_scores(tmp_path / f"{n}.json", s, TARGETS[few]) for n, s in (("a", one), ("b", two))]
    (pair,) = compare(*files, "--metric", "macro_f1", rounds=10_000)["pairs"]

    def f1(given):
        return f1_score(TARGETS[few] >= 0.5, given >= 0.5, average="macro", zero_division=0)

    found = f1(one) - f1(two)
    exchanged = [
        f1(np.where(swapped, two, one)) - f1(np.where(swapped, one, two))
        for swapped in product([True, False], repeat=8)
    ]
    exact = np.mean([abs(value) >= abs(found) - 1e-12 for value in exchanged])
    assert pair["metric"] == "f1_macro"
    assert pair["difference"] == pytest.approx(found)
    assert pair["p_value"] == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 10_000) + 1e-3)


def test_p_value_of_accuracy_is_scipys(tmp_path, compare):
    one, two = scores(0.45, 1), scores(0.2, 2)
    files = [write_scores(tmp_path / f"{n}.json", s) for n, s in (("a", one), ("b", two))]
    (pair,) = compare(*files, "--metric", "accuracy", rounds=10_000)["pairs"]
    hits = [((s >= 0.5) == (TARGETS >= 0.5)).astype(float) for s in (one, two)]
    other = stats.permutation_test(
        hits, lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=10_000, rng=np.random.default_rng(5)
    )
    assert pair["p_value"] == pytest.approx(other.pvalue, abs=0.02)
    assert pair["difference"] == pytest.approx(np.mean(hits[0] - hits[1]))
    assert pair["low"] < pair["difference"] < pair["high"]


def test_the_smallest_p_value_is_one_of_rounds_and_itself(tmp_path, compare):
    files = [write_scores(tmp_path / "a.json", TARGETS), write_scores(tmp_path / "b.json", 1 - TARGETS)]
    assert compare(*files, "--metric", "accuracy", rounds=999)["pairs"][0]["p_value"] == 1 / 1000


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, None, 0.6]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_three_runs_are_three_pairs_corrected_together(tmp_path, compare):
    files = [write_scores(tmp_path / f"{n}.json", scores(s, n)) for n, s in ((1, 0.6), (2, 0.3), (3, 0.0))]
    pairs = compare(*files, "--metric", "accuracy", "auc")["pairs"]
    assert [(p["first"], p["second"]) for p in pairs[:3]] == [tuple(files[:2]), (files[0], files[2]), tuple(files[1:])]
    for metric in ("accuracy", "auc"):
        some = [pair for pair in pairs if pair["metric"] == metric]
        assert [pair["p_holm"] for pair in some] == holm([pair["p_value"] for pair in some])


REFERENCES = [f"the {a} {b} is here now" for a in ("red", "green", "blue") for b in ("cat", "dog", "house", "tree")]
GOOD = [text if number % 3 else "something else entirely" for number, text in enumerate(REFERENCES)]
POOR = [text.replace("here", "there") if number % 2 else "no" for number, text in enumerate(REFERENCES)]


@pytest.mark.parametrize("metric", PREDICTED)
def test_text_forms_are_text_metrics_also_of_drawn_rows(metric):
    samples = [[text] for text in POOR]
    form = text_form(metric, REFERENCES, samples)
    assert form.point.value == pytest.approx(text_metrics(REFERENCES, samples)[metric].value)
    drawn = np.random.default_rng(0).integers(0, len(REFERENCES), len(REFERENCES))
    again = text_metrics([REFERENCES[row] for row in drawn], [samples[row] for row in drawn])[metric].value
    weights = np.bincount(drawn, minlength=len(REFERENCES)).astype(float)[None]
    assert form.statistic(weights)[0] == pytest.approx(again)


def test_texts_are_compared(tmp_path, compare):
    files = [write_texts(tmp_path / "a.json", GOOD, REFERENCES), write_texts(tmp_path / "b.json", POOR, REFERENCES)]
    pairs = {pair["metric"]: pair for pair in compare(*files, "--metric", "exact_match", "chrf", rounds=500)["pairs"]}
    assert pairs["exact_match"]["first_value"] == pytest.approx(8 / 12)
    assert pairs["exact_match"]["second_value"] == 0
    assert pairs["chrf"]["difference"] == pytest.approx(
        text_metrics(REFERENCES, [[t] for t in GOOD])["chrf"].value
        - text_metrics(REFERENCES, [[t] for t in POOR])["chrf"].value
    )


def study_of(tmp_path, name, strength, seeds):
    points = [point(str(seed), {"task": "t", "model": name, "seed": seed}, study=name) for seed in seeds]
    for seed in seeds:
        folder = write_run(tmp_path / "models", f"{name}-{seed}", {"f1_macro": 0.5}, seed=seed)
        write_scores(folder / "checkpoint-10-preds.json", scores(strength, 10 * seed + len(name)))
    return str(write_study(tmp_path / name, tmp_path, points))


def test_studies_are_compared_by_the_seeds_that_both_have(tmp_path, compare):
    one, two = study_of(tmp_path, "one", 0.5, (0, 1, 2)), study_of(tmp_path, "second", 0.2, (1, 2, 3))
    found = compare(one, two)
    (pair,) = found["pairs"]
    assert pair["runs"] == 2
    assert "0, 3" in found["notes"][0]
    values = [
        np.mean([f1_score(TARGETS >= 0.5, scores(s, 10 * seed + n) >= 0.5, average="macro") for seed in (1, 2)])
        for s, n in ((0.5, 3), (0.2, 6))
    ]
    assert [pair["first_value"], pair["second_value"]] == pytest.approx(values)


def test_the_values_of_a_label_of_one_study(tmp_path, compare):
    points = []
    for model, strength in (("a", 0.6), ("b", 0.1)):
        for seed in (0, 1):
            points.append(point(f"{model}-{seed}", {"task": "t", "model": model, "seed": seed}))
            folder = write_run(tmp_path / "models", f"study-{model}-{seed}", {"mcc": 0.5}, model=model, seed=seed)
            write_scores(folder / "checkpoint-10-preds.json", scores(strength, seed))
    study = write_study(tmp_path / "study", tmp_path, points)
    (pair,) = compare(study, "--by", "model")["pairs"]
    assert (pair["first"], pair["second"], pair["runs"]) == ("a", "b", 2)
    with pytest.raises(ConfigError, match=r"its runs differ in model \(a, b\)"):
        compare(study, study_of(tmp_path, "other", 0.1, (0,)))


def test_a_slice_is_compared_on_its_rows(tmp_path, compare):
    for name, strength in (("a", 0.6), ("b", 0.1)):
        folder = write_run(tmp_path / "models", name, {"mcc": 0.5}, slice_by="language")
        records = [
            {"orig_d": {"target": target, "language": "en" if number % 3 else "es"}, "pred_score": score}
            for number, (target, score) in enumerate(zip(TARGETS, scores(strength, 1), strict=True))
        ]
        (folder / "checkpoint-10-preds.json").write_text(json.dumps(records))
    points = [
        {**point(name, {"model": name, "eval": "es"}, metrics=["mcc"]), "run": name, "slice": "es"}
        for name in ("a", "b")
    ]
    (pair,) = compare(write_study(tmp_path / "study", tmp_path, points), "--by", "model", "--metric", "accuracy")[
        "pairs"
    ]
    assert pair["n"] == 20
    assert pair["first_value"] == np.mean((scores(0.6, 1) >= 0.5)[::3] == (TARGETS >= 0.5)[::3])


def test_rows_that_differ_are_told(tmp_path, compare):
    one = write_scores(tmp_path / "a.json", scores(0.5, 1))
    with pytest.raises(ResultsError, match=r"60 records|59 records"):
        compare(one, write_scores(tmp_path / "b.json", scores(0.5, 1)[:-1], TARGETS[:-1]))
    changed = TARGETS.copy()
    changed[7] = 1 - changed[7]
    with pytest.raises(ResultsError, match=r"record 7 is of another row \(its target differs\)"):
        compare(one, write_scores(tmp_path / "b.json", scores(0.5, 1), changed))
    texts = write_texts(tmp_path / "t.json", GOOD, REFERENCES)
    with pytest.raises(ResultsError, match="record 0 is of another row"):
        compare(texts, write_texts(tmp_path / "u.json", POOR, REFERENCES[::-1]))
    with pytest.raises(ResultsError, match="unlike kinds"):
        compare(one, texts)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a.json"], "two or more"),
        (["a.json", "a.json"], "named twice"),
        (["a.json", "b.json", "--metric", "bleu"], "cannot be computed"),
        (["a.json", "b.json", "--metric", "macro_f2"], 'did you mean "f1_macro"'),
        (["a.json", "b.json", "--where", "task"], "LABEL=VALUE"),
        (["a.json", "b.json", "--rounds", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b.json"):
        write_scores(tmp_path / name, scores(0.5, 1))
    with pytest.raises(ConfigError, match=told):
        workflow(["compare", *arguments, "--mount", str(tmp_path)])


def test_predictions_that_are_gone_are_named(tmp_path, compare):
    write_run(tmp_path / "models", "one", {"mcc": 0.5})
    with pytest.raises(ResultsError, match=r"no checkpoint-10-preds\.json, the predictions of its best step"):
        compare("one", write_scores(tmp_path / "a.json", scores(0.5, 1)))


def test_the_table(tmp_path, capsys):
    files = [write_scores(tmp_path / f"{n}.json", scores(s, n)) for n, s in ((1, 0.6), (2, 0.3), (3, 0.0))]
    assert workflow(["compare", *files, "--rounds", "100", "--mount", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "p, Holm" in out
    assert "60 rows" in out
