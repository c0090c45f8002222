"""`--quoting` reaches the files of every command that reads some."""

from __future__ import annotations

import json

import pytest

from workflow.cli import workflow
from workflow.config.flags import parse
from workflow.config.settings import Seq2SeqSettings
from workflow.errors import DataError

ROWS = 'prompt\tcompletion\n"reverse\tone\ntwo"\tred\n'
"""One row of two lines, or two rows with half a quote each."""


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text(ROWS)
    return path


@pytest.mark.parametrize(("quoting", "count"), [("none", 2), ("quoted", 1)])
def test_data_check(rows, capsys, quoting, count):
    workflow(["data", "check", str(rows), "--task", "seq2seq", "--json", "--quoting", quoting])
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["rows"] == count


def test_data_that_may_be_two_things_is_refused(rows):
    with pytest.raises(DataError, match="pass --quoting none"):
        workflow(["data", "check", str(rows), "--task", "seq2seq"])


@pytest.mark.parametrize(("quoting", "prompts"), [("none", ['"reverse', 'two"']), ("quoted", ["reverse\tone\ntwo"])])
def test_generate(rows, flan_like, tmp_path, capsys, quoting, prompts):
    flags = ("--out", str(tmp_path / "out.json"), "--max_new_tokens", "2", "--quoting", quoting)
    workflow(["generate", str(flan_like), "--data", str(rows), *flags])
    assert [record["prompt"] for record in json.loads((tmp_path / "out.json").read_text())] == prompts


def test_init_model(rows, tmp_path, capsys):
    with pytest.raises(DataError, match="pass --quoting none"):
        workflow(["init-model", "--like", "tiny", "--data_name", str(rows), "--out", str(tmp_path / "model")])


def test_training_has_the_setting():
    argv = ["--data_name", "d", "--model_init_path", "m", "--max_steps", "1", "--quoting", "none"]
    assert parse(Seq2SeqSettings, argv, prog="", example="").settings.data.quoting == "none"
