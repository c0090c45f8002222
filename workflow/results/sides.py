"""The sides of a comparison: what was named on the command line, as one prediction file a seed.

Knows nothing of what the files hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workflow.errors import ConfigError, ResultsError
from workflow.paths import SCORES_NAME, RunPaths, predictions_name, prefixed
from workflow.results.runs import REPEATS, Result, Which, check_labels, picked, read_results


@dataclass(frozen=True)
class Side:
    """A name, its prediction files by seed, the part of the rows it is of, and what was left out."""

    name: str
    files: Mapping[str, Path]
    part: str | None = None
    part_key: str | None = None
    notes: tuple[str, ...] = field(default=())


def find_sides(
    names: Sequence[str], *, by: str | None, where: Mapping[str, str], which: Which, mount: Path
) -> list[Side]:
    """A side for each name, or for each value of the label `by` in what is named. Raises ConfigError, ResultsError."""
    if by is not None:
        results = picked(read_results(names, models=mount / "models"), where)
        check_labels(results, [by])
        groups = {
            value: [result for result in results if result.labels.get(by, "") == value]
            for value in dict.fromkeys(result.labels.get(by, "") for result in results)
        }
        sides = [_side(value or f"no {by}", some, which) for value, some in groups.items()]
    else:
        sides = [_named(name, where, which, mount) for name in names]
    if len(sides) < 2:
        raise ConfigError(
            f"workflow compare: --by {by}: only {', '.join(side.name for side in sides)} is there to compare"
        )
    doubled = [side.name for side in sides if [other.name for other in sides].count(side.name) > 1]
    if doubled:
        raise ConfigError(f"workflow compare: {doubled[0]} is named twice")
    return sides


def _named(name: str, where: Mapping[str, str], which: Which, mount: Path) -> Side:
    path = Path(name)
    for file in (path, mount / "models" / name):
        if file.is_file():
            return Side(name, {"": file})
    folder = next((one for one in (path, mount / "models" / name) if one.is_dir()), None)
    if folder is not None and not RunPaths(folder).report.is_file() and (folder / SCORES_NAME).is_file():
        return Side(name, {"": folder / SCORES_NAME})  # scores of a run that left no report
    return _side(name, picked(read_results([name], models=mount / "models"), where), which)


def _side(name: str, results: Sequence[Result], which: Which) -> Side:
    """The finished runs of a side, which differ in nothing but their seed."""
    for label in dict.fromkeys(label for result in results for label in result.labels):
        values = dict.fromkeys(result.labels.get(label, "") for result in results)
        if label != REPEATS and len(values) > 1:
            raise ConfigError(
                f"{name}: its runs differ in {label} ({', '.join(values)}); pick one by --where {label}=VALUE, "
                f"or compare them by --by {label}"
            )
    done = [result for result in results if result.report is not None]
    if not done:
        raise ResultsError(f"{name}: no run of it is finished ({results[0].status}: {results[0].reason})")
    left = len(results) - len(done)
    notes = (f"{name}: {left} of {len(results)} runs are not finished",) if left else ()
    files = {result.labels.get(REPEATS, ""): prediction_file_of(result, which) for result in done}
    assert done[0].report is not None
    key = done[0].report.settings.get("slice_by")
    return Side(name, files, done[0].slice, key, notes)


def prediction_file_of(result: Result, which: Which) -> Path:
    """The prediction file of a run's best or final step, or of its average. Raises ResultsError where it is gone."""
    assert result.report is not None
    found = result.measured(which)
    if found is None:
        raise ResultsError(f"{result.place}: the run has no {which} evaluation")
    paths, of = RunPaths(result.place), which if which in ("swa", "ema") else ""
    if result.report.task == "clf":
        final = result.report.final is not None and result.report.final.step == found.step
        names = [paths.step_scores(found.step, of), *([paths.scores] if final and not of else [])]
    else:
        settings = result.report.settings
        one = predictions_name(temperature=settings["temperature"], n_samples=settings["n_samples"], step=found.step)
        names = [result.place / prefixed(one, of)]
    for path in names:
        if path.is_file():
            return path
    raise ResultsError(
        f"{result.place}: no {names[0].name}, the predictions of its {which} step; name a prediction file"
    )
