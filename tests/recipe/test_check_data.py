"""`workflow data check` of rows to be scored: what training would cut, and data without rows."""

from __future__ import annotations

import json

import pytest

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
