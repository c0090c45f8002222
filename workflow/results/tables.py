"""Results by rows and columns of their labels, each cell summed up over the runs (seeds) in it.

Knows nothing of files or formats. A run without the value counts in its cell as not done; it is never dropped.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workflow.errors import ConfigError, did_you_mean
from workflow.metric_names import metric_of
from workflow.results.runs import DONE, LABELS, REPEATS, Result, Which, check_labels

NUM_DRAWS = 10_000
Key = tuple[str, ...]
"""A row's or a column's values of its labels."""


@dataclass(frozen=True)
class Summary:
    """A metric over the runs of a cell. `std` is the sample's (n - 1), None for one run.

    low, high: 95 % of a bootstrap over runs, which says how the mean varies with the seed; of one run its report's own
    interval, which says how the value varies with the eval rows.
    """

    metric: str
    values: tuple[float, ...]
    low: float | None
    high: float | None

    @property
    def n(self) -> int:
        """Runs that have the value."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """The mean over these runs."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """The sample standard deviation."""
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def max(self) -> float | None:
        """The highest value of a run."""
        return max(self.values, default=None)


@dataclass(frozen=True)
class Cell:
    """The results that share a row and a column, and the summaries of their metrics."""

    results: tuple[Result, ...]
    summaries: tuple[Summary, ...]

    @property
    def statuses(self) -> tuple[str, ...]:
        """Why the runs without a report have none, each word once."""
        return tuple(dict.fromkeys(result.status for result in self.results if result.status != DONE))


@dataclass(frozen=True)
class Left:
    """A result that is not, or not with all its metrics, in the means."""

    result: Result
    status: str
    reason: str


@dataclass(frozen=True)
class Table:
    """Cells by row and column. `mixed`: labels whose values are pooled in a cell although they are no repetitions."""

    row_labels: Key
    column_labels: Key
    rows: tuple[Key, ...]
    columns: tuple[Key, ...]
    cells: Mapping[tuple[Key, Key], Cell]
    which: Which
    mixed: tuple[str, ...]
    left: tuple[Left, ...]


def make_table(
    results: Sequence[Result],
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    metrics: Sequence[str] = (),
    which: Which = "best",
) -> Table:
    """Sums results up. Without `rows` and `columns`, what varies is shown; without `metrics`, each result's own.

    Raises ConfigError for labels and metrics that no result has.
    """
    _check_axes(results, (*rows, *columns))
    row_labels, column_labels = _axes(results, tuple(rows), tuple(columns))
    grouped: dict[tuple[Key, Key], list[Result]] = {}
    for result in results:
        grouped.setdefault((_key(result, row_labels), _key(result, column_labels)), []).append(result)
    wanted = {
        column: tuple(map(metric_of, metrics))
        or _metrics_of(part for key, some in grouped.items() if key[1] == column for part in some)
        for column in dict.fromkeys(column for _, column in grouped)
    }
    _check_metrics(results, metrics, which)
    cells = {key: _cell(some, wanted[key[1]], which) for key, some in grouped.items()}
    return Table(
        row_labels,
        column_labels,
        tuple(dict.fromkeys(row for row, _ in grouped)),
        tuple(wanted),
        cells,
        which,
        _mixed(grouped.values(), (*row_labels, *column_labels)),
        tuple(left for key, some in grouped.items() for left in _left(some, wanted[key[1]], which)),
    )


def _axes(results: Sequence[Result], rows: Key, columns: Key) -> tuple[Key, Key]:
    """The labels of rows and of columns: as given; else columns are eval languages or tasks, rows what else varies."""
    varied = [label for label in _labels_of(results) if label != REPEATS and _varies(results, label)]
    if not columns:
        free = [label for label in ("eval", "task") if label not in rows]
        # A transfer matrix has eval languages as columns; where tasks vary as well, both.
        columns = tuple(label for label in ("task", "eval") if label in free and label in varied) or tuple(free[-1:])
    if not rows:
        rows = tuple(label for label in varied if label not in columns) or ("model",)
    return rows, columns


def _labels_of(results: Iterable[Result]) -> list[str]:
    found = dict.fromkeys(label for result in results for label in result.labels)
    return [*(label for label in LABELS if label in found), *(label for label in found if label not in LABELS)]


def _varies(results: Iterable[Result], label: str) -> bool:
    return len({result.labels.get(label, "") for result in results}) > 1


def _key(result: Result, labels: Key) -> Key:
    return tuple(result.labels.get(label, "") for label in labels)


def _metrics_of(results: Iterable[Result]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(metric_of(metric) for result in results for metric in result.shown_metrics))


def _cell(results: Sequence[Result], metrics: Sequence[str], which: Which) -> Cell:
    return Cell(tuple(results), tuple(_summary(results, metric, which) for metric in metrics))


def _summary(results: Sequence[Result], metric: str, which: Which) -> Summary:
    records = [record for result in results if (record := result.record(metric, which)) and record.value is not None]
    values = tuple(record.value for record in records if record.value is not None)
    if len(values) == 1:
        return Summary(metric, values, records[0].low, records[0].high)
    return Summary(metric, values, *bootstrap_of_mean(values))


def bootstrap_of_mean(values: Sequence[float], *, seed: int = 0) -> tuple[float | None, float | None]:
    """The middle 95 % of the mean over runs drawn with replacement; (None, None) for fewer than two runs."""
    if len(values) < 2:
        return None, None
    drawn = np.random.default_rng(seed).choice(np.asarray(values), (NUM_DRAWS, len(values)))
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _left(results: Sequence[Result], metrics: Sequence[str], which: Which) -> list[Left]:
    found = []
    for result in results:
        if result.report is None:
            found.append(Left(result, result.status, result.reason or ""))
            continue
        for metric in metrics:
            record = result.record(metric, which)
            if record is None or record.value is None:
                found.append(Left(result, f"no {metric}", _why_none(result, metric, which)))
    return found


def _why_none(result: Result, metric: str, which: Which) -> str:
    if result.measured(which) is None:
        return f"the run has no {which} evaluation"
    record = result.record(metric, which)
    if record is not None:
        return record.reason or "undefined"
    return f"not measured on {result.slice}" if result.slice else "not measured in this run"


def _mixed(groups: Iterable[Sequence[Result]], shown: Key) -> tuple[str, ...]:
    every = list(groups)
    labels = _labels_of(result for group in every for result in group)
    return tuple(
        label for label in labels if label not in (REPEATS, *shown) and any(_varies(group, label) for group in every)
    )


def _check_axes(results: Sequence[Result], given: Sequence[str]) -> None:
    check_labels(results, given)
    if doubled := next((label for label in given if list(given).count(label) > 1), None):
        raise ConfigError(f"{doubled}: named twice in --rows and --columns; a label is of rows or of columns")


def _check_metrics(results: Sequence[Result], given: Sequence[str], which: Which) -> None:
    known = {
        name
        for result in results
        if (found := result.measured(which))
        for name in (*found.metrics, *(name for part in found.slices.values() for name in part))
    }
    for name in given:
        if known and metric_of(name) not in known:
            raise ConfigError(
                f"--metric {name}: none of these runs measured it{did_you_mean(name, known)}; there are {', '.join(sorted(known))}"
            )
