"""Sends a study's jobs to a cluster, waits for them where asked, and looks after jobs that are still with another executor.

Knows nothing of schedulers (`workflow.jobs`) or of what points are for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping

from workflow.errors import ConfigError, JobError
from workflow.jobs.executors import by_executor
from workflow.jobs.job import Executor, Job, JobRecord, Status
from workflow.sweep.driver import NOT_AGAIN
from workflow.sweep.study import Study
from workflow.sweep.summaries import say

THERE = (Status.SENT, Status.RUNNING)
ASKED_AGAIN = ("local", "slurm")
"""Executors whose jobs can be asked for by what their records say alone."""
FIRST_WAIT_S, LONGEST_WAIT_S, GROWTH = 1.0, 30.0, 1.5
MOST_SILENCES = 20
"""Questions in a row that a scheduler may leave unanswered, about ten minutes, as when its controller is started again."""


def check_nowhere_else(study: Study, executor: Executor, jobs: Mapping[str, Job]) -> None:
    """Raises ConfigError where jobs of the study wait or run with another executor, which would run them twice."""
    others = [job for job in jobs.values() if job.record().status in THERE and job.record().executor != executor.name]
    for other, group in by_executor(others, study.folder):
        if other.name in ASKED_AGAIN:
            with contextlib.suppress(JobError):
                other.status(group)
        if busy := [job for job in group if job.record().status in THERE and not _has_report(study, job)]:
            raise ConfigError(
                f"{study.folder}: {len(busy)} of its jobs are with {other.name}; go on with --executor {other.name}, or end them "
                f"first: workflow jobs cancel {study.folder}"
            )


def send(study: Study, executor: Executor, jobs: Mapping[str, Job], *, at_once: int, retry_failed: bool) -> None:
    """Sends what has neither a report nor a job there; what ended without a report only where `retry_failed`."""
    records = executor.status(list(jobs.values()))
    left_alone = THERE if retry_failed else (*THERE, *NOT_AGAIN, Status.DONE)
    left = [job for name, job in jobs.items() if records[name].status not in left_alone and not _has_report(study, job)]
    if left:
        say(f"sending {len(left)} of {len(jobs)} jobs to {executor.name}, {at_once} at a time (--jobs)")
        executor.submit(left, at_once=at_once)


def wait(executor: Executor, jobs: Mapping[str, Job], on_end: Callable[[Job, JobRecord], None]) -> None:
    """Until all that were there are over. Ctrl-C ends the waiting, not the jobs."""
    open_ = {name: job for name, job in jobs.items() if job.record().status in THERE}
    pause, silences = FIRST_WAIT_S, 0
    try:
        while open_:
            try:
                records, silences = executor.status(list(open_.values())), 0
            except JobError as error:
                silences += 1
                if silences > MOST_SILENCES:
                    raise
                say(f"notice: asking again: {error}")
                records = {}
            for name, record in records.items():
                if record.status.is_over:
                    on_end(open_.pop(name), record)
            if open_:
                time.sleep(pause)
                pause = min(GROWTH * pause, LONGEST_WAIT_S)
    except KeyboardInterrupt:
        say(f"{len(open_)} jobs go on with {executor.name}; the same command waits for them again")
        raise


def _has_report(study: Study, job: Job) -> bool:
    return any(point.name == job.name and study.finished(point) for point in study.points)
