"""GLUE's leaderboard files: names, labels, order and numbers of rows, and what is said of tasks without predictions."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.conftest import shared
from tests.results.made_up import point, write_run, write_study
from workflow.cli import workflow
from workflow.data.glue import TASKS
from workflow.errors import ConfigError, ResultsError

ELEVEN = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX"]


def write_scores(path, scores, *, index=True, scoring=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"input": "x", **({"index": str(number)} if index else {})} for number in range(len(scores))]
    path.write_text(
        "".join(json.dumps({"orig_d": r, "pred_score": s}) + "\n" for r, s in zip(rows, scores, strict=True))
    )
    if scoring is not None:
        usual = {"problem": "binary", "labels": ["no", "yes"], "low": 0.0, "high": 1.0}
        path.with_name(f"{path.name}.scoring.json").write_text(json.dumps({"scoring": {**usual, **scoring}}))
    return path


def leaderboard(*arguments):
    return workflow(["leaderboard", *map(str, arguments)])


def read_zip(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


def lines_of(tmp_path, task, scores, **more):
    """What the leaderboard gets of these scores, without the head."""
    file = write_scores(tmp_path / "scores.jsonl", scores, **more)
    leaderboard("--predictions", f"{task}={file}", "--out", tmp_path / "z.zip", "--unofficial")
    ((_, text),) = read_zip(tmp_path / "z.zip").items()
    assert text.endswith("\n")
    head, *lines = text.splitlines()
    assert head == "index\tprediction"
    return lines


def test_the_eleven_files_of_the_official_numbers_of_rows(tmp_path, capsys):
    cola = write_scores(tmp_path / "c.jsonl", [0.9] * 1063)
    assert leaderboard("--predictions", f"cola={cola}", "--out", tmp_path / "z.zip", "--fill") == 0
    found = read_zip(tmp_path / "z.zip")
    assert sorted(found) == sorted(f"{name}.tsv" for name in ELEVEN)
    counts = {name.removesuffix(".tsv"): text.count("\n") - 1 for name, text in found.items()}
    # As the data set card of nyu-mll/glue counts its test splits.
    assert counts == {
        "CoLA": 1063, "SST-2": 1821, "MRPC": 1725, "STS-B": 1379, "QQP": 390965, "MNLI-m": 9796, "MNLI-mm": 9847,
        "QNLI": 5463, "RTE": 3000, "WNLI": 146, "AX": 1104,
    }  # fmt: skip
    out = capsys.readouterr().out
    assert "FILLED with a constant, which is no result: SST-2.tsv" in out
    assert out.count("PLACEHOLDER") == 10


def test_absent_tasks_stay_absent_and_it_is_said(tmp_path, capsys):
    cola = write_scores(tmp_path / "c.jsonl", [0.9] * 1063)
    leaderboard("--predictions", f"CoLA={cola}", "--out", tmp_path / "z.zip")
    assert list(read_zip(tmp_path / "z.zip")) == ["CoLA.tsv"]
    out = capsys.readouterr().out
    assert "left out" in out
    assert "all eleven" in out


def test_equal_answers_are_equal_bytes(tmp_path):
    one = write_scores(tmp_path / "one.jsonl", [0.9] * 1063)
    two = write_scores(tmp_path / "two.jsonl", [0.8] * 1063)
    for name, file in (("a", one), ("b", two)):
        leaderboard("--predictions", f"CoLA={file}", "--out", tmp_path / f"{name}.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


@pytest.mark.parametrize(
    ("task", "scores", "scoring", "answers"),
    [
        ("CoLA", [0.5, 0.499, 1.0], None, "1 0 1"),
        ("RTE", [0.5, 0.499], None, "entailment not_entailment"),
        ("QNLI", [0.9, 0.1], {"labels": ["entailment", "not_entailment"]}, "not_entailment entailment"),
        ("WNLI", [0.9, 0.1], {"labels": ["entailment", "not_entailment"]}, "0 1"),
        ("MRPC", [[0.3, 0.7], [0.6, 0.4]], {"problem": "multiclass"}, "1 0"),
        ("MNLI", [[0.2, 0.3, 0.5], [0.5, 0.5, 0.0]], None, "contradiction entailment"),
        (
            "MNLI-mm",
            [[0.2, 0.3, 0.5], [0.5, 0.4, 0.1]],
            {"problem": "multiclass", "labels": ["contradiction", "neutral", "entailment"]},
            "entailment contradiction",
        ),
        ("AX", [[0.1, 0.8, 0.1]], {"problem": "multiclass", "labels": ["a", "b", "c"]}, "neutral"),
        ("STS-B", [3.25, -1, 7], None, "3.250 0.000 5.000"),
        ("STS-B", [3.25, 0, 5], {"high": 5.0}, "3.250 0.000 5.000"),
        ("STS-B", [0.5, 1.0], {}, "2.500 5.000"),
    ],
)
def test_labels_are_the_leaderboards(tmp_path, task, scores, scoring, answers):
    assert [line.split("\t")[1] for line in lines_of(tmp_path, task, scores, scoring=scoring)] == answers.split()


def test_rows_stand_in_the_order_of_their_index(tmp_path):
    file = tmp_path / "s.jsonl"
    records = [{"orig_d": {"idx": i}, "pred_score": s} for i, s in ((2, 0.9), (0, 0.8), (1, 0.1))]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    leaderboard("--predictions", f"CoLA={file}", "--out", tmp_path / "z.zip", "--unofficial")
    assert read_zip(tmp_path / "z.zip")["CoLA.tsv"] == "index\tprediction\n0\t1\n1\t0\n2\t1\n"


@pytest.mark.parametrize(("second", "told"), [("0", "is there twice"), ("7", "is not in 0 to 1"), ("x", "is not in")])
def test_rows_that_are_not_the_whole_file_are_refused(tmp_path, second, told):
    file = tmp_path / "s.jsonl"
    file.write_text("".join(json.dumps({"orig_d": {"index": i}, "pred_score": 0.5}) + "\n" for i in ("0", second)))
    with pytest.raises(ResultsError, match=told):
        leaderboard("--predictions", f"CoLA={file}", "--out", tmp_path / "z.zip")
    assert not (tmp_path / "z.zip").exists()


def test_another_number_of_rows_is_refused(tmp_path):
    file = write_scores(tmp_path / "s.jsonl", [0.5] * 3)
    with pytest.raises(ResultsError, match="has 1063 rows"):
        leaderboard("--predictions", f"CoLA={file}", "--out", tmp_path / "z.zip")
    glue = tmp_path / "glue"
    (glue / "CoLA").mkdir(parents=True)
    (glue / "CoLA" / "test.tsv").write_text('index\tsentence\n0\tA "quote.\n1\tb\n')
    with pytest.raises(ResultsError, match=r"3 predictions, and .*test\.tsv has 2 rows"):
        leaderboard("--predictions", f"CoLA={file}", "--out", tmp_path / "z.zip", "--data", glue, "--unofficial")
    with pytest.raises(ResultsError, match="labels a, b, c are no answers to CoLA"):
        lines_of(tmp_path, "CoLA", [[0.1, 0.2, 0.7]], scoring={"problem": "multiclass", "labels": ["a", "b", "c"]})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", "z.zip"], "name runs"),
        (["--out", "z.tar", "x"], "ends in .zip"),
        (["--out", "z.zip", "--predictions", "CoLA"], "TASK=FILE"),
        (["--out", "z.zip", "--predictions", "CoLAA=x"], "no task of GLUE"),
        (["--out", "z.zip", "--predictions", "CoLA=x", "cola=y"], "named twice"),
        (["--out", "z.zip", "--predictions", "CoLA=x", "--data", "nowhere"], "no such folder"),
    ],
)
def test_wrong_input_is_refused(tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=told):
        leaderboard(*arguments)


@pytest.fixture
def suite(tmp_path):
    points = []
    for task, metric, values in (("CoLA", "mcc", (0.3, 0.5)), ("MNLI", "accuracy", (0.6,))):
        for seed, value in enumerate(values):
            points.append(point(f"{task}-{seed}", {"task": task, "seed": seed}, metrics=[metric], study="s"))
            write_run(tmp_path / "models", f"s-{task}-{seed}", {metric: value}, data=task, seed=seed)
    return write_study(tmp_path / "s", tmp_path, points)


def test_a_suites_best_runs_answer_and_missing_files_are_told_with_their_commands(tmp_path, suite, capsys):
    with pytest.raises(
        ResultsError, match=r"workflow score .*s-CoLA-1 --data CoLA-test --out .*s-CoLA-1/test-CoLA\.jsonl"
    ):
        leaderboard(suite, "--out", tmp_path / "z.zip")
    models = tmp_path / "models"
    write_scores(models / "s-CoLA-0" / "test-CoLA.jsonl", [0.1] * 1063)
    write_scores(models / "s-CoLA-1" / "test-CoLA.jsonl", [0.9] * 1063)
    three = {"problem": "multiclass", "labels": ["entailment", "neutral", "contradiction"]}
    write_scores(models / "s-MNLI-0" / "test-MNLI-m.jsonl", [[0, 1, 0]] * 9796, scoring=three, index=False)
    write_scores(models / "s-MNLI-0" / "test-AX.jsonl", [[0, 0, 1]] * 1104, scoring=three)
    capsys.readouterr()
    leaderboard(suite, "--out", tmp_path / "z.zip")
    found = read_zip(tmp_path / "z.zip")
    assert list(found) == ["CoLA.tsv", "MNLI-m.tsv", "AX.tsv"]
    assert set(found["CoLA.tsv"].splitlines()[1].split("\t")) == {"0", "1"}  # row 0, answered by the better run
    assert found["AX.tsv"].splitlines()[-1] == "1103\tcontradiction"
    assert "to make them: MNLI-mm: workflow data make glue MNLI-mm" in capsys.readouterr().out


def test_test_files_are_scored_by_each_task_s_best_run(tmp_path, suite, capfd, monkeypatch):
    (tmp_path / "glue" / "CoLA").mkdir(parents=True)
    (tmp_path / "glue" / "CoLA" / "test.tsv").write_text("index\tsentence\n0\tOne.\n1\tTwo.\n")
    ran = []

    def score(command, **_):
        ran.append(command)
        rows = json.loads(Path(command[command.index("--data") + 1]).read_text())["eval"]
        assert [row["input"] for row in rows] == ["One.", "Two."]
        write_scores(Path(command[-1]), [0.9] * len(rows))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("workflow.commands.leading.subprocess.run", score)
    given = ("--data", tmp_path / "glue", "--score", "--unofficial", "--out", tmp_path / "z.zip")
    leaderboard(suite, *given)
    (command,) = ran
    assert command[3:5] == ["score", str(tmp_path / "models" / "s-CoLA-1")]  # the better one
    assert read_zip(tmp_path / "z.zip") == {"CoLA.tsv": "index\tprediction\n0\t1\n1\t1\n"}
    assert "MNLI is not scored" in capfd.readouterr().err  # it has no test file
    leaderboard(suite, *given)
    assert len(ran) == 1
    (tmp_path / "models" / "s-CoLA-1" / "test-CoLA.jsonl").unlink()
    monkeypatch.setattr(
        "workflow.commands.leading.subprocess.run", lambda command, **_: subprocess.CompletedProcess(command, 2)
    )
    with pytest.raises(ResultsError, match="CoLA: scoring ended with 2"):
        leaderboard(suite, *given)
    with pytest.raises(ConfigError, match="with --data the folder of GLUE"):
        leaderboard(suite, "--score", "--out", tmp_path / "z.zip")


def test_the_fitted_threshold_of_the_tasks_metric_where_asked(tmp_path, capsys):
    file = write_scores(tmp_path / "s.jsonl", [0.6, 0.8], scoring={})
    record = tmp_path / "s.jsonl.scoring.json"
    command = ("--predictions", f"CoLA={file}", "--out", tmp_path / "z.zip", "--unofficial")
    answers = []
    for fitted in (None, {"mcc": 0.7, "accuracy": 0.9}):
        if fitted:
            record.write_text(json.dumps({**json.loads(record.read_text()), "thresholds": fitted}))
        for flag in ((), ("--fitted_threshold",)):
            leaderboard(*command, *flag)
            answers.append(read_zip(tmp_path / "z.zip")["CoLA.tsv"].splitlines()[1:])
    assert answers == [["0\t1", "1\t1"]] * 3 + [["0\t0", "1\t1"]]
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "no threshold" in told
    assert "0.7" in told


def test_real_test_files_have_the_numbers_that_are_built_in(tmp_path):
    glue = tmp_path / "glue"
    for task, file in (("CoLA", "cola/test_unlabelled.tsv"), ("MRPC", "mrpc/noheader_test_1725.txt")):
        source = shared("data", *file.split("/"))
        (glue / task).mkdir(parents=True)
        (glue / task / ("test.tsv" if task == "CoLA" else source.name)).write_bytes(source.read_bytes())
        predictions = write_scores(tmp_path / f"{task}.jsonl", [0.5] * TASKS[task].num_test)
        leaderboard("--predictions", f"{task}={predictions}", "--out", tmp_path / "z.zip", "--data", glue)
        assert read_zip(tmp_path / "z.zip")[f"{task}.tsv"].count("\n") == TASKS[task].num_test + 1
