"""`workflow data check` of rows to be scored: what training would cut, and data without rows."""

from __future__ import annotations

import json

import pytest

from workflow.data.class_names import class_names
from workflow.data.examples import ScoredRows, load_examples
from workflow.data.sources import find_source
from workflow.data.targets import Targets
from workflow.data.texts import Texts
from workflow.errors import DataError
from workflow.models.classifier import load_classifier
from workflow.models.input_lengths import most_tokens_of


@pytest.fixture
def check(command, mount, capsys):
    def run(rows, *flags):
        (mount / "data/checked.json").write_text(json.dumps({"train": rows, "eval": rows[:0]}))
        command("data", "check", "checked", "--task", "clf", "--mount", mount, *flags)
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("kind", ["bert_like", "gpt2_like"])
def test_inputs_are_cut_where_training_cuts_them(check, kind, request):
    folder = request.getfixturevalue(kind)
    loaded = load_classifier(str(folder), problem="binary", labels=("no", "yes"))
    assert most_tokens_of(str(folder), loaded.tokenizer) == loaded.max_positions < 1024
    text = "red " * (loaded.max_positions + 1)
    found = json.loads(check([{"input": text, "target": 1}], "--model_init_path", folder, "--json"))
    assert found["splits"]["train"]["truncated"]["input"]["rows"] == 1
    assert any("to the length limit" in warning for warning in found["warnings"])


def test_data_without_rows_is_odd(check):
    told = check([])
    assert "there are no rows" in told
    assert "nothing odd found" not in told


TAGS = [{"input": "red", "target": ["a", "c"]}, {"input": "blue", "target": []}]


@pytest.mark.parametrize(
    ("rows", "flags"),
    [
        (TAGS, ("--problem", "multilabel", "--labels", "a", "b", "c")),
        ([{"input": "red", "target": 7.5}, {"input": "blue", "target": -1}], ("--problem", "regression")),
        ([{"input": "red", "target": "spam"}, {"input": "blue", "target": "Ham"}], ("--labels", "ham", "spam")),
    ],
)
def test_targets_of_each_problem_are_checked(check, rows, flags):
    assert json.loads(check(rows, *flags, "--json"))["splits"]["train"]["rows"] == 2
    with pytest.raises(DataError, match=r"train\[0\]"):
        check([{"input": "red", "target": {"x": "y"}}], *flags)


def test_classes_that_nothing_can_be_learnt_of_are_told(command, mount, capsys):
    rows = {
        "train": [{"input": "red", "target": "a"}],
        "eval": [{"input": w, "target": w} for w in ("b", "c", "c", "a")],
    }
    (mount / "data/seen.json").write_text(json.dumps(rows))
    command("data", "check", "seen", "--labels", "a", "b", "c", "d", "--mount", mount, "--json")
    (told,) = [text for text in json.loads(capsys.readouterr().out)["warnings"] if "no training row" in text]
    assert told == "no training row is of the classes b, c, d, which 3 eval rows have: nothing can be learnt of them"


def test_a_label_column_of_another_program_is_read_with_its_names(command, mount, capsys):
    import datasets

    features = datasets.Features(
        {"input": datasets.Value("string"), "label": datasets.ClassLabel(names=["contra", "neutral", "entail"])}
    )
    rows = {"input": ["red", "blue", "green", "left"], "label": [2, 0, -1, 1]}
    file = mount / "data" / "nli" / "train.parquet"
    file.parent.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    for name in ("nli", f"hf:{file.parent}"):
        source = find_source(name, mount)
        classes = class_names(row for _, _, row in source.rows())
        assert classes.names == ("contra", "neutral", "entail")
        targets = Targets("multiclass", ("ENTAIL", "NEUTRAL", "CONTRA"), names=classes)
        examples = load_examples(source, ScoredRows(Texts(), targets), mount / "cache")
        assert [targets.of(row).index(1) for row in examples.train] == [0, 2, 1]
        assert examples.left_out == {"train": 1}
        command("data", "check", name, "--task", "clf", "--mount", mount)
        told = " ".join(capsys.readouterr().out.split())
        assert "train: 1 rows without a label (-1) left out" in told
    numbers = [{"input": "red", "label": -1}, {"input": "blue", "label": 1}]
    (mount / "data/signs.json").write_text(json.dumps(numbers))
    signs = Targets("multiclass", ("-1", "0", "1"))
    kept = load_examples(find_source("signs", mount), ScoredRows(Texts(), signs), mount / "cache")
    assert [signs.of(row) for row in kept.train] == [[1, 0, 0], [0, 0, 1]]
