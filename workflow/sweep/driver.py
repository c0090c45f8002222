"""Drives a study's points to their ends here: skips what is finished, lists what failed, says how far it is.

Knows nothing of what points are for. Several drivers, also of several machines, may work on one study: a point is run by
whoever locks its job, and a driver ends when no point is left to anybody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from workflow.console import make_console
from workflow.jobs.drive import ShouldStop, held, lock_file
from workflow.jobs.job import Job, JobRecord, Status
from workflow.jobs.local import LocalExecutor
from workflow.locks import held_here
from workflow.sweep.entries import flags_of
from workflow.sweep.points import Point
from workflow.sweep.study import Study

NOT_AGAIN = (Status.FAILED, Status.CANCELLED, Status.PRUNED)
"""Ends after which a point is left alone, unless it is asked for again."""
WAIT_S = 1.0
"""Seconds after which it is asked again whether other drivers have left something."""
REST = 10
"""A summary is made again after so many times the time that the last one took."""


@dataclass(frozen=True)
class Needs:
    """What each run of a study needs, and where it finds its mount."""

    gpus: int = 0
    cpus: int = 1
    memory_gb: int | None = None
    timeout_s: int | None = None
    mount: Path | None = None


@dataclass
class Summary:
    """What is made anew of a study's reports after each end, not more often than it is cheap; and once more at the end."""

    make: Callable[[], None]
    not_before: float = field(default=0.0)

    def after_an_end(self) -> None:
        """Makes it, unless it was made just now."""
        if time.monotonic() >= self.not_before:
            self.at_last()

    def at_last(self) -> None:
        """Makes it."""
        began = time.monotonic()
        self.make()
        self.not_before = time.monotonic() + REST * (time.monotonic() - began)


def job_of(study: Study, point: Point, needs: Needs) -> Job:
    """The job that runs a point: everything that is set, as flags."""
    mount = ["--mount", str(needs.mount)] if needs.mount is not None else []
    return Job(
        point.name,
        study.point_folder(point),
        point.entry,
        (*flags_of(point.settings), "--training_run_name", point.run, *mount),
        gpus=needs.gpus,
        cpus=needs.cpus,
        memory_gb=needs.memory_gb,
        timeout_s=needs.timeout_s,
    )


def jobs_of(study: Study, needs: Needs) -> dict[str, Job]:
    """A job for each run of the study, by its first point's name."""
    first = {point.run: point for point in reversed(study.points)}
    return {point.name: job_of(study, point, needs) for point in study.points if first[point.run] is point}


class Queue:
    """The jobs of a study that are still to be run, given out one by one as there is room."""

    def __init__(self, study: Study, jobs: dict[str, Job], *, retry_failed: bool) -> None:
        self.study, self.jobs = study, jobs
        self.points = {point.name: point for point in study.points}
        self.started: set[str] = set()
        # A job that fails again, here or elsewhere, has more attempts than at the start.
        self.again = {
            name: job.record().attempts
            for name, job in jobs.items()
            if retry_failed and job.record().status in NOT_AGAIN
        }

    def __iter__(self) -> Iterator[Job | None]:
        """Jobs to start now; None where other drivers run all that is left."""
        while left := [name for name in self.jobs if not self.is_over(name)]:
            given = False
            for name in left:
                if self.is_over(name) or self._is_running(name):
                    continue
                given = True
                self.started.add(name)
                yield self.jobs[name]
            if given:
                continue
            if all(held_here(lock_file(self.jobs[name])) for name in left):
                return
            asked = time.monotonic()
            while time.monotonic() < asked + WAIT_S:
                yield None

    def is_over(self, name: str) -> bool:
        """Whether nothing is to be done for a job any more."""
        if self.study.finished(self.points[name]):
            return True
        record = self.jobs[name].record()
        if record.status is Status.DONE:  # and yet without a report: it is asked once more
            return name in self.started and not self._is_running(name)
        if record.status is Status.STOPPED and name in self.started and not self._is_running(name):
            return True
        return record.status in NOT_AGAIN and (name in self.started or self.again.get(name) != record.attempts)

    def _is_running(self, name: str) -> bool:
        with held(self.jobs[name]) as free:
            return not free and self.jobs[name].folder.is_dir()


@dataclass(frozen=True)
class Outcome:
    """How many of a study's runs have a report, and the records of those that ended without one."""

    done: int
    total: int
    failed: dict[str, JobRecord]


def _nothing(_: Point) -> str:
    return ""


def drive(
    study: Study,
    executor: LocalExecutor,
    needs: Needs,
    *,
    at_once: int,
    retry_failed: bool = False,
    summary: Summary,
    describe: Callable[[Point], str] = _nothing,
    should_stop: ShouldStop | None = None,
) -> Outcome:
    """Runs what is not finished, so many at a time, and says so line by line. Raises Stopped after a signal."""
    jobs = jobs_of(study, needs)
    executor.write(list(jobs.values()))
    queue = iter(Queue(study, jobs, retry_failed=retry_failed))
    drive_queue(study, executor, queue, at_once=at_once, summary=summary, describe=describe, should_stop=should_stop)
    return outcome(study, jobs)


def drive_queue(
    study: Study,
    executor: LocalExecutor,
    queue: Iterator[Job | None],
    *,
    at_once: int,
    summary: Summary,
    describe: Callable[[Point], str] = _nothing,
    should_stop: ShouldStop | None = None,
) -> None:
    """Runs the jobs that a queue gives out; a study's points may become more on the way."""
    say = Progress(study, describe)

    def on_end(job: Job, record: JobRecord) -> None:
        say.ended(job, record)
        summary.after_an_end()

    def written() -> Iterator[Job | None]:
        for job in queue:
            if job is not None and not job.script.is_file():
                executor.write([job])
            yield job

    say.begin()
    try:
        executor.run(written(), at_once=at_once, on_end=on_end, should_stop=should_stop, shared=True)
    finally:
        summary.at_last()


def outcome_of(study: Study, needs: Needs) -> Outcome:
    """How a study stands."""
    return outcome(study, jobs_of(study, needs))


def outcome(study: Study, jobs: Mapping[str, Job]) -> Outcome:
    """How a study stands."""
    points = {point.name: point for point in study.points}
    records = {name: job.record() for name, job in jobs.items() if not study.finished(points[name])}
    failed = {
        name: record for name, record in records.items() if record.status.is_over and record.status is not Status.PRUNED
    }
    return Outcome(len(jobs) - len(records), len(jobs), failed)


class Progress:
    """Lines for people: what was found finished, and each end."""

    def __init__(self, study: Study, describe: Callable[[Point], str]) -> None:
        self.study, self.describe = study, describe
        self.console = make_console()

    def begin(self) -> None:
        """How far the study is already."""
        done, total = self._count()
        if done:
            self._line(f"{done} of {total} runs are finished already")

    def ended(self, job: Job, record: JobRecord) -> None:
        """One line of a run that has ended."""
        point = next(point for point in self.study.points if point.name == job.name)
        is_done = self.study.finished(point)
        told = self.describe(point) if is_done else record.last_line or "no output"
        done, total = self._count()
        self._line(f"[{done}/{total}] {job.name}: {'done' if is_done else record.status}{': ' if told else ''}{told}")

    def _count(self) -> tuple[int, int]:
        runs = {point.run: point for point in self.study.points}
        return sum(map(self.study.finished, runs.values())), len(runs)

    def _line(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)
