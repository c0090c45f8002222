"""`workflow distill`: what is refused before any row is scored, the commands it runs, and the data set it makes."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.conftest import score_rows
from tests.recipe.conftest import write_scorer
from workflow.data.examples import ScoredRows, load_examples
from workflow.data.scoring import Scoring
from workflow.data.sources import find_source
from workflow.data.targets import Targets
from workflow.data.texts import Texts, read_template
from workflow.errors import ConfigError, DataError
from workflow.recipe import distill as module
from workflow.recipe import distill_data
from workflow.runtime import PARENT_VARIABLE


class TrainedError(Exception):
    """The student's training is reached."""


@pytest.fixture
def distill(command, bert_like, scorer, mount, tmp_path, monkeypatch):
    """Runs the scoring of a distillation here, up to the training; gives the commands."""
    ran = []

    def here(words):
        ran.append(words)
        if words[0] == "clf.py":
            raise TrainedError
        command(*words[1:])

    monkeypatch.setattr(module, "_run", here)
    rows = [{"input": row["input"], "split": "eval" if row["id"] % 3 else "train"} for row in score_rows(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*flags, teacher=scorer, data=tmp_path / "rows.jsonl", name="new", evaluation="scored"):
        ran.clear()
        given = ("--teacher", teacher, "--student", bert_like, "--data", data, "--data_name", name)
        try:
            command("distill", *given, "--mount", mount, *(("--eval_data", evaluation) if evaluation else ()), *flags)
        except TrainedError:
            return ran
        raise AssertionError("ended without training")

    run.ran = ran
    return run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_only_training_rows_are_learnt_from_and_a_second_start_scores_nothing(distill, mount):
    score, train = distill("--max_steps", 3)
    assert score[score.index("--split") + 1] == "train"
    assert train[train.index("--labels") + 1 :][:2] == ["no", "yes"]
    rows = lines(mount / "data/new/train.jsonl")
    assert [row["input"] for row in rows] == [row["input"] for row in score_rows(9) if row["id"] % 3 == 0]
    assert all(0 < row["target"] < 1 and "split" not in row for row in rows)
    assert lines(mount / "data/new/eval.jsonl") == json.loads((mount / "data/scored.json").read_text())["eval"]
    scores = mount / "data/new/teacher/scores.jsonl"
    before = scores.stat().st_mtime_ns
    distill("--max_steps", 3)
    assert scores.stat().st_mtime_ns == before


@pytest.mark.parametrize("there", ["new.jsonl", "new/train.jsonl"])
def test_data_of_the_users_own_is_never_touched(distill, mount, there):
    file = mount / "data" / there
    file.parent.mkdir(exist_ok=True)
    file.write_text('{"input": "mine", "target": 1}\n')
    for data in ("scored", "new"):
        with pytest.raises(ConfigError, match=r"--data_name new: .* is there already, and was not made by distilling"):
            distill(data=data)
    assert file.read_text() == '{"input": "mine", "target": 1}\n'
    assert distill.ran == []


def test_one_name_holds_one_distillation(distill, mount, tmp_path, bert_like):
    distill()
    for changed in ({"data": "scored"}, {"teacher": write_scorer(tmp_path / "other", bert_like)}):
        with pytest.raises(ConfigError, match=r"new is distilled from something else \(.*; choose another --data_name"):
            distill(**changed)
        assert distill.ran == []


def test_rows_that_could_not_be_scored_leave_the_name_free(distill, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"input": 3}\n')
    with pytest.raises(DataError, match=r"train\[0\]"):
        distill(data=tmp_path / "bad.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"input": "red"}\n')
    assert distill(data=tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--target_range", 0, 2), "the student must learn what the teacher scores: high: 2.0, not 1.0"),
        (("--problem=multiclass",), 'problem: "multiclass", not "binary"'),
        (("--labels", "a", "b", "c", "--problem", "multiclass"), "labels"),
        (("--scores_only",), "--scores_only: leave out of distilling"),
        (("--no-train", "--no_eval_at_end"), "--no_train, --no_eval_at_end: leave out"),
        (("--debug",), "--debug"),
        (("--training_run_name", "a/b"), "is not a plain name"),
        (("--max_step", 3), 'did you mean "--max_steps"'),
    ],
)
def test_flags_that_do_not_fit_are_refused_first(distill, mount, flags, message):
    with pytest.raises(ConfigError, match=message):
        distill(*flags)
    assert distill.ran == []
    assert not (mount / "data/new").exists()


def test_labels_are_seen_in_every_spelling(distill):
    train = distill("--problem=binary")[-1]
    assert [word for word in train if word.startswith("--problem")] == ["--problem=binary"]
    assert distill("--labels", "bad", "good")[-1].count("--labels") == 1  # words for the same numbers


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": [{"input": "a", "target": 1}]}, "no eval rows to measure teacher and student on"),
        ({"eval": [{"input": "a", "target": 7}]}, r'eval\[0\]: "target" is 7'),
        ({"eval": [{"input": "a", "target": 1, "note": "\ud800"}]}, r"eval\[0\]: an extra key holds half"),
    ],
)
def test_eval_rows_are_checked_first(distill, mount, content, message):
    (mount / "data/true.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        distill(evaluation="true")
    assert distill.ran == []


def test_a_teacher_that_is_no_run_needs_eval_data(distill):
    with pytest.raises(ConfigError, match="pass --eval_data NAME"):
        distill(evaluation=None)


def test_eval_rows_of_a_table_get_numbers(distill, mount):
    (mount / "data/table.csv").write_text("input,target,split\nred,0.50,test\none,1,train\n")
    distill(evaluation="table")
    (row,) = load_examples(find_source("new", mount), ScoredRows(Texts(), Targets()), mount / "cache").eval
    assert row["target"] == 0.5


@pytest.mark.parametrize("template", ["LaTeX: $\\nabla$ {input}", "two\nlines: {input}\n"])
def test_a_student_reads_the_teachers_template_letter_by_letter(distill, bert_like, tmp_path, template):
    """A text on the command line would have its backslash-n made a newline."""
    teacher = write_scorer(tmp_path / "teacher", bert_like, Scoring(template=template, max_length=32))
    (flag,) = [
        word
        for word in distill(teacher=teacher, evaluation=evaluation(tmp_path, 1))[-1]
        if word.startswith("--template=")
    ]
    assert read_template(flag.removeprefix("--template=")) == template


def test_teachers_of_every_reading(distill, bert_like, mount, tmp_path):
    """Two labels of a multiclass teacher, a template, bounds that look like a flag."""
    classes = Scoring("multiclass", ("a", "b"), template="-{input}", max_length=32)
    train = distill(
        teacher=write_scorer(tmp_path / "classes", bert_like, classes), evaluation=evaluation(tmp_path, "a")
    )[-1]
    assert f"--template={mount}/data/new/teacher/template.txt" in train
    assert train[train.index("--problem") + 1] == "multiclass"
    narrow = Scoring("binary", ("no", "yes"), -1e-05, 1e-05, max_length=32)
    teacher = write_scorer(tmp_path / "narrow", bert_like, narrow)
    train = distill(teacher=teacher, evaluation=evaluation(tmp_path, 0), name="other")[-1]
    assert train[train.index("--target_range") + 1 :][:2] == ["-0.00001", "0.00001"]


def evaluation(tmp_path, target):
    file = tmp_path / f"eval-{target}.json"
    file.write_text(json.dumps({"eval": [{"input": "red", "target": target}]}))
    return file


def test_steps_die_with_the_whole(monkeypatch):
    started = []
    monkeypatch.setattr(
        subprocess, "run", lambda words, **more: started.append(more) or subprocess.CompletedProcess(words, 0)
    )
    module._run(["workflow", "--version"])
    assert started[0]["env"][PARENT_VARIABLE] == str(os.getpid())


@pytest.mark.parametrize(
    ("labels", "scores", "train", "held_out"),
    [
        (("entailment", "not_entailment"), [0.25, 0.5], [0.25, 0.5], [0.0, 1.0]),
        (("1", "0"), [0.25, 0.5], [{"1": 0.75, "0": 0.25}, {"1": 0.5, "0": 0.5}], None),
        (
            ("c", "entailment", "not_entailment"),
            [[0.2, 0.3, 0.5]] * 2,
            [[0.2, 0.3, 0.5]] * 2,
            ["entailment", "not_entailment"],
        ),
    ],
)
def test_the_students_data_has_the_teachers_labels(tmp_path, labels, scores, train, held_out):
    names = {1: "entailment", 0: "not_entailment"} if held_out else {1: "1", 0: "0"}
    rows = [{"input": "a", "target": n, "target_name": name, "split": "eval"} for n, name in names.items()]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    (tmp_path / "s.jsonl").write_text(
        "".join(json.dumps({"orig_d": row, "pred_score": s}) + "\n" for row, s in zip(rows, scores, strict=True))
    )
    scoring = Scoring("binary" if len(labels) == 2 else "multiclass", labels)
    distill_data.write_train_rows(tmp_path, tmp_path / "s.jsonl", scoring)
    assert lines(tmp_path / "train.jsonl") == [{"input": "a", "target": target} for target in train]
    distill_data.write_eval_rows(tmp_path, find_source(str(tmp_path / "d.json"), tmp_path), scoring)
    made = lines(tmp_path / "eval.jsonl")
    assert all("target_name" not in row for row in made)
    assert [row["target"] for row in made] == (held_out or [{"1": 1.0, "0": 0.0}, {"1": 0.0, "0": 1.0}])


def test_eval_rows_of_a_table_keep_their_class_where_labels_are_numbers(tmp_path):
    (tmp_path / "d.csv").write_text("input,label,split\na,2,eval\nb,1,eval\nc,-1,eval\n")
    scoring = Scoring("binary", ("1", "2"))
    source = find_source(str(tmp_path / "d.csv"), tmp_path)
    distill_data.check_eval_rows(source, scoring)
    distill_data.write_eval_rows(tmp_path, source, scoring)
    assert [scoring.targets().of(row) for row in lines(tmp_path / "eval.jsonl")] == [[0, 1], [1, 0]]
