"""`workflow data list`, `show` and `make` as typed."""

import json

import pytest

from workflow.cli import workflow
from workflow.errors import ConfigError, DataError

ENTRY = {
    "dataset": "set.json",
    "train_features": ["text"],
    "eval_feature": "label",
    "splits": ["train", "eval"],
    "task_type": "classification",
    "classes": 3,
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"[bold]t {n}", "label": ["bad", "so-so", "good"][n % 3]} for n in range(6)]
    (tmp_path / "set.json").write_text(json.dumps({"train": rows, "eval": rows[:3]}))
    entries = {"english": {"topic": {"set": ENTRY}}, "spanish": {"topic": {"set": ENTRY}}}
    (tmp_path / "language-database.json").write_text(json.dumps(entries))
    return tmp_path


def test_list(place, capsys):
    assert workflow(["data", "list"]) == 0
    told = capsys.readouterr().out
    assert "spanish" in told and "set.json" in told  # noqa: PT018
    (place / "language-database.json").unlink()
    assert workflow(["data", "list"]) == 0
    assert "MNLI-mm" in capsys.readouterr().out


def test_show(place, capsys):
    assert workflow(["data", "show", "language-database.json", "english", "--rows", "1"]) == 0
    told = capsys.readouterr().out
    assert "class 2: so-so" in told
    assert "train: phoneme features absent" in told
    assert 'eval: {"input": "[bold]t 0", "target": 0, "target_name": "bad", "language": "english"}' in told


def test_make_and_its_hint(place, capsys):
    command = ["data", "make", "language-database.json", "english", "spanish/topic", "--out", "both"]
    assert workflow([*command, "--eval", "spanish"]) == 0
    told = capsys.readouterr().out
    assert "mount/data/both.json: 12 train and 3 eval rows" in told
    assert "python3 clf.py --data_name both --problem multiclass --labels bad good so-so" in told
    assert workflow([*command, "--eval", "spanish"]) == 0
    assert "as it was" in capsys.readouterr().out
    with pytest.raises(DataError, match="holds something else"):
        workflow(command)
    assert workflow([*command, "--overwrite"]) == 0


def test_wrong_arguments(place):
    for argv, told in (
        (["mak"], r'no \'mak\'; did you mean "make"\?'),
        (["make", "language-database.json", "english", "--out", "a/b.txt"], "a FILE ends in .json"),
        (["make", "language-database.json", "english", "--out", ".."], "not a plain name"),
        (["make", "glue", "CoLA", "--out", "x"], "pass --glue_dir DIR"),
        (["show", "language-database.json", "english", "--glue_dir", "."], "--glue_dir is for the registry glue"),
        (["show", "absent.json", "english"], "absent.json: cannot read"),
        (
            ["make", "language-database.json", "english", "--out", "x", "--split", "eval", "--eval", "spanish"],
            "leave out",
        ),
    ):
        with pytest.raises(ConfigError, match=told):
            workflow(["data", *argv])


def test_glue(place, capsys):
    folder = place / "GLUE" / "RTE"
    folder.mkdir(parents=True)
    for name, labels in (("train", ("entailment", "not_entailment")), ("dev", ("entailment",)), ("test", ("",))):
        head = "index\tsentence1\tsentence2" + ("\tlabel" if name != "test" else "")
        lines = [f"{n}\tOne {n}\tTwo" + (f"\t{label}" if label else "") for n, label in enumerate(labels)]
        (folder / f"{name}.tsv").write_text("\n".join([head, *lines, ""]))
    assert workflow(["data", "make", "glue", "rte", "--glue_dir", "GLUE", "--out", "rte"]) == 0
    assert "note  GLUE/RTE/dev.tsv: no rows of class not_entailment" in capsys.readouterr().out.replace(f"{place}/", "")
    made = json.loads((place / "mount/data/rte.json").read_text())
    assert [row["target"] for row in made["train"]] == [1, 0]  # yes is entailment
    first = {"input": "One 0", "input_pair": "Two", "target": 1, "target_name": "entailment"}
    assert made["train"][0] == first | {"language": "english", "index": "0"}
    assert workflow(["data", "make", "glue", "RTE", "--glue_dir", "GLUE", "--split", "test", "--out", "test.json"]) == 0
    assert json.loads((place / "test.json").read_text()) == {
        "eval": [{"input": "One 0", "input_pair": "Two", "language": "english", "index": "0"}]
    }
    for more in ((), ("--split", "test")):  # a data set each, of its own name
        assert workflow(["data", "make", "glue", "RTE", "--glue_dir", "GLUE", *more]) == 0
    assert (place / "mount/data/rte-test.json").read_bytes() == (place / "test.json").read_bytes()
    with pytest.raises(ConfigError, match="--out NAME"):
        workflow(["data", "make", "language-database.json", "english"])
    with pytest.raises(DataError, match="no folder CoLA for CoLA"):
        workflow(["data", "show", "glue", "CoLA", "--glue_dir", "GLUE"])
