"""`workflow evaluate`: measures prediction files of scores, ensembles of them, and the difference between two.

Knows nothing of models.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from workflow import paths as names
from workflow.console import make_console
from workflow.data.examples import TextRows, load_examples
from workflow.data.scoring import Scoring
from workflow.data.sources import Row, find_source
from workflow.data.targets import KEY, Targets
from workflow.errors import ConfigError, ResultsError
from workflow.evaluation.comparison import Comparison, compare
from workflow.evaluation.ensembles import mean_ranks, mean_scores
from workflow.evaluation.evaluator import check_slice_key, slices_of
from workflow.evaluation.metrics import Floats, Metric
from workflow.evaluation.plots import write_plots
from workflow.evaluation.score_evaluator import as_measured, measure
from workflow.evaluation.score_files import ScoreFile, read_scores
from workflow.files import read_json, whole_file, write_json
from workflow.metric_names import SCORE_METRICS, higher_is_better, usual_problem

FEWEST_OF_A_SLICE = 2
ANY_ROW = TextRows(texts=())


@dataclass(frozen=True)
class _Truth:
    """The rows and their targets [rows, width]."""

    rows: list[Row]
    targets: Floats


def evaluate(given: Namespace) -> int:
    """Prints the tables and writes evaluation.json, evaluation.md and, for binary targets, plots into --out."""
    mount = names.find_mount(given.mount)
    paths = [_prediction_file(name, mount) for name in given.predictions]
    scoring = _scoring(given, paths[0])
    reader = scoring.targets(from_text=True)
    files = [read_scores(path, reader) for path in paths]
    truth = _truth(given, files[0], reader, mount)
    for file in files:
        _check_same_rows(file, truth)
    runs = {_label(path): file.vectors for path, file in zip(paths, files, strict=True)}
    if len(runs) < len(files):
        runs = {str(path): file.vectors for path, file in zip(paths, files, strict=True)}
    if len(files) > 1:
        runs[f"mean of {given.ensemble}"] = _ensemble(given.ensemble, [file.vectors for file in files], scoring.problem)
    last = list(runs)[-1]
    unit = scoring.high - scoring.low
    measured = {name: measure(scoring.problem, vectors, truth.targets, unit=unit) for name, vectors in runs.items()}
    slices = {
        value: measure(scoring.problem, runs[last][rows], truth.targets[rows], unit=unit)
        for value, rows in _slices(given.slice_by, truth.rows).items()
    }
    compared = _compare(given, scoring, reader, truth, runs[last], mount)
    tables = [
        _metric_table(f"{len(truth.rows)} rows; with 95 % intervals", measured),
        *([_metric_table(f"{last} by {given.slice_by}", slices)] if slices else []),
        *([_comparison_table(last, given.against, compared)] if compared else []),
    ]
    found = {
        "rows": len(truth.rows),
        "predictions": [str(path) for path in paths],
        "metrics": {name: _as_json(metrics) for name, metrics in measured.items()},
        "slices": {value: _as_json(metrics) for value, metrics in slices.items()},
        "comparison": [one.as_json() for one in compared],
        "against": given.against,
    }
    _write(given.out, found, tables)
    if scoring.problem == "binary":
        write_plots(given.out / names.PLOTS_NAME, runs[last][:, 1], truth.targets[:, 1], title=last)
    if given.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    console = make_console()
    for table in tables:
        console.print(_rich(table))
    console.print(f"written to {given.out}", soft_wrap=True)
    return 0


# ---- what to measure


def _prediction_file(name: str, mount: Path) -> Path:
    """A file, or a run's: its folder, or its name under the mount."""
    for path in (Path(name), mount / "models" / name):
        if path.is_file():
            return path
        if (path / names.SCORES_NAME).is_file():
            return path / names.SCORES_NAME
        if path.is_dir():
            raise ResultsError(f"{path}: no {names.SCORES_NAME} here; the run has not finished, or is no run of clf.py")
    raise ResultsError(f"{name}: no such prediction file, and no run of this name under {mount / 'models'}")


def _scoring(given: Namespace, first: Path) -> Scoring:
    """What the scores are: as given, else as the run of the first file says, else binary."""
    try:
        settings = read_json(first.parent / names.SETTINGS_NAMES[1])["settings"]
    except (KeyError, TypeError):  # there is no such file, or it is something else
        settings = {}
    labels = tuple(given.labels or settings.get("labels") or Scoring.labels)
    low, high = given.target_range or settings.get("target_range") or (0.0, 1.0)
    problem = given.problem or settings.get("problem") or "auto"
    if problem == "auto":
        problem = usual_problem(labels)
    if low >= high:
        raise ConfigError("--target_range: LOW must be below HIGH, e.g. --target_range 0 5")
    return Scoring(problem, labels, float(low), float(high))


def _truth(given: Namespace, first: ScoreFile, reader: Targets, mount: Path) -> _Truth:
    """The targets, from the records' own rows or from a data set's eval rows."""
    rows, label = first.rows, str(first.path)
    if given.data is not None:
        source = find_source(given.data, mount)
        label = source.label
        rows = list(load_examples(source, ANY_ROW, names.cache_dir()).eval)
    if rows is None:
        raise ResultsError(
            f"{first.path}: holds scores alone; pass --data NAME, the data set whose eval rows were scored"
        )
    targets = []
    for number, row in enumerate(rows):
        if problem := reader.problem_of(row):
            raise ResultsError(f"{label}: row {number}: {problem}")
        targets.append(reader.vector(row[KEY]))
    return _Truth(rows, np.array(targets, dtype=np.float64))


def _check_same_rows(file: ScoreFile, truth: _Truth) -> None:
    if len(file.vectors) != len(truth.rows):
        raise ResultsError(f"{file.path}: {len(file.vectors)} records for {len(truth.rows)} rows")
    for number, (mine, other) in enumerate(zip(file.rows or (), truth.rows, strict=False)):
        if mine != other:
            raise ResultsError(f"{file.path}: record {number} is of another row than in the other file or data set")


def _label(path: Path) -> str:
    return path.parent.name if path.name == names.SCORES_NAME and path.parent.name else path.name


def _ensemble(kind: str, vectors: list[Floats], problem: str) -> Floats:
    if kind == "scores":
        return mean_scores(vectors)
    if problem != "binary":
        raise ConfigError(f"--ensemble ranks is for binary scores, not {problem} ones")
    ranks = mean_ranks([part[:, 1] for part in vectors])
    return np.stack([1 - ranks, ranks], axis=1)


def _slices(key: str | None, rows: list[Row]) -> dict[str, list[int]]:
    check_slice_key(rows, key, what="row")
    return {value: part for value, part in slices_of(rows, key).items() if len(part) >= FEWEST_OF_A_SLICE}


def _compare(
    given: Namespace, scoring: Scoring, reader: Targets, truth: _Truth, vectors: Floats, mount: Path
) -> list[Comparison]:
    if given.against is None:
        return []
    other = read_scores(_prediction_file(given.against, mount), reader)
    _check_same_rows(other, truth)
    shaped = [as_measured(scoring.problem, part) for part in (vectors, other.vectors, truth.targets)]
    return [
        compare(scoring.problem, *shaped, metric=metric, unit=scoring.high - scoring.low)
        for metric in SCORE_METRICS[scoring.problem]
        if metric != "eval_loss"
    ]


# ---- how to show it

Cells = list[list[str]]


@dataclass(frozen=True)
class _Shown:
    """A table as texts: the head, then the rows."""

    title: str
    head: list[str]
    rows: Cells


def _metric_table(title: str, measured: Mapping[str, Mapping[str, Metric]]) -> _Shown:
    rows = [
        [
            f"{name} ({'high' if higher_is_better(name) else 'low'})",
            *(_cell(metrics[name]) for metrics in measured.values()),
        ]
        for name in next(iter(measured.values()))
    ]
    return _Shown(title, ["metric (best when)", *measured], rows)


def _cell(metric: Metric) -> str:
    if metric.value is None:
        return "-"
    interval = (
        f" ({metric.low:.3f}\u2013{metric.high:.3f})" if metric.low is not None and metric.high is not None else ""
    )
    p_value = f", p = {metric.p_value:.2g}" if metric.p_value is not None else ""
    return f"{metric.value:.3f}{interval}{p_value}"


def _comparison_table(first: str, second: str, compared: list[Comparison]) -> _Shown:
    rows = []
    for one in compared:
        values = ["-" if value is None else f"{value:.3f}" for value in (one.first, one.second, one.difference)]
        interval = f" ({one.low:.3f}\u2013{one.high:.3f})" if one.low is not None and one.high is not None else ""
        rows.append(
            [one.metric, *values[:2], values[2] + interval, "-" if one.p_value is None else f"{one.p_value:.3f}"]
        )
    return _Shown(
        f"{first} against {second}: paired randomisation test", ["metric", first, second, "difference", "p"], rows
    )


def _rich(shown: _Shown) -> Table:
    table = Table(title=escape(shown.title))
    for number, name in enumerate(shown.head):
        table.add_column(escape(name), justify="left" if number == 0 else "right")
    for row in shown.rows:
        table.add_row(*map(escape, row))
    return table


def _as_json(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    return {name: metric.as_json() for name, metric in metrics.items()}


def _write(folder: Path, found: dict[str, Any], tables: list[_Shown]) -> None:
    write_json(folder / "evaluation.json", found)
    with whole_file(folder / "evaluation.md") as file:
        for shown in tables:
            rows = [shown.head, ["---"] * len(shown.head), *shown.rows]
            lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
            file.write(f"**{shown.title}**\n\n" + "\n".join(lines) + "\n\n")
