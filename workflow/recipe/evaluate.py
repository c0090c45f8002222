"""`workflow evaluate`: measures prediction files of scores, ensembles of them, and the difference between two.

Knows nothing of models.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from workflow import paths as names
from workflow.console import make_console
from workflow.data.encoders import INPUT
from workflow.data.features import Truncation
from workflow.data.sources import Row
from workflow.errors import ConfigError
from workflow.evaluation.comparison import Comparison, compare
from workflow.evaluation.ensembles import NO_PROBABILITIES, OF_ORDER, mean_ranks, mean_scores, of_order
from workflow.evaluation.evaluator import MAX_SLICES, check_slice_key, slices_of
from workflow.evaluation.metrics import Floats, Metric
from workflow.evaluation.plots import FIGURES, write_plots
from workflow.evaluation.prediction_files import Measured, read_predictions
from workflow.evaluation.score_evaluator import measure
from workflow.evaluation.score_forms import as_measured
from workflow.files import read_json
from workflow.metric_names import SCORE_METRICS
from workflow.recipe.evaluate_tables import comparison_table, metric_table, rich_tables, slice_table, write_tables
from workflow.recipe.scorers import cut_notes

FEWEST_OF_A_SLICE = 2


def evaluate(given: Namespace) -> int:
    """Prints the tables and writes evaluation.json, evaluation.md and, for binary targets, plots into --out."""
    read = read_predictions(given, names.find_mount(given.mount))
    scoring, truth = read.scoring, read.truth
    runs = _runs(read, given.ensemble)
    last = list(runs)[-1]
    ranks = given.ensemble == "ranks" and len(read.files) > 1
    measured = {name: _measure(read, vectors, ranks=ranks and name == last) for name, vectors in runs.items()}
    parts, left_out = _slices(given.slice_by, truth.rows)
    slices = {value: _measure(read, runs[last], rows, ranks=ranks) for value, rows in parts.items()}
    sizes = {value: len(rows) for value, rows in parts.items()}
    compared = _compare(read, runs[last], ranks=ranks)
    tables = [
        metric_table(f"{len(truth.rows)} rows; with 95 % intervals", measured),
        *(
            [slice_table("; ".join([f"{last} by {given.slice_by}", *left_out]), slices, sizes)]
            if given.slice_by
            else []
        ),
        *([comparison_table(last, given.against, compared)] if compared else []),
    ]
    found = {
        "rows": len(truth.rows),
        "predictions": [str(path) for path in read.paths],
        "metrics": {name: _as_json(metrics) for name, metrics in measured.items()},
        "slices": {value: _as_json(metrics) for value, metrics in slices.items()},
        "slice_rows": sizes,
        "slices_left_out": left_out,
        "comparison": [one.as_json() for one in compared],
        "against": given.against,
        "notes": _cut_notes(read.paths),
    }
    write_tables(given.out, found, tables)
    if scoring.problem == "binary":
        wanted = ("roc",) if ranks else tuple(FIGURES)
        write_plots(given.out / names.PLOTS_NAME, runs[last][:, 1], truth.targets[:, 1], title=last, only=wanted)
    if given.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    console = make_console()
    for table in tables:
        for part in rich_tables(table, console.width):
            console.print(part)
    for note in found["notes"]:
        console.print(f"note: {note}", soft_wrap=True)
    console.print(f"written to {given.out}", soft_wrap=True)
    return 0


def _runs(read: Measured, ensemble: str) -> dict[str, Floats]:
    """The predicted vectors by what they are called; of several files, their ensemble last."""
    runs = {_label(file.path): file.vectors for file in read.files}
    if len(runs) < len(read.files):
        runs = {str(file.path): file.vectors for file in read.files}
    if len(read.files) > 1:
        runs[f"mean of {ensemble}"] = _ensemble(ensemble, [file.vectors for file in read.files], read.scoring.problem)
    return runs


def _label(path: Path) -> str:
    return path.parent.name if path.name == names.SCORES_NAME and path.parent.name else path.name


def _ensemble(kind: str, vectors: list[Floats], problem: str) -> Floats:
    if kind == "scores":
        return mean_scores(vectors)
    if problem != "binary":
        raise ConfigError(f"--ensemble ranks is for binary scores, not {problem} ones")
    ranks = mean_ranks([part[:, 1] for part in vectors])
    return np.stack([1 - ranks, ranks], axis=1)


def _measure(read: Measured, vectors: Floats, rows: list[int] | None = None, *, ranks: bool) -> dict[str, Metric]:
    """The metrics of these vectors on all rows, or some; of mean ranks, those of order alone."""
    picked = slice(None) if rows is None else rows
    scoring = read.scoring
    found = measure(scoring.problem, vectors[picked], read.truth.targets[picked], unit=scoring.high - scoring.low)
    return of_order(found) if ranks else found


def _slices(key: str | None, rows: list[Row]) -> tuple[dict[str, list[int]], list[str]]:
    """The rows of each slice that is measured, and which slices are not, in words."""
    check_slice_key(rows, key, what="row")
    every = slices_of(rows, key, most=None)
    large = {value: part for value, part in every.items() if len(part) >= FEWEST_OF_A_SLICE}
    kept = dict(islice(large.items(), MAX_SLICES))
    small, more = len(every) - len(large), len(large) - len(kept)
    left_out = {
        f"left out: {small} slices of fewer than {FEWEST_OF_A_SLICE} rows": small,
        f"left out: {more} slices beyond the {MAX_SLICES} largest": more,
    }
    return kept, [words for words, number in left_out.items() if number]


def _compare(read: Measured, vectors: Floats, *, ranks: bool) -> list[Comparison]:
    if read.against is None:
        return []
    scoring, truth = read.scoring, read.truth
    shaped = [as_measured(scoring.problem, part) for part in (vectors, read.against.vectors, truth.targets)]
    wanted = [metric for metric in SCORE_METRICS[scoring.problem] if metric != "eval_loss"]
    return [
        Comparison(metric, *(None,) * 6, len(truth.rows), NO_PROBABILITIES)
        if ranks and metric not in OF_ORDER
        else compare(scoring.problem, *shaped, metric=metric, unit=scoring.high - scoring.low)
        for metric in wanted
    ]


def _cut_notes(paths: Sequence[Path]) -> list[str]:
    """How much of the rows' inputs the models did not see, as the files beside the predictions tell."""
    notes = []
    for path in paths:
        of_scoring = read_json(path.with_name(f"{path.name}.{names.SCORING_NAME}")) or {}
        alone = (read_json(path.with_name(names.METRICS_NAME)) or {}) if path.name == names.SCORES_NAME else {}
        cut = of_scoring.get("truncated") or alone.get("truncated", {}).get(INPUT)
        notes += [f"{path}: {note}" for note in cut_notes(Truncation(**cut) if cut else Truncation(0, 0))]
    return notes


def _as_json(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    return {name: metric.as_json() for name, metric in metrics.items()}
