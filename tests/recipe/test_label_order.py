"""Classes are found by their names: a model is right about data whose classes stand in another order, on every path."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.conftest import write_scores
from workflow.cli import workflow
from workflow.config.clf_settings import ClfSettings
from workflow.config.flags import parse
from workflow.data.glue import glue_task
from workflow.data.sources import find_source
from workflow.errors import ConfigError, DataError, ModelError
from workflow.inference.batch import score_all
from workflow.inference.head_engine import score_engine
from workflow.inference.requests import ScoreRequest
from workflow.models.classifier import load_classifier
from workflow.recipe.clf_task import ClfTask
from workflow.recipe.place import Place
from workflow.recipe.train import run_task
from workflow.recipe.trained import load_to_train
from workflow.results.leaderboard import answers_of
from workflow.runtime import Ranks

WORDS = ("red", "blue", "green", "left", "right", "one", "two", "three")
PAIRS = [(f"reverse {first}", f"{second} {first}") for first in WORDS for second in WORDS[:4]]
HEADS = {
    "MNLI": ("contradiction", "entailment", "neutral"),
    "RTE": ("ENTAILMENT", "NOT_ENTAILMENT"),
    "stars": ("5", "4", "3", "2", "1"),
}


def trained_elsewhere(folder, start, labels, **config):
    """A checkpoint with a head of these labels, and which label it finds for each of PAIRS: all of them somewhere."""
    loaded = load_classifier(str(start), problem="multiclass", labels=labels, seed=5)
    requests = [ScoreRequest(loaded.tokenizer(*p)["input_ids"], loaded.tokenizer(*p)["token_type_ids"]) for p in PAIRS]
    with torch.no_grad():
        loaded.model.classifier.weight *= 40
        logits = score_all(score_engine(loaded), requests, width=len(labels))
        loaded.model.classifier.bias -= torch.tensor(np.median(logits, axis=0), dtype=torch.float32)
    found = score_all(score_engine(loaded), requests, width=len(labels)).argmax(axis=1)
    assert len(set(found.tolist())) == len(labels)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "problem_type": None, **config}))
    return [labels[number] for number in found]


def write_glue(folder, task, labels):
    (folder / task).mkdir(parents=True)
    names = glue_task(task)
    for split in (names.files[0], names.files[1], names.files[2]):
        rows = [f"{n}\t{a}\t{b}\t{label.lower()}" for n, ((a, b), label) in enumerate(zip(PAIRS, labels, strict=True))]
        (folder / task / f"{split}.tsv").write_text(
            "\n".join([f"index\tsentence1\tsentence2\t{names.label}", *rows, ""])
        )


@pytest.fixture(scope="module")
def made(bert_like, tmp_path_factory):
    """A folder with data of each kind in its mount, and for each a checkpoint that is right about all of it."""
    folder = tmp_path_factory.mktemp("labels")

    def make(*words):
        workflow(["data", "make", *map(str, words), "--mount", str(folder / "mount")])

    for task in ("MNLI", "RTE"):
        write_glue(folder / "GLUE", task, trained_elsewhere(folder / task, bert_like, HEADS[task]))
        glue = ("glue", task, "--glue_dir", folder / "GLUE", "--out")
        make(*glue, task)
        make(*glue, f"{task}-test", "--split", "test")
    stars = trained_elsewhere(folder / "stars", bert_like, HEADS["stars"])
    rows = [{"a": a, "b": b, "label": int(label)} for (a, b), label in zip(PAIRS, stars, strict=True)]
    (folder / "stars.json").write_text(json.dumps({"train": rows, "eval": rows}))
    entry = {
        "dataset": "stars.json",
        "train_features": ["a", "b"],
        "eval_feature": "label",
        "splits": ["train", "eval"],
    }
    registry = {"english": {"stars": {"set": {**entry, "task_type": "classification", "classes": 5}}}}
    (folder / "registry.json").write_text(json.dumps(registry))
    make(folder / "registry.json", "english", "--out", "stars")
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """That folder; what is written goes elsewhere."""
    monkeypatch.chdir(tmp_path)
    return made


def make_task(place, model, data, *flags):
    argv = ["--data_name", data, "--model_init_path", str(place / model), *flags]
    resolved = parse(ClfSettings, argv, prog="clf.py", example="")
    return ClfTask(resolved, Place(Ranks(), "cpu", place / "mount", Console()))


def evaluated(*given):
    """The accuracy of a model without a run, and the task."""
    task = make_task(*given, "--no_train", "--training_run_name", "x")
    run_task(task)
    return json.loads(Path("preds/x/metrics.json").read_text())["metrics"]["accuracy"]["value"], task


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("MNLI", ""),
        ("MNLI", "entailment neutral contradiction"),
        ("MNLI", "CONTRADICTION NEUTRAL ENTAILMENT"),
        ("RTE", ""),
        ("RTE", "not_entailment entailment"),
        ("RTE", "Entailment Not-Entailment"),
        ("stars", ""),
        ("stars", "1 2 3 4 5"),
        ("stars", "3 1 2 5 4"),
    ],
)
def test_a_head_is_right_whatever_the_order_of_labels(place, task, labels, command):
    flags = ["--labels", *labels.split()] if labels else []
    score = ("score", place / task, "--mount", place / "mount", *flags)
    accuracy, _ = evaluated(place, task, task, *flags)
    assert accuracy == 1.0
    command(*score, "--data", task, "--split", "eval", "--out", "scored.jsonl")
    for file in ("preds/x/preds.json", "scored.jsonl"):
        command("evaluate", file, "--out", "found", "--mount", place / "mount")
        (metrics,) = json.loads(Path("found/evaluation.json").read_text())["metrics"].values()
        assert metrics["accuracy"]["value"] == 1.0
    if task != "stars":
        command(*score, "--data", f"{task}-test", "--out", "test.jsonl")
        file = place / "GLUE" / task / f"{glue_task(task).files[1]}.tsv"
        gold = [line.split("\t")[3] for line in file.read_text().splitlines()[1:]]
        assert list(answers_of(glue_task(task), Path("test.jsonl")).answers) == gold


def test_words_for_classes_are_read_in_their_order_and_told(place, flan_like, capsys):
    _, task = evaluated(place, flan_like, "RTE")
    assert task.scoring.labels == ("no", "yes")
    assert "not_entailment is no, entailment is yes" in " ".join(capsys.readouterr().out.split())
    rows = task.data.examples.eval
    assert [row["target"] for row in rows] == task.data.eval.targets[:, 1].tolist()


def test_labels_that_are_neither_the_heads_nor_the_datas_are_refused(place):
    with pytest.raises(
        ModelError, match="call the classes ENTAILMENT, NOT_ENTAILMENT, and --labels no yes has other names"
    ):
        evaluated(place, "RTE", "RTE", "--labels", "no", "yes")
    with pytest.raises(DataError, match="of which neutral, contradiction is no label; --labels has"):
        evaluated(place, "stars", "MNLI", "--labels", "entailment", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("model", "data", "labels", "is_new"),
    [
        ("bert", "MNLI", ("entailment", "neutral", "contradiction"), True),
        ("bert", "RTE", ("not_entailment", "entailment"), True),
        ("MNLI", "RTE", ("not_entailment", "entailment"), True),
        ("MNLI", "MNLI", HEADS["MNLI"], False),
        ("RTE", "scored", HEADS["RTE"], False),
        ("MNLI", "scored", ("no", "yes"), True),
    ],
)
def test_a_run_takes_the_labels_of_its_data_and_keeps_a_head_that_has_them(
    place, bert_like, model, data, labels, is_new
):
    write_scores(place / "mount", "scored")
    task = make_task(place, bert_like if model == "bert" else model, data)
    source = find_source(data, place / "mount")
    task.look_at(source)
    load_to_train(task, None)
    task.load_data(source)
    assert task.scoring.labels == labels
    assert (task.loaded.has_new_head, task.scoring.reads) == (is_new, "texts" if data == "scored" else "pairs")
    assert task.loaded.model.config.id2label == dict(enumerate(labels))


def test_a_metric_of_other_targets_is_refused_once_the_labels_are_known(place, bert_like):
    with pytest.raises(ConfigError, match="--save_best_metric pearson: no metric of multiclass targets"):
        evaluated(place, "MNLI", "MNLI", "--save_best_metric", "pearson")
