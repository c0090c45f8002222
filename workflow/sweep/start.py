"""Starts a study: its points are counted, written and shown; run only when asked; its tables are made at each end.

Knows nothing of what points are for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from workflow.jobs.ctl import CtlExecutor
from workflow.jobs.job import Executor, Job, JobRecord, Status
from workflow.jobs.local import LocalExecutor
from workflow.sweep.driver import Needs, Outcome, Progress, Summary, drive, jobs_of, outcome
from workflow.sweep.sending import THERE, check_nowhere_else, send, wait
from workflow.sweep.study import Study, open_study
from workflow.sweep.summaries import headline, make_files, say

MOST_SHOWN = 30
FAILED = 1
SHEBANG = "#!/bin/bash\n"


@dataclass(frozen=True)
class Options:
    """How a study is run: on what, how many runs at a time, whether now, whether what failed is run again.

    `wait` is for clusters: until all that was sent is over.
    """

    executor: Executor
    needs: Needs = field(default_factory=Needs)
    at_once: int = 1
    submit: bool = True
    retry_failed: bool = False
    wait: bool = False


def start(study: Study, options: Options, *, tables: Callable[[Study], None] = make_files) -> int:
    """Opens the study, shows it, and runs or sends what is to be; gives an exit code. Raises Stopped after a signal."""
    open_study(study)
    jobs = jobs_of(study, options.needs)
    check_nowhere_else(study, options.executor, jobs)
    scripts = options.executor.write(list(jobs.values()))
    is_here = isinstance(options.executor, LocalExecutor)
    show(study, scripts if is_here or not _was_sent(jobs) else [])
    summary = Summary(lambda: tables(study))
    if not isinstance(options.executor, LocalExecutor):
        return _on_cluster(study, options, jobs, summary)
    if not options.submit:
        summary.at_last()
        say(_how_to_run(study))
        return 0
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


def _on_cluster(study: Study, options: Options, jobs: Mapping[str, Job], summary: Summary) -> int:
    """Sends if asked, waits if asked, and tells what has come of what was sent."""
    executor = options.executor
    if options.submit:
        send(study, executor, jobs, at_once=options.at_once, retry_failed=options.retry_failed)
    was_sent = _was_sent(jobs)
    progress = Progress(study, lambda point: headline(study, point))

    def on_end(job: Job, record: JobRecord) -> None:
        progress.ended(job, record)
        summary.after_an_end()

    try:
        if options.wait:
            wait(executor, jobs, on_end)
        elif was_sent:
            executor.status(list(jobs.values()))
    finally:
        summary.at_last()
    if not was_sent:
        say(_how_to_run(study))
        return 0
    return tell(study, outcome(study, jobs), left=_left(study, executor.name, jobs))


def _was_sent(jobs: Mapping[str, Job]) -> bool:
    return any(job.record().job_id for job in jobs.values())


def _how_to_run(study: Study) -> str:
    how = "with --submit" if study.kind == "sweep" else "without --dry_run, on a cluster with --submit,"
    return f"nothing was run; the same command {how} runs these points"


def _left(study: Study, name: str, jobs: Mapping[str, Job]) -> str:
    """What a cluster still has, and how to hear of it; nothing where it has nothing."""
    counts = Counter(job.record().status for job in jobs.values())
    there = ", ".join(f"{counts[status]} {status}" for status in THERE if counts[status])
    how = (
        f"the same command makes the tables of the reports that come to {study.mount / 'models'}"
        if name == CtlExecutor.name  # which is asked nothing
        else f"`workflow jobs status {study.folder}`, or the same command (with --wait to the end), collects what is done"
    )
    return f"{name} has {there}; {how}" if there else ""


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


def tell(study: Study, found: Outcome, *, left: str = "") -> int:
    """How a study stands, what failed and why, what is left, and where its table is."""
    for name, record in found.failed.items():
        say(
            f"{record.status}: {name}: {record.last_line or 'no output'} (log: {study.folder / 'points' / name / 'log.txt'})"
        )
    if found.failed:
        say("once the cause is mended, --retry_failed runs these again")
    if any(record.status is Status.DONE for record in found.failed.values()):
        say(
            f"what is done without a report under {study.mount / 'models'} wrote it elsewhere: docs/sweeps.md, Clusters"
        )
    say(f"{found.done} of {found.total} runs are finished; table: {study.folder / 'table.md'}")
    if left:
        say(left)
    return FAILED if found.failed else 0
