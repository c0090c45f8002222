"""`workflow evaluate` on prediction files: what their scores are, ensembles of ranks, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from workflow.cli import workflow
from workflow.errors import ConfigError, DataError, ResultsError


def write_file(path, scores, targets, settings=None):
    """A prediction file and, of its run, the settings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"orig_d": {"input": "x", "target": t}, "pred_score": s} for s, t in zip(scores, targets, strict=True)]
    path.write_text(json.dumps(rows))
    if settings is not None:
        (path.parent / "args.json").write_text(json.dumps({"settings": settings}))
    return str(path)


@pytest.fixture
def evaluate(tmp_path):
    def run(*arguments):
        out = tmp_path / "out"
        code = workflow(["evaluate", *map(str, arguments), "--mount", str(tmp_path), "--out", str(out)])
        assert code == 0
        return json.loads((out / "evaluation.json").read_text())

    return run


RNG = np.random.default_rng(0)
TARGETS = [0.0, 1.0] * 10
FIRST, SECOND = (np.clip(np.array(TARGETS) * 0.4 + RNG.random(20) * 0.6, 0, 1).tolist() for _ in range(2))


def test_every_file_is_read_by_its_own_run(tmp_path, evaluate):
    small = write_file(tmp_path / "a/preds.json", FIRST, TARGETS, {"labels": ["no", "yes"], "problem": "auto"})
    scaled = [[5 * value for value in values] for values in (SECOND, TARGETS)]
    wide = write_file(tmp_path / "b/preds.json", *scaled, {"target_range": [0, 5]})
    for order in ((small, wide), (wide, "--against", small)):
        with pytest.raises(ConfigError, match=r"another kind than .*high: .*, not .*--target_range"):
            evaluate(*order)
    classes = write_file(tmp_path / "c/preds.json", [[0.5, 0.5]] * 20, TARGETS, {"problem": "multiclass"})
    with pytest.raises(ConfigError, match='problem: "multiclass", not "binary"'):
        evaluate(small, classes)
    rmse = 5 * np.sqrt(np.mean((np.array(SECOND) - TARGETS) ** 2))
    assert evaluate(wide, "--against", wide)["metrics"]["b"]["rmse"]["value"] == pytest.approx(rmse)
    assert evaluate(small, write_file(tmp_path / "plain.json", SECOND, TARGETS))["rows"] == 20
    assert evaluate(small, wide, "--target_range", 0, 5, "--data", data(tmp_path, scaled[1]))


def data(tmp_path, targets):
    rows = [{"input": "x", "target": target} for target in targets]
    for name in ("a", "b"):  # scores alone, so that both belong to these rows
        file = tmp_path / name / "preds.json"
        file.write_text(json.dumps([{"pred_score": record["pred_score"]} for record in json.loads(file.read_text())]))
    (tmp_path / "rows.json").write_text(json.dumps({"train": [], "eval": rows}))
    return tmp_path / "rows.json"


def test_what_wrote_a_file_says_what_its_scores_are(tmp_path, evaluate):
    targets = [5 * target for target in TARGETS]
    file = write_file(tmp_path / "scores.json", [5 * score for score in FIRST], targets)
    scoring = {"problem": "binary", "labels": ["no", "yes"], "low": 0.0, "high": 5.0}
    (tmp_path / "scores.json.scoring.json").write_text(json.dumps({"scoring": scoring}))
    rmse = 5 * np.sqrt(np.mean((np.array(FIRST) - TARGETS) ** 2))
    assert evaluate(file)["metrics"]["scores.json"]["rmse"]["value"] == pytest.approx(rmse)


def test_ranks_have_metrics_of_order_alone(tmp_path, evaluate):
    files = [write_file(tmp_path / f"{name}.json", scores, TARGETS) for name, scores in (("a", FIRST), ("b", SECOND))]
    found = evaluate(*files, "--ensemble", "ranks", "--against", files[0])
    order = {"auc", "average_precision", "spearman"}
    assert {name for name, one in found["metrics"]["mean of ranks"].items() if one["value"] is not None} == order
    assert found["metrics"]["a.json"]["brier"]["value"] is not None
    assert {one["metric"] for one in found["comparison"] if one["difference"] is not None} == order
    assert all("no probabilities" in one["reason"] for one in found["comparison"] if one["metric"] not in order)
    assert {path.stem for path in (tmp_path / "out/plots").iterdir()} == {"roc"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--labels", "no", "no"), "--labels: give two or more different names"),
        (("--labels", "yes"), "--labels: give two or more different names"),
        (("--target_range", 0, "inf"), "--target_range"),
        (("--target_range", 1, 0), "LOW must be below HIGH"),
        (("--problem", "regression", "--target_range", 0, 5), "--target_range is for binary targets, not regression"),
    ],
)
def test_flags_keep_the_rules_of_training(tmp_path, evaluate, flags, message):
    file = write_file(tmp_path / "a.json", FIRST, TARGETS)
    with pytest.raises(ConfigError, match=message):
        evaluate(file, *flags)


@pytest.mark.parametrize(
    ("flags", "score", "target", "message"),
    [
        (("--problem", "multiclass"), [2.0, -1.0], 1, "probabilities lie in"),
        ((), 10**400, 1, "must be a number in"),
        ((), 0.5, 10**400, "must be a number in"),
        (("--problem", "regression"), 1e300, 1, "more than a model's numbers"),
    ],
)
def test_numbers_beyond_all_bounds_are_told(tmp_path, evaluate, flags, score, target, message):
    file = write_file(tmp_path / "a.json", [score] * 2, [target] * 2)
    with pytest.raises(ResultsError, match=message):
        evaluate(file, *flags)


def test_a_list_of_rows_has_no_eval_rows(tmp_path, evaluate):
    file = write_file(tmp_path / "a.json", FIRST, TARGETS)
    (tmp_path / "rows.jsonl").write_text('{"input": "x", "target": 1}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl: no eval rows"):
        evaluate(file, "--data", tmp_path / "rows.jsonl")


def sliced(tmp_path, values):
    """A prediction file whose rows have these values of the key `subject`."""
    targets = [float(number % 2) for number in range(len(values))]
    file = tmp_path / "a.json"
    scores = np.random.default_rng(1).random(len(values)).tolist()
    write_file(file, scores, targets)
    records = json.loads(file.read_text())
    for record, value in zip(records, values, strict=True):
        record["orig_d"]["subject"] = value
    file.write_text(json.dumps(records))
    return file


def test_slices_are_rows_with_their_sizes_and_nothing_is_cut(tmp_path, evaluate, capsys):
    names = [f"subject of studies {number}" for number in range(23)]
    found = evaluate(sliced(tmp_path, [name for name in names for _ in range(8)]), "--slice_by", "subject")
    told = capsys.readouterr().out
    assert found["slice_rows"] == dict.fromkeys(names, 8)
    assert "\u2026" not in told
    for value, metrics in found["slices"].items():
        lines = [line for line in told.splitlines() if f" {value} " in line]
        for metric in metrics.values():
            assert metric["value"] is None or any(f" {metric['value']:.3f} " in line for line in lines)
    assert max(map(len, told.splitlines())) <= 140
    assert f"| {names[3]} | 8 | " in (tmp_path / "out/evaluation.md").read_text()


def test_slices_that_are_left_out_are_told(tmp_path, evaluate, capsys):
    values = [*(str(number) for number in range(53) for _ in range(2)), "alone"]
    found = evaluate(sliced(tmp_path, values), "--slice_by", "subject")
    assert len(found["slices"]) == 50
    told = ["left out: 1 slices of fewer than 2 rows", "left out: 3 slices beyond the 50 largest"]
    assert found["slices_left_out"] == told
    assert "; ".join(told) in " ".join(capsys.readouterr().out.split())


def test_long_names_of_runs_are_folded_not_cut(tmp_path, evaluate, capsys):
    long = "a_run_with_a_name_that_is_longer_than_a_column_could_ever_be_and_ends_in_"
    files = [write_file(tmp_path / f"{long}{number}/preds.json", FIRST, TARGETS) for number in range(5)]
    evaluate(*files)
    told = capsys.readouterr().out
    assert "\u2026" not in told
    for number in range(5):
        assert f"_{number} " in told
