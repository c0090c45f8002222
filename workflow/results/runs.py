"""Results: what is known of runs from their `report.json`, and of the runs of a study that have none, why.

Knows nothing of tables. No run that a study asked for is dropped: one without a report is a result too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from workflow.errors import ConfigError, ResultsError, did_you_mean
from workflow.evaluation.report import Measured, MetricRecord, Report, read_report
from workflow.files import read_json
from workflow.metric_names import metric_of
from workflow.paths import SETTINGS_NAMES, RunPaths
from workflow.results.identity import identity_of
from workflow.results.labelling import labels_of_report, labels_of_settings, with_settings_labels
from workflow.results.settling import Prefer, settle

STUDY_NAME = "study.json"
ENTRIES_NAME = "entries"
"""The folder that tells exported results."""
LABELS = ("task", "model", "setting", "seed", "train", "eval")
"""What a study labels its points by; it may have others."""
REPEATS = "seed"
"""The label whose values are repetitions."""
Which = Literal["best", "final", "swa", "ema"]
DONE, MISSING, FAILED = "done", "missing", "failed"
_LAST_BYTES = 8192
_MOVED_ASIDE = re.compile(r".*\.old-\d{8}-\d{6}x*")
_OF_RUNS = ("report.json", *SETTINGS_NAMES, "metrics.jsonl")


@dataclass(frozen=True)
class Result:
    """One run, or one part (`slice`) of its eval rows, by what a study or its report says of it.

    `status` is "done" with a report, else the job's word ("failed", "running", ...) or "missing", and `reason` says more.
    """

    name: str
    labels: Mapping[str, str]
    place: Path
    status: str
    report: Report | None = None
    reason: str | None = None
    metrics: tuple[str, ...] = ()
    """What to show of it; by default the metric that chose its best checkpoint."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    entry: str = ""
    study: str | None = None
    slice: str | None = None

    @property
    def identity(self) -> str:
        """Equal for the same run wherever it is read from: of its name, data and settings (and slice)."""
        data = self.report.data_hash if self.report else None
        settings = self.report.settings if self.report else self.settings
        return identity_of(self.name, data, settings, part=self.slice)

    @property
    def shown_metrics(self) -> tuple[str, ...]:
        """The metrics of this result that a table shows."""
        return self.metrics or ((self.report.best_metric,) if self.report else ())

    def measured(self, which: Which) -> Measured | None:
        """The evaluation of the best step, of the last one, or of an average's weights."""
        if self.report is None:
            return None
        if which in ("swa", "ema"):
            return self.report.averages.get(which)
        return self.report.best if which == "best" else self.report.final

    def record(self, metric: str, which: Which) -> MetricRecord | None:
        """A metric of that evaluation, on this result's slice; None where it was not measured."""
        found = self.measured(which)
        if found is None:
            return None
        metrics = found.metrics if self.slice is None else found.slices.get(self.slice, {})
        return metrics.get(metric_of(metric))


def read_results(
    places: Iterable[Path | str], *, models: Path | None = None, prefer: Prefer | None = None
) -> list[Result]:
    """The results of studies, runs, folders of runs and exported results, each once; plain names are of runs under `models`.

    Raises ResultsError where there is nothing to read, and where one run has other numbers in two places (see `settle`).
    """
    return with_settings_labels(settle(read_raw(places, models=models), prefer=prefer))


def read_raw(places: Iterable[Path | str], *, models: Path | None = None) -> list[Result]:
    """The same as they are read, some perhaps twice."""
    return [result for place in places for result in _results_at(str(place), models)]


def is_store(place: str) -> bool:
    """Whether these are exported results: a URL, or a folder of entries."""
    return "://" in place or (Path(place) / ENTRIES_NAME).is_dir()


def picked(results: Sequence[Result], where: Mapping[str, str]) -> list[Result]:
    """The results that have these labels. Raises ConfigError for labels and values that none has."""
    check_labels(results, list(where))
    for label, value in where.items():
        known = dict.fromkeys(result.labels.get(label, "") for result in results)
        if value not in known:
            raise ConfigError(
                f"--where {label}={value}: no such {label}{did_you_mean(value, known)}; there are {', '.join(known)}"
            )
    return [result for result in results if all(result.labels.get(label) == value for label, value in where.items())]


def check_labels(results: Sequence[Result], given: Sequence[str]) -> None:
    """Raises ConfigError for a label that no result has."""
    known = dict.fromkeys([*LABELS, *(label for result in results for label in result.labels)])
    for label in given:
        if label not in known:
            near = did_you_mean(label, known)
            raise ConfigError(f"{label}: no label of these results{near}; there are {', '.join(known)}")


def read_study(folder: Path) -> list[Result]:
    """A result for each point of a study, in its order. Raises ResultsError when study.json is none."""
    study = read_json(folder / STUDY_NAME, broken=ResultsError)
    if study is None:
        raise ResultsError(f"{folder}: no {STUDY_NAME} here; name the folder that --out made")
    try:
        mount = _mount_of(folder, str(study["mount"]))
        # Points that are parts of one run share the first one's job.
        jobs = {point["run"]: folder / "points" / point["name"] for point in reversed(study["points"])}
        return [_of_point(jobs[point["run"]], str(study["name"]), mount, point) for point in study["points"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{folder / STUDY_NAME}: not a study that this version reads: {error!r}") from None


def read_run(folder: Path) -> Result:
    """The result of one run folder; without a report it says how far the run came."""
    report, reason = _report_in(folder)
    if report is None:
        settings = _settings_in(folder)
        labels = labels_of_settings(settings) if settings else {"model": folder.name}
        status = FAILED if reason else MISSING
        return Result(folder.name, labels, folder, status, reason=reason or _how_far(folder), settings=settings)
    return Result(
        report.run,
        labels_of_report(report),
        folder,
        DONE,
        report,
        settings=report.settings,
        entry=report.task,
    )


def _existing(place: Path, models: Path | None) -> Path:
    for path in (place, *([models / place] if models is not None else [])):
        if path.is_dir():
            return path
    if place.exists():
        raise ResultsError(f"{place}: is a file; name a study, a run, a folder of runs, or exported results")
    near = [path.name for path in (place.parent, models) if path and path.is_dir() for path in path.iterdir()]
    raise ResultsError(f"{place}: no such file or folder, and no run of this name{did_you_mean(place.name, near)}")


def _results_at(place: str, models: Path | None) -> list[Result]:
    if is_store(place):
        from workflow.results.store import read_store

        return read_store(place)
    folder = _existing(Path(place), models)
    if (folder / STUDY_NAME).is_file():
        return read_study(folder)
    if _is_run(folder):
        return [read_run(folder)]
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not _is_left_alone(path.name))
    found = [
        result
        for path in inside
        for result in (read_study(path) if (path / STUDY_NAME).is_file() else [read_run(path)] if _is_run(path) else [])
    ]
    if not found:
        raise ResultsError(f"{folder}: no runs here: no study.json, no report.json, and no folder that holds one")
    return found


def _is_left_alone(name: str) -> bool:
    """Hidden and half-written folders, and runs that --overwrite_output_dir moved aside."""
    return name.startswith(".") or _MOVED_ASIDE.fullmatch(name) is not None


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _OF_RUNS)


def _mount_of(folder: Path, mount: str) -> Path:
    """The study's mount; a relative one is of the working directory, or else of the study's own place."""
    return next((path for path in (Path(mount), folder / mount) if path.is_dir()), Path(mount))


def _of_point(job: Path, study: str, mount: Path, point: Mapping[str, Any]) -> Result:
    run = RunPaths(mount / "models" / point["run"]).root
    report, reason = _report_in(run)
    result = Result(
        str(point["run"]),
        {name: str(value) for name, value in point["labels"].items() if value is not None},
        run,
        DONE,
        report,
        metrics=tuple(point.get("metrics") or ()),
        settings=dict(point.get("settings") or {}),
        entry=str(point.get("entry", "")),
        study=study,
        slice=point.get("slice"),
    )
    return result if report is not None else _unfinished(result, job, reason)


def _unfinished(result: Result, point: Path, reason: str | None) -> Result:
    job = read_json(point / "job.json")
    job = job if isinstance(job, dict) else {}
    status = str(job.get("status") or MISSING)
    if status == DONE or reason:  # it ended well, and yet there is no report that can be read
        status = FAILED
    last = reason or job.get("last_line") or _last_line(point / "log.txt")
    if not last and job.get("status") == DONE:
        last = f"its job ended well, but {result.place} has no report.json"
    code = f"exit code {job['exit_code']}" if job.get("exit_code") else ""
    told = ": ".join(part for part in (code, str(last or "")) if part)
    return replace(result, status=status, reason=told or "not started")


def _settings_in(folder: Path) -> dict[str, Any]:
    """The settings that a run began with; none where their file is not there or broken."""
    for name in SETTINGS_NAMES:
        read = read_json(folder / name)
        if isinstance(read, dict) and isinstance(read.get("settings"), dict):
            return dict(read["settings"])
    return {}


def _report_in(folder: Path) -> tuple[Report | None, str | None]:
    """The report, or None with the reason why one that is there cannot be read."""
    path = RunPaths(folder).report
    if not path.is_file():
        return None, None
    try:
        return read_report(path), None
    except ResultsError as error:
        return None, str(error)


def _last_line(path: Path) -> str:
    """The last line of a log that holds anything, of at most 300 characters."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LAST_BYTES))
            lines = file.read().decode("utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    # A progress bar rewrites its line: what was seen last is what counts.
    shown: Sequence[str] = [part.strip() for line in lines for part in line.split("\r")]
    return next((line[:300] for line in reversed(shown) if line), "")


def _how_far(folder: Path) -> str:
    last = _last_line(RunPaths(folder).metrics)
    return f"no report.json; metrics.jsonl ends with {last}" if last else "no report.json: not finished"
