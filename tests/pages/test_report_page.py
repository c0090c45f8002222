"""The report's numbers are those of the run's files, and it reads whatever is missing, damaged or meant ill."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.pages.made_runs import NASTY, STEPS, scored_run, settings_of, text_run, write_lines
from workflow import cli
from workflow.errors import ConfigError, ResultsError
from workflow.evaluation.report import Measured, MetricRecord, read_report, write_report
from workflow.evaluation.text_metrics import token_f1
from workflow.files import write_json
from workflow.pages import report_page
from workflow.pages.curves import rates_by_group
from workflow.pages.report_page import render, try_own_page
from workflow.pages.run_files import find_run, read_run
from workflow.pages.samples import NUM_WORST

VOID = {"meta", "link", "br", "img", "wbr", "path"}


class Outline(HTMLParser):
    """Tables as rows of texts, by caption; all attributes; whether tags nest."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tables, self.attributes, self.seen = [], {}, [], set()
        self.text, self._rows, self._caption = "", [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data):
        if {"style", "script"} & set(self.open):
            return
        self.text += data
        if "caption" in self.open:
            self._caption += data
        elif "td" in self.open or "th" in self.open:
            self._rows[-1][-1] += data

    def table(self, start: str) -> list[list[str]]:
        return next(rows for caption, rows in self.tables.items() if caption.startswith(start))


def page_of(*roots) -> tuple[str, Outline]:
    page = render([read_run(root) for root in roots])
    return page, Outline(page)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    root = scored_run(tmp_path_factory.mktemp("mount") / "models/scored", save_best_metric="auc")
    return root, *page_of(root)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    root = text_run(tmp_path_factory.mktemp("mount") / "models/texts")
    return root, *page_of(root)


def predictions(root, step=20):
    records = json.loads((root / f"checkpoint-{step}-preds.json").read_text())
    return np.array([r["pred_score"] for r in records]), np.array([r["orig_d"]["target"] for r in records]), records


def test_auc_and_worst_rows_follow_from_the_prediction_file(scored):
    root, page, outline = scored
    scores, targets, _ = predictions(root)
    assert f"(AUC) {roc_auc_score(targets, scores):.3f}" in page
    worst = outline.table("Worst rows at step 20")[1:]
    wanted = np.argsort(-np.abs(scores - targets), kind="stable")[:NUM_WORST]
    assert [int(row[0]) for row in worst] == wanted.tolist()
    for row in worst:
        number = int(row[0])
        assert [row[2], row[3]] == [f"{targets[number]:.3f}", f"{scores[number]:.3f}"]
    wrong = int(((scores >= 0.5) != (targets >= 0.5)).sum())
    assert f"{wrong} of 60 rows" in outline.text


def test_the_reliability_points_are_the_bins_means(scored):
    root, page, _ = scored
    scores, targets, _ = predictions(root)
    figure = next(part for part in page.split("<figure") if "Reliability" in part)
    shown = json.loads(unescape(re.search(r'data-chart="([^"]*)"', figure)[1]))["lines"][0]["points"]
    bins = np.minimum((scores * 15).astype(int), 14)
    wanted = [[scores[bins == b].mean(), targets[bins == b].mean()] for b in range(15) if (bins == b).any()]
    assert np.allclose(shown, wanted, atol=1e-5)


def test_the_result_table_is_the_report(scored):
    root, _, outline = scored
    report = read_report(root / "report.json")
    head, *rows = outline.table("Metrics with 95 % intervals")
    assert head == ["metric", "before trainingstep 0", "beststep 10", "finalstep 20"]
    by_name = {row[0]: row[1:] for row in rows}
    assert set(by_name) == set(report.final.metrics)
    for name, record in report.final.metrics.items():
        shown = by_name[name][2]
        if record.value is None:
            assert shown == "not defined"
        else:
            assert shown.startswith(f"{record.value:.3f}" if abs(record.value) < 10 else f"{record.value:.1f}")
    best = report.best.metrics["auc"]
    assert f"95 % interval {best.low:.3f} to {best.high:.3f}, 60 rows" in outline.text
    slices = outline.table("By kind")
    assert [row[0] for row in slices[1:]] == ["<0>", "<1>"]
    assert slices[1][3].startswith(f"{report.final.slices['<0>']['auc'].value:.3f}")


def test_averages_have_their_columns(tmp_path):
    root = scored_run(tmp_path / "run")
    report = read_report(root / "report.json")
    averaged = Measured(step=20, metrics={"auc": MetricRecord(value=0.123, n=60)})
    write_report(root / "report.json", report.model_copy(update={"averages": {"swa": averaged}}))
    _, outline = page_of(root)
    head, *rows = outline.table("Metrics with 95 % intervals")
    assert head[-1] == "average (SWA)step 20"
    assert {row[0]: row[-1] for row in rows}["auc"] == "0.123"
    _, outline = page_of(root, scored_run(tmp_path / "other"))
    head, *rows = outline.table("Metrics of each run")
    assert head == ["metric", "runstep 10", "run, average (SWA)step 20", "otherstep 10"]
    assert {row[0]: row[2] for row in rows}["auc"] == "0.123"


def test_the_curves_are_metrics_jsonl(scored):
    root, page, _ = scored
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    figures = {re.search("<figcaption>([^<]*)", part)[1]: part for part in page.split("<figure")[1:]}
    points = lambda name: {  # noqa: E731
        line["name"]: line["points"]
        for line in json.loads(unescape(re.search(r'data-chart="([^"]*)"', figures[name])[1]))["lines"]
    }
    assert np.allclose(points("auc")["auc"], [[x["step"], x["auc"]] for x in lines if "auc" in x], rtol=1e-5)
    assert np.allclose(points("auc")["swa_auc"], [[step, 0.5] for step in STEPS])
    assert np.allclose(
        points("Learning rate")["learning rate"], [[x["step"], x["lr"]] for x in lines if "lr" in x], rtol=1e-5
    )
    assert np.allclose(points("Loss")["evaluation"], [[step, 1 / (step + 1)] for step in STEPS], rtol=1e-5)


def test_samples_and_worst_answers_of_texts(texts):
    root, _, outline = texts
    head, *rows = outline.table("The same rows over the steps")
    assert head == ["eval row", "prompt", "wanted", "step 0", "step 10", "step 20"]
    records = {step: json.loads((root / f"temperature=0.00_n=1_step={step}.json").read_text()) for step in STEPS}
    for row in rows:
        for step, cell in zip(STEPS, row[3:], strict=True):
            given = records[step][int(row[0])]["generations"][0]["full_generated"]
            right = given == f"a b c {row[0]}"
            assert cell == ("\u2713 " if right else "") + given
    worst = outline.table("Worst rows at step 20: 10 of 20 rows do not match")[1:]
    f1 = {
        row: token_f1(records[20][row]["generations"][0]["full_generated"], f"a b c {row}") for row in range(0, 20, 2)
    }
    assert [int(row[0]) for row in worst] == sorted(f1, key=lambda row: (f1[row], row))[:NUM_WORST]
    assert worst[0][4] == "0"


@pytest.mark.parametrize("made", ["scored", "texts"])
def test_nothing_of_the_data_becomes_markup_and_nobody_is_asked(made, request):
    _, page, outline = request.getfixturevalue(made)
    assert page.count("<script") == 1
    assert "img" not in outline.seen
    assert not [name for name, _ in outline.attributes if name.startswith("on")]
    for name, value in outline.attributes:
        if name in ("src", "href", "xlink:href", "action", "srcset"):
            assert value.startswith(("#", "data:,")), value
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page
    assert NASTY[1][:4] in outline.text
    assert re.search(r"\u2026 99,400 more characters", outline.text)
    assert len(page) < 300_000
    assert not re.search("[\x00-\x08]", page)


def test_every_chart_and_table_says_what_it_is(scored):
    _, page, outline = scored
    assert page.count("<svg") == page.count("<desc") == page.count('role="img"') > 8
    assert page.count("<table") == page.count("<caption>") == len(outline.tables)
    identifiers = [value for name, value in outline.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))


def test_rates_by_group_follow_the_initial_ones(tmp_path):
    root = scored_run(tmp_path / "run")
    groups = [
        {"name": "layer 0", "initial_lr": 1e-4, "weight_decay": 0, "parameters": ["a", "b"]},
        {"name": "<head>", "initial_lr": 4e-4, "weight_decay": 0.1, "parameters": ["c"] * 9},
    ]
    write_json(root / "param_groups.json", groups)
    run = read_run(root)
    rates = rates_by_group(run)
    assert list(rates) == ["<head>", "layer 0"]
    assert rates["<head>"] == run.train["lr"]
    assert [value for _, value in rates["layer 0"]] == pytest.approx([value / 4 for _, value in run.train["lr"]])
    _, outline = page_of(root)
    assert outline.table("Parameter groups")[2][:4] == ["<head>", "4.00e-04", "0.1", "9"]


def test_rates_of_groups_that_wait_are_those_that_were_logged(tmp_path):
    root = scored_run(tmp_path / "run")
    groups = [{"name": name, "initial_lr": 1e-3, "weight_decay": 0, "parameters": [name]} for name in ("body", "head")]
    write_json(root / "param_groups.json", groups)
    waits = {"body": 0.0, "head": 8e-4}
    write_lines(root, [{"step": 1, "loss": 1.0, "lr": 8e-4, "lrs": waits}, {"step": 2, "loss": 1.0, "lr": 6e-4}])
    assert rates_by_group(read_run(root)) == {"body": [(1, 0.0), (2, 6e-4)], "head": [(1, 8e-4), (2, 6e-4)]}


def test_several_runs_show_what_differs_first(tmp_path):
    one = scored_run(tmp_path / "one", lr=1e-3)
    other = scored_run(tmp_path / "other", lr=2e-3, seed=1, finished=False)
    page, outline = page_of(one, other)
    head, *rows = outline.table("Settings that differ")
    assert head == ["setting", "one", "other"]
    assert rows == [["seed", "0", "1"], ["lr", "0.001", "0.002"]] or rows == [["lr", "0.001", "0.002"]]
    assert "not finished: step 20" in outline.text
    assert page.count('class="line r1') > 3


def test_an_unfinished_run_is_shown_as_far_as_it_came(tmp_path):
    root = scored_run(tmp_path / "run", finished=False, max_steps=100)
    state = {"best": {"step": 10, "metrics": {"eval_loss": {"value": 0.25, "low": 0.2, "high": 0.3, "n": 60}}}}
    (root / "checkpoint-10/training_state").mkdir(parents=True)
    write_json(root / "checkpoint-10/training_state/state.json", {"measured": state})
    _, outline = page_of(root)
    assert "not finished: step 20 of 100" in outline.text
    assert "There is no report.json" in outline.text
    assert "0.250 eval_loss95 % interval 0.200 to 0.300" in outline.text


def test_what_is_missing_is_said(tmp_path):
    root = tmp_path / "run"
    root.mkdir()
    write_json(root / "training_args.json", settings_of("seq2seq"))
    _, outline = page_of(root)
    for words in (
        "metrics.jsonl is not there",
        "no prediction files",
        "Nothing was evaluated",
        "No curves",
        "report.json",
    ):
        assert words in outline.text
    (root / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    (root / "temperature=0.00_n=1_step=0.json").write_text('[{"prompt": "a", "gen')
    (root / "report.json").write_text("{}")
    write_json(root / "param_groups.json", {"not": "a list"})
    _, outline = page_of(root)
    assert "1 lines could not be read" in outline.text
    assert "This part could not be made: DataError" in outline.text
    assert "not a report that this version reads" in outline.text
    assert "param_groups.json is not a list of groups" in outline.text


@pytest.mark.parametrize(
    ("given", "targets", "predicted", "shown"),
    [
        ({"labels": ["a", "b", "<c>"]}, ["a", "<c>"], [[0.2, 0.7, 0.1], [0.1, 0.1, 0.8]], "b (0.70)"),
        ({"labels": ["a", "b"], "problem": "multilabel"}, [["a"], []], [[0.9, 0.8], [0.1, 0.2]], "a, b"),
        ({"problem": "regression"}, [2.5, 7], [3.0, 7.25], "7.250"),
        ({"target_range": [0, 5]}, [2.5, 5], [1.5, 4.5], "1.500"),
    ],
)
def test_other_kinds_of_targets(tmp_path, given, targets, predicted, shown):
    root = tmp_path / "run"
    root.mkdir()
    write_json(root / "args.json", settings_of("clf", **given))
    rows = [{"orig_d": {"input": "x", "target": t}, "pred_score": p} for t, p in zip(targets, predicted, strict=True)]
    write_json(root / "checkpoint-5-preds.json", rows)
    _, outline = page_of(root)
    assert "could not be made" not in outline.text
    assert shown in [row[3] for row in outline.table("Worst rows at step 5")]


def test_scores_alone_have_no_targets(tmp_path):
    _, outline = page_of(scored_run(tmp_path / "run", scores_only=True))
    assert "scores alone (--scores_only)" in outline.text
    assert "could not be made" not in outline.text


def test_the_command(tmp_path, capsys):
    mount = tmp_path / "mount"
    scored_run(mount / "models/one")
    out = tmp_path / "page.html"
    assert cli.workflow(["report", "one", "--mount", str(mount), "--out", str(out)]) == 0
    assert "<title>one" in out.read_text()
    assert str(out) in capsys.readouterr().out.replace("\n", "")
    with pytest.raises(ResultsError, match='did you mean "one"'):
        cli.workflow(["report", "onne", "--mount", str(mount), "--out", str(out)])
    with pytest.raises(ConfigError, match="is a folder"):
        cli.workflow(["report", "one", "--mount", str(mount), "--out", str(tmp_path)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultsError, match="not a run's folder"):
        find_run(str(tmp_path / "empty"), mount)


def test_a_page_that_fails_costs_the_page_alone(tmp_path, monkeypatch):
    root = scored_run(tmp_path / "run")
    report = read_report(root / "report.json")
    (root / "report.json").unlink()
    assert try_own_page(root, report) is None
    assert "finished, 20 steps" in (root / "report.html").read_text()
    (root / "report.html").unlink()
    monkeypatch.setattr(report_page, "render", lambda runs: 1 / 0)
    assert "ZeroDivisionError" in try_own_page(root, report)
    assert not list(root.glob(".tmp-*"))
    assert not (root / "report.html").exists()
