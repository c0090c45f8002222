"""The tables of `workflow evaluate`, for terminals and as Markdown, and the files that it writes.

Knows nothing of how the figures came about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import JustifyMethod
from rich.table import Table

from workflow.evaluation.comparison import Comparison
from workflow.evaluation.metrics import Metric
from workflow.files import whole_file, write_json
from workflow.metric_names import higher_is_better

Cells = list[list[str]]
FRAME = 3
"""Characters that a column takes beside its cells."""
HEAD_WIDTH = 24
"""Beyond which a head is folded where columns are many."""


@dataclass(frozen=True)
class Shown:
    """A table as texts: the head, then the rows."""

    title: str
    head: list[str]
    rows: Cells


def metric_table(title: str, measured: Mapping[str, Mapping[str, Metric]]) -> Shown:
    """A row a metric, a column a name."""
    rows = [
        [_named(name), *(_cell(metrics[name]) for metrics in measured.values())]
        for name in next(iter(measured.values()))
    ]
    return Shown(title, ["metric (best when)", *measured], rows)


def slice_table(title: str, measured: Mapping[str, Mapping[str, Metric]], sizes: Mapping[str, int]) -> Shown:
    """A row a slice, with the number of its rows; a column a metric, those of slices being too many for columns."""
    metrics = [*next(iter(measured.values()), {})]
    rows = [
        [value, f"{sizes[value]:,}", *(_cell(found[name]) for name in metrics)] for value, found in measured.items()
    ]
    return Shown(title, ["slice", "rows", *map(_named, metrics)], rows)


def _named(metric: str) -> str:
    return f"{metric} ({'high' if higher_is_better(metric) else 'low'})"


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


def rich_tables(shown: Shown, width: int) -> list[Table]:
    """The table for a terminal of this width: several below each other where its columns do not fit beside each other."""
    columns = list(zip(shown.head, *shown.rows, strict=True))
    if 1 + sum(_width(column) + FRAME for column in columns) <= width:
        return [_rich_table(shown, range(len(columns)), [None] * len(columns), title=shown.title)]
    widths = [_width(column, head=HEAD_WIDTH) for column in columns]
    widths[0] = min(widths[0], width // 3)
    groups: list[list[int]] = []
    room = 0
    for number in range(1, len(columns)):
        if not groups or widths[number] + FRAME > room:
            groups.append([0])
            room = width - 1 - widths[0] - FRAME
        groups[-1].append(number)
        room -= widths[number] + FRAME
    return [
        _rich_table(shown, group, widths, title="" if number else shown.title) for number, group in enumerate(groups)
    ]


def _width(column: Sequence[str], *, head: int | None = None) -> int:
    """That of the widest cell, or of the head, which is folded beyond `head`."""
    return max(len(column[0][:head]), *map(cell_len, column[1:]), 1)


def _rich_table(shown: Shown, numbers: Iterable[int], widths: Sequence[int | None], *, title: str) -> Table:
    numbers = list(numbers)
    table = Table(title=title or None)
    for number in numbers:
        justify: JustifyMethod = "right" if number else "left"
        table.add_column(shown.head[number], justify=justify, overflow="fold", width=widths[number])
    for row in shown.rows:
        table.add_row(*(row[number] for number in numbers))
    return table


def write_tables(folder: Path, found: dict[str, Any], tables: list[Shown]) -> None:
    """evaluation.json and evaluation.md."""
    write_json(folder / "evaluation.json", found)
    with whole_file(folder / "evaluation.md") as file:
        for shown in tables:
            rows = [shown.head, ["---"] * len(shown.head), *shown.rows]
            lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
            file.write(f"**{shown.title}**\n\n" + "\n".join(lines) + "\n\n")
