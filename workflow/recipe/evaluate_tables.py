"""The tables of `workflow evaluate`, for terminals and as Markdown, and the files that it writes.

Knows nothing of how the figures came about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from workflow.evaluation.comparison import Comparison
from workflow.evaluation.metrics import Metric
from workflow.files import whole_file, write_json
from workflow.metric_names import higher_is_better

Cells = list[list[str]]


@dataclass(frozen=True)
class Shown:
    """A table as texts: the head, then the rows."""

    title: str
    head: list[str]
    rows: Cells


def metric_table(title: str, measured: Mapping[str, Mapping[str, Metric]]) -> Shown:
    """A row a metric, a column a name."""
    rows = [
        [
            f"{name} ({'high' if higher_is_better(name) else 'low'})",
            *(_cell(metrics[name]) for metrics in measured.values()),
        ]
        for name in next(iter(measured.values()))
    ]
    return Shown(title, ["metric (best when)", *measured], rows)


def _cell(metric: Metric) -> str:
    if metric.value is None:
        return "-"
    interval = (
        f" ({metric.low:.3f}\u2013{metric.high:.3f})" if metric.low is not None and metric.high is not None else ""
    )
    p_value = f", p = {metric.p_value:.2g}" if metric.p_value is not None else ""
    return f"{metric.value:.3f}{interval}{p_value}"


def comparison_table(first: str, second: str, compared: list[Comparison]) -> Shown:
    """A row a metric: both values, their difference, and the test of it."""
    rows = []
    for one in compared:
        values = ["-" if value is None else f"{value:.3f}" for value in (one.first, one.second, one.difference)]
        interval = f" ({one.low:.3f}\u2013{one.high:.3f})" if one.low is not None and one.high is not None else ""
        rows.append(
            [one.metric, *values[:2], values[2] + interval, "-" if one.p_value is None else f"{one.p_value:.3f}"]
        )
    return Shown(
        f"{first} against {second}: paired randomisation test", ["metric", first, second, "difference", "p"], rows
    )


def rich_table(shown: Shown) -> Table:
    """The table for a terminal."""
    table = Table(title=escape(shown.title))
    for number, name in enumerate(shown.head):
        table.add_column(escape(name), justify="left" if number == 0 else "right")
    for row in shown.rows:
        table.add_row(*map(escape, row))
    return table


def write_tables(folder: Path, found: dict[str, Any], tables: list[Shown]) -> None:
    """evaluation.json and evaluation.md."""
    write_json(folder / "evaluation.json", found)
    with whole_file(folder / "evaluation.md") as file:
        for shown in tables:
            rows = [shown.head, ["---"] * len(shown.head), *shown.rows]
            lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
            file.write(f"**{shown.title}**\n\n" + "\n".join(lines) + "\n\n")
