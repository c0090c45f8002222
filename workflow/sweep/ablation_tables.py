"""An ablation's result: means over seeds with intervals, differences from the baseline with tests, as Markdown, CSV and HTML.

Knows nothing of how runs run. Never a maximum: each figure is a mean over all seeds that are finished.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow.evaluation.comparison import holm
from workflow.evaluation.repeated import (
    MOST_FLIPPED,
    NUM_ROUNDS,
    Repeated,
    RepeatedComparison,
    compare_repeated,
    interval,
)
from workflow.files import whole_file, write_json
from workflow.metric_names import NOT_PERCENT, higher_is_better
from workflow.results.formats import comma_separated, html, markdown
from workflow.results.sheets import Sheet, shown
from workflow.sweep.ablation_file import Ablation
from workflow.sweep.ablation_plot import Bar, plot
from workflow.sweep.ablation_runs import Found, read_runs
from workflow.sweep.study import Study

NONE = "-"


@dataclass(frozen=True)
class Row:
    """A variant: its mean with interval, and how it compares with the baseline; None where nothing is finished."""

    name: str
    is_baseline: bool
    given: Repeated | None
    low: float | None = None
    high: float | None = None
    compared: RepeatedComparison | None = None
    p_holm: float | None = None

    @property
    def std(self) -> float | None:
        """The sample standard deviation over seeds."""
        return statistics.stdev(self.given.values.values()) if self.given and len(self.given.values) > 1 else None


def rows_of(ablation: Ablation, found: Found) -> list[Row]:
    """A row a variant, in the file's order; p-values are corrected over all comparisons with the baseline."""
    baseline = found.variants[ablation.baseline]
    rows = []
    for name, given in found.variants.items():
        is_baseline = name == ablation.baseline
        low, high = interval(given) if given else (None, None)
        compared = compare_repeated(given, baseline, found.measure) if given and baseline and not is_baseline else None
        rows.append(Row(name, is_baseline, given, low, high, compared))
    tested = [row for row in rows if row.compared]
    p_values = holm([row.compared.p_value if row.compared else None for row in tested])
    corrected = {row.name: p_value for row, p_value in zip(tested, p_values, strict=True)}
    return [dataclasses.replace(row, p_holm=corrected.get(row.name)) for row in rows]


def write_ablation(study: Study, ablation: Ablation) -> list[Path]:
    """Writes ablation.md, .csv, .html, .svg and .json from what is finished. Raises ResultsError."""
    found = read_runs(study, ablation)
    rows = rows_of(ablation, found)
    sheets = [main_sheet(ablation, found, rows), runs_sheet(ablation, found)]
    figure = plot(
        [
            Bar(row.name, [*row.given.values.values()], row.given.mean, row.low, row.high)
            for row in rows
            if row.given is not None
        ],
        title=f"{ablation.metric} ({_way(ablation)}) over seeds",
        reference=next((row.given.mean for row in rows if row.is_baseline and row.given), None),
        times=1.0 if ablation.metric in NOT_PERCENT else 100.0,
    )
    page = html(sheets).replace("<main>\n", f"<main>\n<h1>{_title(ablation)}</h1>\n{figure}\n", 1)
    texts = {
        "ablation.md": markdown(sheets),
        "ablation.csv": comma_separated([number_sheet(ablation, rows)]),
        "ablation.html": page,
        "ablation.svg": figure,
    }
    for name, text in texts.items():
        with whole_file(study.folder / name) as file:
            file.write(text)
    write_json(study.folder / "ablation.json", as_json(ablation, rows))
    return [study.folder / name for name in texts]


def _title(ablation: Ablation) -> str:
    return f"Ablation: {len(ablation.variants)} variants, {len(ablation.seeds)} seeds"


def _way(ablation: Ablation) -> str:
    return "best when high" if higher_is_better(ablation.metric) else "best when low"


def main_sheet(ablation: Ablation, found: Found, rows: list[Row]) -> Sheet:
    """For people: percentages where the metric is a share."""
    head = ("variant", "mean", "std", "n", "95 % interval", "difference", "95 % of it", "p", "p (Holm)")
    return Sheet(
        f"{ablation.metric}, {_way(ablation)}, {ablation.which} evaluation",
        head,
        tuple(_texts(ablation, row) for row in rows),
        1,
        tuple(_notes(ablation, found, rows)),
    )


def _texts(ablation: Ablation, row: Row) -> tuple[str, ...]:
    if row.given is None:
        return (row.name, NONE, NONE, "0", *[NONE] * 5)

    def told(value: float | None) -> str:
        return NONE if value is None else shown(ablation.metric, value)

    def between(low: float | None, high: float | None) -> str:
        return NONE if low is None or high is None else f"{told(low)} to {told(high)}"

    start = (row.name, told(row.given.mean), told(row.std), str(len(row.given.values)), between(row.low, row.high))
    one = row.compared
    if one is None:
        return (*start, "baseline" if row.is_baseline else NONE, *[NONE] * 3)
    sign = "+" if one.difference > 0 else ""
    return (*start, sign + told(one.difference), between(one.low, one.high), _p(one.p_value), _p(row.p_holm))


def _p(value: float | None) -> str:
    return NONE if value is None else f"{value:.2g}"


def _notes(ablation: Ablation, found: Found, rows: list[Row]) -> list[str]:
    levels = "seeds and eval rows" if found.measure is not None else "seeds"
    notes = [
        f"Means over seeds; intervals are of a bootstrap over {levels} (95 %), the same draws for all variants",
        f"difference: from {ablation.baseline}, over the seeds that both have finished",
    ]
    over_seeds = "paired t-test over seeds"
    if found.measure is not None:
        notes.append(
            f"p: the larger of a {over_seeds} and an approximate randomisation of eval rows ({NUM_ROUNDS:,} rounds): a "
            "difference counts where neither other seeds nor other rows explain it (Berger 1982; Noreen 1989)"
        )
    else:
        notes.append(f"p: {over_seeds}; eval rows cannot be resampled, since {found.why}")
    if ablation.averages:
        told = ", ".join(f"{name} ({of})" for name, of in ablation.averages.items())
        notes.append(f"of these variants the averaged weights are measured, which they are about: {told}")
    notes.append("p (Holm): corrected for the number of comparisons (Holm 1979)")
    seeds = len(ablation.seeds)
    if 1 < seeds <= MOST_FLIPPED and 2.0 ** (1 - seeds) > 0.05:
        notes.append(
            f"the t-test takes differences between seeds to be normal; without that, {seeds} seeds could not tell a difference: "
            f"the exact test (p_flips in ablation.csv) is never below {2.0 ** (1 - seeds):.2g}"
        )
    for row in rows:
        missing = seeds - (len(row.given.values) if row.given else 0)
        if missing:
            notes.append(f"{row.name}: {missing} of {seeds} runs are not finished, or have no {ablation.metric}")
    return notes


def runs_sheet(ablation: Ablation, found: Found) -> Sheet:
    """Every run's own value."""
    rows = []
    for name, given in found.variants.items():
        values = given.values if given else {}
        rows.append(
            (name, *(shown(ablation.metric, values[seed]) if seed in values else NONE for seed in ablation.seeds))
        )
    return Sheet("Runs by seed", ("variant", *map(str, ablation.seeds)), tuple(rows), 1)


def as_json(ablation: Ablation, rows: list[Row]) -> dict[str, Any]:
    """Every figure as it is."""
    return {
        "metric": ablation.metric,
        "best_when": "high" if higher_is_better(ablation.metric) else "low",
        "evaluation": ablation.which,
        "baseline": ablation.baseline,
        "variants": {
            row.name: {**_numbers(row), "weights": ablation.averages.get(row.name, "own"), "values": _by_seed(row)}
            for row in rows
        },
    }


def _by_seed(row: Row) -> dict[str, float]:
    return {str(seed): value for seed, value in row.given.values.items()} if row.given else {}


def _numbers(row: Row) -> dict[str, Any]:
    one = row.compared
    return {
        "mean": row.given.mean if row.given else None,
        "std": row.std,
        "n": len(row.given.values) if row.given else 0,
        "low": row.low,
        "high": row.high,
        "difference": one.difference if one else None,
        "difference_low": one.low if one else None,
        "difference_high": one.high if one else None,
        "p_seeds": one.p_seeds if one else None,
        "p_flips": one.p_flips if one else None,
        "p_rows": one.p_rows if one else None,
        "p": one.p_value if one else None,
        "p_holm": row.p_holm,
    }


def number_sheet(ablation: Ablation, rows: list[Row]) -> Sheet:
    """For programs: every figure in full, nothing where there is none."""
    names = list(_numbers(rows[0]))
    cells = [
        (row.name, ablation.metric, *("" if value is None else repr(value) for value in _numbers(row).values()))
        for row in rows
    ]
    return Sheet("", ("variant", "metric", *names), tuple(cells), 2)
