"""`workflow results`: formats, files that grow without doubles, and what is refused."""

from __future__ import annotations

import json

import pytest

from tests.results.made_up import write_glue, write_run
from workflow.cli import workflow
from workflow.errors import ConfigError


def results(*arguments):
    return workflow(["results", *map(str, arguments)])


def test_a_file_grows_and_holds_no_run_twice(tmp_path):
    out = tmp_path / "table.md"
    write_run(tmp_path / "a", "one", {"mcc": 0.5}, model="bert")
    write_run(tmp_path / "b", "two", {"mcc": 0.7}, model="t5")
    results(tmp_path / "a", "--out", out)
    results(tmp_path / "b", "--out", out)
    whole = out.read_text()
    assert "| bert | 50.00 |" in whole
    assert "| t5 | 70.00 |" in whole
    results(tmp_path / "a", tmp_path / "b", "--out", out)
    assert out.read_text() == whole
    write_run(tmp_path / "a", "one", {"mcc": 0.6}, model="bert")  # the same folder, run again: no conflict but news
    results(tmp_path / "a", "--out", out)
    assert "| bert | 60.00 |" in out.read_text()
    assert len(json.loads((tmp_path / "table.md.results.json").read_text())) == 2


def test_a_file_of_something_else_is_not_replaced(tmp_path):
    write_run(tmp_path / "a", "one", {"mcc": 0.5})
    out = tmp_path / "thesis.tex"
    out.write_text("years of work")
    with pytest.raises(ConfigError, match="choose another"):
        results(tmp_path / "a", "--out", out)
    assert out.read_text() == "years of work"


@pytest.mark.parametrize(
    ("suffix", "begins"), [("md", "**"), ("csv", "model,"), ("tex", "% "), ("html", "<!doctype html>"), ("txt", "**")]
)
def test_the_suffix_says_the_format(tmp_path, suffix, begins):
    write_run(tmp_path / "a", "one", {"mcc": 0.5})
    results(tmp_path / "a", "--out", tmp_path / f"table.{suffix}")
    assert (tmp_path / f"table.{suffix}").read_text().startswith(begins)


def test_choices_by_label(tmp_path, capsys):
    study = write_glue(tmp_path, tasks=("CoLA", "MRPC"))
    results(
        study, "--format", "csv", "--rows", "task", "--columns", "model", "--metric", "accuracy", "--where", "task=MRPC"
    )
    head, row = capsys.readouterr().out.splitlines()
    assert head.split(",")[0:2] == ["task", "bert-tiny"]
    assert row.startswith("MRPC,")
    results(study, "--details", "--final")
    out = capsys.readouterr().out
    assert "Details, final evaluation" in out
    assert "spearman" not in out
    with pytest.raises(ConfigError, match='did you mean "MRPC"'):
        results(study, "--where", "task=MRPCC")


def test_a_file_keeps_what_it_shows_alone(tmp_path, capsys):
    study, out = write_glue(tmp_path, tasks=("CoLA", "MRPC")), tmp_path / "table.md"
    results(study, "--where", "task=MRPC", "--out", out)
    kept = json.loads((tmp_path / "table.md.results.json").read_text())
    assert {record["labels"]["task"] for record in kept} == {"MRPC"}
    assert f"written to {out}: {len(kept)} runs" in capsys.readouterr().out
    results(study, "--where", "task=CoLA", "--out", out)
    assert out.read_text().splitlines()[2] == "| model | MRPC | CoLA |"


def test_averages_of_weights(tmp_path, capsys):
    write_run(tmp_path / "a", "one", {"mcc": 0.5}, model="averaged", averages={"swa": {"mcc": 0.75}})
    write_run(tmp_path / "a", "two", {"mcc": 0.25}, model="plain")
    results(tmp_path / "a", "--average", "swa", "--format", "md")
    out = capsys.readouterr().out
    assert "swa evaluation" in out
    assert "| averaged | 75.00 |" in out
    assert "the run has no swa evaluation" in out
    assert "25.00" not in out


def test_names_are_escaped_everywhere(tmp_path, capsys):
    write_run(tmp_path / "a", "one", {"mcc": 0.5}, model="<b>50%_&|[red]é")
    for name, wanted in (
        ("md", r"\<b>50%\_&\|\[red]é"),
        ("latex", r"\textless{}b\textgreater{}50\%\_\&\textbar{}[red]é"),
        ("html", "&lt;b&gt;50%_&amp;|[red]é"),
        ("csv", "<b>50%_&|[red]é"),
    ):
        results(tmp_path / "a", "--format", name)
        assert wanted in capsys.readouterr().out
    results(tmp_path / "a")
    assert "<b>50%_&|[red]é" in capsys.readouterr().out
