"""Texts are printed as they are, in lines, tables and progress."""

from rich.table import Table

from tests.pages.made_runs import text_run
from workflow.cli import workflow
from workflow.console import make_console, styled
from workflow.evaluation.report import read_report, result_table

NASTY = "run[lr=3e-4] [/d] [bold]x[/] :smile: \\[a]"


def test_brackets_are_texts(capsys):
    console = make_console()
    console.print(f"run       {NASTY}")
    console.print(styled("  note", "yellow", f"  {NASTY}"))
    table = Table("a", NASTY, title=NASTY, caption=NASTY)
    table.add_row("b", NASTY)
    console.print(table)
    told = capsys.readouterr().out
    assert told.count(NASTY) == 6
    assert f"  note  {NASTY}\n" in told


def test_tables_of_runs_whose_names_hold_brackets(tmp_path, capsys):
    run = text_run(tmp_path / "models" / "sweep[lr=3e-4][x]")
    make_console().print(result_table(read_report(run / "report.json")))
    assert "sweep[lr=3e-4][x]" in capsys.readouterr().out
    workflow(["results", str(tmp_path / "models")])
    assert workflow(["report", str(run), "--out", str(tmp_path / "page[/d].html")]) == 0
    assert "page[/d].html" in capsys.readouterr().out
