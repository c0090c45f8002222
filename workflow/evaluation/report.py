"""`report.json`, the last file of a run and the one that result tables read, and the table on the terminal.

Knows nothing of how the figures came about.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from rich.table import Table

from workflow.errors import ResultsError
from workflow.evaluation.metrics import Metric
from workflow.files import write_json

SCHEMA_VERSION = 1


class MetricRecord(BaseModel):
    """A metric's value, its 95 % interval where there is one, and the rows behind it.

    A metric that the rows do not define has the value null, and a reason.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int
    reason: str | None = None
    p_value: float | None = None

    @model_serializer(mode="wrap")
    def _without_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        record: dict[str, Any] = serialize(self)
        return {name: value for name, value in record.items() if value is not None or name not in ("reason", "p_value")}


class Measured(BaseModel):
    """Metrics of the model after `step` updates."""

    step: int
    metrics: dict[str, MetricRecord]
    slices: dict[str, dict[str, MetricRecord]] = {}


class Speed(BaseModel):
    """Training speed over the whole run, evaluation and saving apart; tokens are real tokens."""

    tokens_per_s: float
    examples_per_s: float
    train_seconds: float
    mfu: float | None


class Report(BaseModel):
    """What a finished run leaves for tables and people. `schema_version` rises when a field changes its meaning."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    run: str
    task: str
    model: str
    data: str
    data_hash: str
    best_metric: str
    initial: Measured | None
    final: Measured | None
    best: Measured | None
    averages: dict[str, Measured] = {}
    """Of averaged weights (swa, ema), at the last evaluation; each has a model folder of its own."""
    baseline: dict[str, MetricRecord] = {}
    """Metrics of a prediction that ignores the input."""
    notes: list[str] = []
    """What the table should say besides."""
    final_train_loss: float | None
    steps: int
    examples: int
    epochs: float
    speed: Speed
    settings: dict[str, Any]
    backend: dict[str, Any]
    environment: dict[str, Any]


def measured(step: int, metrics: Mapping[str, Metric], slices: Mapping[str, Mapping[str, Metric]]) -> Measured:
    """Metrics as a report holds them."""

    return Measured(
        step=step, metrics=records(metrics), slices={name: records(found) for name, found in slices.items()}
    )


def records(found: Mapping[str, Metric]) -> dict[str, MetricRecord]:
    """Metrics as a report holds them."""
    return {name: MetricRecord(**metric.as_json()) for name, metric in found.items()}


def write_report(path: Path, report: Report) -> None:
    """Writes the report; from then on the run counts as finished."""
    write_json(path, report.model_dump(mode="json"))


def read_report(path: Path) -> Report:
    """Reads a report back. Raises ResultsError when it is not one."""
    try:
        return Report.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ResultsError(f"{path}: not a report that this version reads: {reason}") from None


def result_table(report: Report) -> Table:
    """Metrics before training, at the best step and at the end, then the chosen metric of each slice."""
    named = (("before training", report.initial), ("best", report.best), ("final", report.final))
    columns = [*((name, part) for name, part in named if part), *report.averages.items()]
    title = f"{report.run}: {report.data}, {report.steps} steps; with 95 % intervals"
    table = Table(title=title, caption="; ".join(report.notes) or None)
    table.add_column("metric", no_wrap=True)
    if report.baseline:
        table.add_column("a constant", justify="right")
    for name, part in columns:
        table.add_column(f"{name}, step {part.step}", justify="right")
    last = columns[-1][1] if columns else None
    constant = [report.baseline] if report.baseline else []
    for metric in last.metrics if last else {}:
        found = [*constant, *(part.metrics for _, part in columns)]
        table.add_row(metric, *(_cell(metrics.get(metric)) for metrics in found))
    for value in last.slices if last else {}:
        cells = (_cell(part.slices.get(value, {}).get(report.best_metric)) for _, part in columns)
        table.add_row(f"{report.best_metric} of {value}", *("" for _ in constant), *cells)
    return table


def _cell(record: MetricRecord | None) -> str:
    if record is None:
        return ""
    if record.value is None:
        return "-"
    if record.low is None or record.high is None:
        return _short(record.value)
    # Without a space inside the interval a narrow terminal breaks before it.
    return f"{_short(record.value)} ({_short(record.low)}\u2013{_short(record.high)})"


def _short(value: float) -> str:
    """Three decimals, or one from 10 on (BLEU and chrF); report.json holds the whole number."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
