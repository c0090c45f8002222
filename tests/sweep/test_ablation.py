"""Ablations: one command, continued after any end; figures that can be had again from the prediction files."""

from __future__ import annotations

import csv
import json
import time

import numpy as np
import pytest
from scipy import stats

from tests.conftest import ROOT
from tests.sweep.conftest import command, finished, options, starts, write
from workflow.errors import ConfigError
from workflow.strategies.listing import STRATEGIES
from workflow.sweep.ablation import run_ablation
from workflow.sweep.ablation_file import read_ablation
from workflow.sweep.ablation_plot import Bar, plot, ticks

FILE = {
    "entry": "clf",
    "base": {"model_init_path": "m", "data_name": "rows", "save_best_metric": "accuracy"},
    "baseline": "plain",
    "variants": {"plain": {}, "higher lr": {"lr": 1e-3}, "<much> lower & slower": {"lr": 1e-6}},
    "seeds": [0, 1, 2],
    "metric": "accuracy",
}


def given(place, **more):
    return write(place / "ablation.json", {**FILE, **more})


def ablate(place, file, **more):
    return run_ablation(file, place / "abl", place / "mount", options(place, place / "abl", **more), max_points=100)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"baseline": "plian"}, '"plian" is none of the variants; did you mean "plain"?'),
        (
            {"variants": {"plain": {}, "same": {"max_length": 1024}}},
            'variants "plain" and "same" are the same settings',
        ),
        ({"variants": {"plain": {}, "odd": {"lrr": 1}}}, 'variants.odd: unknown key "lrr"; did you mean "lr"?'),
        ({"metric": "acuracy"}, "'acuracy' is not measured here; did you mean \"accuracy\"?"),
        ({"seeds": [1, 1]}, '"seeds" must differ'),
        ({"variants": {"plain": {}, "swa": {"swa": {"strat": 2}}}}, 'unknown key "swa.strat"'),
        ({"variants": {"plain": {}, "both": {"swa": True, "ema": True}}}, '"both": it makes two averages'),
        ({"variants": {"plain": {}, "swa": {"swa": True}}, "which": "best"}, "no best step is chosen by averages"),
        ({"weights": {"higher lr": "ema"}}, 'of "higher lr": it makes no such average'),
        ({"weights": {"higher": "own"}}, '"higher" is none of the variants; did you mean "higher lr"?'),
        ({"base": {**FILE["base"], "no_eval_at_end": True}}, '"plain": no_eval_at_end leaves out the final evaluation'),
        ({"variants": {"plain": {}, "odd": {"scores_only": True}}}, '"odd": scores_only is not the baseline'),
        (
            {"base": {**FILE["base"], "layerwise_lrd": {"top_lr": 1e-5}}},
            r"variants.higher lr: lr varies, but",
        ),
        ({"variants": {"plain": {}, "both": {"max_steps": 3, "epochs": 2}}}, 'variants.both: "max_steps" and'),
        ({"base": {**FILE["base"], "num_beams": 2}}, 'base: unknown key "num_beams"'),
        ({"variant": {}}, 'unknown key "variant"; did you mean "variants"?'),
    ],
)
def test_files_that_are_refused(place, changes, told):
    with pytest.raises(ConfigError) as caught:
        read_ablation(given(place, **changes), study="abl")
    assert told in str(caught.value)


def test_points_come_seed_by_seed(place):
    points = read_ablation(given(place), study="abl").points
    assert [(point.labels["setting"], point.labels["seed"]) for point in points[:4]] == [
        ("plain", 0),
        ("higher lr", 0),
        ("<much> lower & slower", 0),
        ("plain", 1),
    ]


@pytest.mark.parametrize("name", ["ablation-cola.json", "ablation-cola-t5.json"])
def test_the_examples_compare_strategies(name):
    found = read_ablation(ROOT / "configs" / name, study="a")
    turned_on = {
        variant: {of for of in STRATEGIES if getattr(points[0].resolved.settings.strategies, of) is not None}
        for variant, points in found.variants.items()
    }
    alone = [{"layerwise_lrd"}, {"reinit"}, {"r_drop"}, {"swa"}]
    assert [*turned_on.values()] == [set(), *alone, set().union(*alone)]
    assert turned_on[found.baseline] == set()
    assert len(found.seeds) == 5
    assert found.averages == {"SWA": "swa", "all": "swa"}


@pytest.mark.slow
def test_of_an_average_its_own_predictions_count(place):
    file = given(place, variants={"plain": {}, "averaged": {"swa": True}}, seeds=[0, 1])
    assert ablate(place, file) == 0
    found = json.loads((place / "abl/ablation.json").read_text())["variants"]
    assert found["averaged"]["weights"] == "swa"
    assert found["averaged"]["mean"] != found["plain"]["mean"]
    for seed, value in found["averaged"]["values"].items():
        (run,) = place.glob(f"mount/models/abl-averaged-seed-{seed}-*")
        records = json.loads((run / "swa-checkpoint-9-preds.json").read_text())
        right = [(one["pred_score"] >= 0.5) == (one["orig_d"]["target"] >= 0.5) for one in records]
        assert value == pytest.approx(np.mean(right))
    assert "averaged weights are measured, which they are about: averaged (swa)" in (
        place / "abl/ablation.md"
    ).read_text().replace("\n", " ")


@pytest.mark.slow
def test_the_table_is_what_the_prediction_files_say(place, capsys):
    assert ablate(place, given(place)) == 0
    folder = place / "abl"
    with (folder / "ablation.csv").open() as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    shares = {name: shares_right(place, name) for name in FILE["variants"]}
    for name, by_seed in shares.items():
        assert float(rows[name]["mean"]) == pytest.approx(np.mean(by_seed))
        assert float(rows[name]["std"]) == pytest.approx(np.std(by_seed, ddof=1))
        assert rows[name]["n"] == "3"
        assert float(rows[name]["low"]) <= float(rows[name]["mean"]) <= float(rows[name]["high"])
    differences = np.subtract(shares["higher lr"], shares["plain"])
    assert float(rows["higher lr"]["difference"]) == pytest.approx(differences.mean())
    assert float(rows["higher lr"]["p_seeds"]) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert float(rows["higher lr"]["p"]) == max(float(rows["higher lr"][name]) for name in ("p_seeds", "p_rows"))
    assert float(rows["higher lr"]["p_holm"]) >= float(rows["higher lr"]["p"])
    assert rows["plain"]["difference"] == rows["plain"]["p"] == ""
    text = (folder / "ablation.md").read_text()
    assert f"{100 * np.mean(shares['plain']):.2f}" in text
    assert "max" not in text.splitlines()[2]
    page = (folder / "ablation.html").read_text()
    assert "prefers-color-scheme: dark" in page
    assert "&lt;much&gt; lower &amp; slower" in page
    assert "<much>" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert json.loads((folder / "best.json").read_text())["lr"] == 1e-3
    # What predictions contradict is not shown.
    report = next(place.glob("mount/models/abl-plain-seed-0-*/report.json"))
    report.write_text(report.read_text().replace('"value"', '"value": 0.123, "was"', 1))
    capsys.readouterr()
    assert ablate(place, given(place)) == 1
    assert "notice: no table" in capsys.readouterr().out


def test_a_refused_one_leaves_the_tables_of_the_study_that_is_there(place):
    two = {"variants": {"plain": {}, "higher lr": {"lr": 1e-3}}, "seeds": [0]}
    assert ablate(place, given(place, **two)) == 0
    tables = {path: path.read_bytes() for path in (place / "abl").glob("ablation.*")}
    assert len(tables) == 5
    with pytest.raises(ConfigError, match="holds another study"):
        ablate(place, given(place, **two, baseline="higher lr"))
    assert {path: path.read_bytes() for path in (place / "abl").glob("ablation.*")} == tables


def test_runs_without_the_evaluation_are_left_out_of_the_table(place, capsys):
    two = {"variants": {"plain": {}, "higher lr": {"lr": 1e-3}}, "seeds": [0]}
    assert ablate(place, given(place, **two)) == 0
    _without_final(place, "higher-lr")
    assert ablate(place, given(place, **two)) == 0
    found = json.loads((place / "abl/ablation.json").read_text())["variants"]
    assert [name for name, of in found.items() if of["values"]] == ["plain"]
    assert "higher lr: 1 of 1 runs are not finished, or have no accuracy" in (place / "abl/ablation.md").read_text()
    _without_final(place, "plain")
    capsys.readouterr()
    assert ablate(place, given(place, **two)) == 1
    assert "none of the finished runs has accuracy in its final evaluation" in capsys.readouterr().out


def _without_final(place, variant):
    (report,) = place.glob(f"mount/models/abl-{variant}-seed-0-*/report.json")
    report.write_text(json.dumps({**json.loads(report.read_text()), "final": None}))


def shares_right(place, variant):
    """From the prediction files, by hand."""
    slug = {"plain": "plain", "higher lr": "higher-lr"}.get(variant, "much-lower-slower")
    found = []
    for seed in FILE["seeds"]:
        (file,) = place.glob(f"mount/models/abl-{slug}-seed-{seed}-*/checkpoint-9-preds.json")
        records = json.loads(file.read_text())
        found.append(np.mean([(one["pred_score"] >= 0.5) == (one["orig_d"]["target"] >= 0.5) for one in records]))
    return found


@pytest.mark.slow
def test_killed_it_goes_on_and_says_what_is_missing(place):
    given(place)
    arguments = ("ablate", "ablation.json", "--out", "abl")
    killed = command(*arguments, seconds=0.3)
    while killed.poll() is None and len(list(place.glob("mount/models/*/report.json"))) < 4:
        time.sleep(0.05)
    killed.terminate()
    text = finished(killed)
    assert killed.returncode == 75
    assert "ablation: abl/ablation.md" in text
    assert "runs are not finished" in (place / "abl" / "ablation.md").read_text()
    process = command(*arguments)
    assert "9 of 9 runs are finished" in finished(process)
    assert process.returncode == 0
    assert "not finished" not in (place / "abl" / "ablation.md").read_text()
    assert len(set(starts(place))) == 9


def test_the_figure():
    bars = [Bar("a", [0.1, 0.2], 0.15, 0.1, 0.2), Bar("b<" * 40, [0.3], 0.3, None, None)]
    figure = plot(bars, title="mcc", reference=0.15, times=100)
    assert figure.count('class="run"') == 3
    assert figure.count('class="span"') == 1
    assert "b<" not in figure
    assert ">10<" in figure
    assert plot([], title="nothing", reference=None).startswith("<svg")
    assert plot([Bar("a", [0.5], 0.5, None, None)], title="one", reference=0.5).count("circle") == 2
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_texts_are_read_by_row(place):
    from workflow.sweep.ablation_runs import _read_texts

    body = {**FILE, "entry": "seq2seq", "base": {"model_init_path": "m", "data_name": "d"}, "metric": "exact_match"}
    file = given(place, **{key: value for key, value in body.items() if key != "entry"}, entry="seq2seq")
    ablation = read_ablation(file, study="abl")
    records = [
        {"orig_d": {"prompt": "p", "completion": "a  b"}, "generations": [{"lm_postprocess": text} for text in texts]}
        for texts in (["a b", "c"], ["c", "d"])
    ]
    read, value = _read_texts(write(place / "predictions.json", records), ablation)
    assert read.values.tolist() == [0.5, 0.0]
    assert value == 0.25
    assert read.rows[0]["completion"] == "a  b"
