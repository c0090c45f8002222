"""Starts a study: its points are counted, written and shown; run only when asked; its tables are made at each end.

Knows nothing of what points are for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from workflow.console import make_console
from workflow.errors import ResultsError
from workflow.evaluation.report import read_report
from workflow.jobs.job import Executor, Status
from workflow.jobs.local import LocalExecutor
from workflow.results.runs import Which
from workflow.results.study_files import write_study_tables
from workflow.sweep.driver import NOT_AGAIN, Needs, Outcome, Summary, drive, jobs_of
from workflow.sweep.points import Point
from workflow.sweep.study import Study, open_study

MOST_SHOWN = 30
FAILED = 1
SHEBANG = "#!/bin/bash\n"


@dataclass(frozen=True)
class Options:
    """How a study is run: on what, how many runs at a time, whether now, and whether what failed is run again."""

    executor: Executor
    needs: Needs = field(default_factory=Needs)
    at_once: int = 1
    submit: bool = True
    retry_failed: bool = False


def start(study: Study, options: Options, *, tables: Callable[[Study], None] | None = None) -> int:
    """Opens the study, shows it, and runs or sends what is to be; gives an exit code. Raises Stopped after a signal."""
    open_study(study)
    written = options.executor.write(list(jobs_of(study, options.needs).values()))
    show(study, written)
    summary = Summary(lambda: (tables or usual_tables)(study))
    if not options.submit:
        summary.at_last()
        how = "with --submit" if study.kind == "sweep" else "without --dry_run, on a cluster with --submit,"
        say(f"nothing was run; the same command {how} runs these points")
        return 0
    if not isinstance(options.executor, LocalExecutor):
        return send(study, options, summary)
    found = drive(
        study,
        options.executor,
        options.needs,
        at_once=options.at_once,
        retry_failed=options.retry_failed,
        summary=summary,
        describe=lambda point: headline(study, point),
    )
    return tell(study, found)


def send(study: Study, options: Options, summary: Summary) -> int:
    """Sends to a cluster what is not finished there."""
    points = {point.name: point for point in study.points}
    jobs = jobs_of(study, options.needs)
    records = options.executor.status(list(jobs.values()))
    busy = {Status.SENT, Status.RUNNING} | (set() if options.retry_failed else set(NOT_AGAIN))
    left = [job for name, job in jobs.items() if not study.finished(points[name]) and records[name].status not in busy]
    if left:
        options.executor.submit(left, at_once=options.at_once)
    summary.at_last()
    say(f"{len(left)} jobs sent by {options.executor.name}; `workflow jobs status {study.folder}` tells how they stand")
    return 0


def show(study: Study, scripts: list[Path]) -> None:
    """The count, the points, and one of the scripts."""
    count = len(study.points)
    say(f"{count} point{'' if count == 1 else 's'}")
    for point in study.points[:MOST_SHOWN]:
        say(f"  {point.name}")
    if count > MOST_SHOWN:
        say(f"  and {count - MOST_SHOWN} more, in {study.folder / 'study.json'}")
    if scripts:
        text = scripts[0].read_text(encoding="utf-8").rstrip().removeprefix(SHEBANG)
        more = f" (and {len(scripts) - 1} like it)" if len(scripts) > 1 else ""
        say(f"{scripts[0]}{more}:\n{text}")


def tell(study: Study, found: Outcome) -> int:
    """How a study ended, what failed and why, and where its table is."""
    for name, record in found.failed.items():
        say(
            f"{record.status}: {name}: {record.last_line or 'no output'} (log: {study.folder / 'points' / name / 'log.txt'})"
        )
    if found.failed:
        say("once the cause is mended, --retry_failed runs these again")
    say(f"{found.done} of {found.total} runs are finished; table: {study.folder / 'table.md'}")
    return FAILED if found.failed else 0


def headline(study: Study, point: Point) -> str:
    """A finished run's own metrics at its best checkpoint: `mcc 0.312`."""
    best = read_report(study.run_paths(point).report).best
    found = {name: best.metrics[name].value for name in point.metrics if best and name in best.metrics}
    return ", ".join(
        f"{name} {'undefined' if value is None else format(value, '.4g')}" for name, value in found.items()
    )


def usual_tables(study: Study, which: Which = "best") -> None:
    """table.md, table.csv and best.json."""
    try:
        write_study_tables(study.folder, which=which)
    except ResultsError as error:  # a report of another version, say: the runs go on, the tables are made later
        say(f"notice: no table was made: {error}")


def say(text: str) -> None:
    """A line for people, unbroken."""
    make_console().print(text, soft_wrap=True, markup=False, highlight=False)
