"""One drive through jobs: starts them as there is room, looks after them, and ends with all of them ended.

Knows nothing of what a job does, but that exit code 75 means "the same command goes on".
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workflow.errors import ConfigError, Stopped
from workflow.jobs.attempts import Attempt
from workflow.jobs.job import TRY_AGAIN, Job, JobRecord, Status, now
from workflow.locks import acquire, release
from workflow.runtime import PARENT_VARIABLE
from workflow.threads import THREADS, share_of_threads
from workflow.watch.signals import Watch

POLL_S = 0.05
ASK_S = 1.0
"""Seconds between two questions whether a running job should be stopped."""

OnEnd = Callable[[Job, JobRecord], None]
ShouldStop = Callable[[Job], Status | None]


@dataclass(frozen=True)
class Rules:
    """How jobs are run: by which command, on which GPUs, how long they have to stop, how often they are started again."""

    command: Callable[[Job], Sequence[str]]
    gpu_ids: tuple[str, ...]
    grace_s: float
    max_stops: int

    def check(self, job: Job | None) -> None:
        """Raises ConfigError for a job that needs more GPUs than there are."""
        if job is not None and job.gpus > len(self.gpu_ids):
            raise ConfigError(
                f"job {job.name} needs {job.gpus} GPUs, {len(self.gpu_ids)} are visible here: "
                "ask for fewer with --gpus, or send it to a cluster with --executor"
            )


class Drive:
    """One call of `run`."""

    def __init__(
        self,
        rules: Rules,
        jobs: Iterator[Job | None],
        at_once: int,
        on_end: OnEnd | None,
        should_stop: ShouldStop | None,
    ) -> None:
        self.rules, self.jobs, self.at_once = rules, jobs, at_once
        self.on_end, self.should_stop = on_end, should_stop
        self.free = list(rules.gpu_ids)
        self.running: dict[str, Attempt] = {}
        self.locks: dict[str, int] = {}
        self.stops: dict[str, int] = {}
        self.ended: dict[str, JobRecord] = {}
        self.next: Job | None = None
        self.is_exhausted = False
        self.began, self.asked_at = time.time(), time.monotonic()

    def run(self, watch: Watch) -> dict[str, JobRecord]:
        """Until all have ended. Raises Stopped after a signal."""
        try:
            while True:
                self._obey(watch)
                if not watch.asked:
                    self._fill()
                self._collect()
                if not self.running and (watch.asked or self.is_exhausted):
                    break
                time.sleep(POLL_S)
        finally:
            self._clear()
        if watch.asked:
            raise Stopped(watch.asked, where=f"with {len(self.ended)} jobs ended")
        return self.ended

    def _obey(self, watch: Watch) -> None:
        """The first signal asks all jobs to stop, the second ends them."""
        for number in watch.take():
            is_second = any(attempt.asked is Status.STOPPED for attempt in self.running.values())
            print(
                f"notice: {signal.Signals(number).name}: "
                + (
                    "killing the jobs"
                    if is_second
                    else f"stopping {len(self.running)} jobs, a second signal kills them"
                ),
                file=sys.stderr,
                flush=True,
            )
            for attempt in self.running.values():
                attempt.ask(Status.STOPPED, grace_s=self.rules.grace_s)
                if is_second:
                    attempt.signal(signal.SIGKILL)

    def _fill(self) -> None:
        while len(self.running) < self.at_once and not self.is_exhausted:
            if self.next is None:
                try:
                    self.next = next(self.jobs)
                except StopIteration:
                    self.is_exhausted = True
                    return
                self.rules.check(self.next)
            if self.next is None or self.next.gpus > len(self.free):
                return
            job, self.next = self.next, None
            self._begin(job)

    def _begin(self, job: Job) -> None:
        """Starts a job, or takes over what a killed driver left running; nothing where another driver has it."""
        job.folder.mkdir(parents=True, exist_ok=True)
        lock = acquire(lock_file(job))
        if lock is None or job.name in self.running:
            return
        self.locks[job.name] = lock
        record = job.record()
        if self._is_cancelled(job):
            self._end(job, record.but(status=Status.CANCELLED, ended_at=now()))
        elif (adopted := Attempt.adopt(job, record)) is not None:
            print(f"notice: {job.name} still runs, of a driver that was killed; waiting for it", file=sys.stderr)
            self.free = [gpu for gpu in self.free if gpu not in record.gpus]
            self.running[job.name] = adopted
        else:
            self._start(job, record)

    def _start(self, job: Job, record: JobRecord) -> None:
        gpus, self.free = self.free[: job.gpus], self.free[job.gpus :]
        environment = {
            THREADS: share_of_threads(os.environ, self.at_once, most=job.cpus if job.cpus > 1 else None),
            PARENT_VARIABLE: str(os.getpid()),  # runtime.die_with_launcher
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        }
        try:
            self.running[job.name] = Attempt.start(job, record, self.rules.command(job), environment, gpus=gpus)
        except OSError as error:
            self.free += gpus
            failed = record.but(status=Status.FAILED, exit_code=1, executor="local", started_at=now(), ended_at=now())
            self._end(job, failed.but(attempts=record.attempts + 1, last_line=f"cannot be started: {error}"))

    def _collect(self) -> None:
        """Ends what has ended, asks the others whether they should."""
        asks = self.should_stop is not None and time.monotonic() - self.asked_at > ASK_S
        if asks:
            self.asked_at = time.monotonic()
        for name, attempt in [*self.running.items()]:
            if (code := attempt.poll()) is not None:
                del self.running[name]
                self._after(attempt, code)
            elif cancel_mark(attempt.job).exists():
                attempt.ask(Status.CANCELLED, grace_s=self.rules.grace_s)
            elif asks and self.should_stop is not None and (status := self.should_stop(attempt.job)) is not None:
                attempt.ask(status, grace_s=self.rules.grace_s)

    def _after(self, attempt: Attempt, code: int) -> None:
        job = attempt.job
        self.free += [gpu for gpu in self.rules.gpu_ids if gpu in attempt.record.gpus]
        stops = self.stops[job.name] = self.stops.get(job.name, 0) + (attempt.process is not None)
        asked = Status.CANCELLED if self._is_cancelled(job) else attempt.asked
        status = outcome(code, asked=asked, may_start_again=stops <= self.rules.max_stops)
        if status is not None:
            self._end(job, attempt.ended(code, status))
        elif len(self.free) >= job.gpus:
            self._start(job, attempt.record)
        else:
            self._end(job, attempt.ended(code, Status.STOPPED))

    def _end(self, job: Job, record: JobRecord) -> None:
        record.write(job.folder)
        release(self.locks.pop(job.name))
        self.ended[job.name] = record
        if self.on_end is not None:
            self.on_end(job, record)

    def _is_cancelled(self, job: Job) -> bool:
        """Whether somebody cancelled the job since this drive began; older marks are of earlier ones."""
        mark = cancel_mark(job)
        try:
            if mark.stat().st_mtime >= self.began:
                return True
            mark.unlink()
        except FileNotFoundError:
            pass
        return False

    def _clear(self) -> None:
        """Ends what still runs after an error, and lets go of all jobs."""
        for attempt in self.running.values():
            attempt.ask(Status.STOPPED, grace_s=self.rules.grace_s)
        while self.running:
            for name, attempt in [*self.running.items()]:
                if (code := attempt.poll()) is not None:
                    attempt.ended(
                        code, outcome(code, asked=attempt.asked, may_start_again=False) or Status.STOPPED
                    ).write(attempt.job.folder)
                    del self.running[name]
            time.sleep(POLL_S)
        for lock in self.locks.values():
            release(lock)


def outcome(code: int, *, asked: Status | None, may_start_again: bool) -> Status | None:
    """How an attempt ended that was `asked` to end as something, or was not; None: it is to be started again."""
    if code == 0:
        return Status.DONE
    if asked in (Status.PRUNED, Status.CANCELLED, Status.FAILED):
        return asked
    was_signalled = code == TRY_AGAIN or code > 128
    if asked is Status.STOPPED and was_signalled:
        return Status.STOPPED
    if code == TRY_AGAIN:
        return None if may_start_again else Status.STOPPED
    return Status.FAILED


def cancel_mark(job: Job) -> Path:
    """A file by which a job's driver is told to cancel it."""
    return job.folder / "cancel"


def lock_file(job: Job) -> Path:
    """Held by whoever runs the job."""
    return job.folder / "job.lock"


@contextlib.contextmanager
def held(job: Job) -> Iterator[bool]:
    """Whether this process holds the job inside the block, and nobody else's driver does."""
    lock = acquire(lock_file(job)) if job.folder.is_dir() else None
    try:
        yield lock is not None
    finally:
        if lock is not None:
            release(lock)
