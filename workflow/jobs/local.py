"""The local executor: jobs run here, so many at a time, each with GPUs of its own, and end with their driver.

Knows nothing of what a job does, but that exit code 75 means "the same command goes on".
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from workflow.errors import ConfigError
from workflow.files import whole_file
from workflow.jobs.drive import Drive, OnEnd, Rules, ShouldStop, cancel_mark, held
from workflow.jobs.gpus import gpus_here
from workflow.jobs.holding import driving
from workflow.jobs.job import Job, JobRecord, Status, now
from workflow.jobs.processes import is_alive, send
from workflow.watch.signals import handled

GONE = "its process is gone, and so was its driver; the same command goes on"


def program(job: Job) -> list[str]:
    """The command of a job: this interpreter, this package."""
    return [sys.executable, "-m", f"workflow.{job.entry}", *job.flags]


class LocalExecutor:
    """Runs jobs of the folder to their ends. `gpu_ids` are shared out among them; by default those that are visible here.

    After a signal, jobs have `grace_s` to write checkpoints. A job that ends with 75 although nobody here asked it to
    is started again, up to `max_stops` times in one call.
    """

    name = "local"

    def __init__(
        self,
        folder: Path,
        *,
        command: Callable[[Job], Sequence[str]] = program,
        gpu_ids: Sequence[str] | None = None,
        grace_s: float = 90.0,
        max_stops: int = 5,
    ) -> None:
        self.folder = folder
        self.rules = Rules(command, tuple(gpus_here() if gpu_ids is None else gpu_ids), grace_s, max_stops)

    def write(self, jobs: Sequence[Job]) -> list[Path]:
        """Writes what could be run by hand, and a record for jobs that have none."""
        for job in jobs:
            with whole_file(job.script) as file:
                file.write(f"#!/bin/bash\nexec {shlex.join(self.rules.command(job))}\n")
            if not job.record_file.exists():
                JobRecord(executor=self.name).write(job.folder)
        return [job.script for job in jobs]

    def submit(self, jobs: Sequence[Job], *, at_once: int) -> None:
        """Runs the jobs to their ends, here and now."""
        self.run(jobs, at_once=at_once)

    def run(
        self,
        jobs: Iterable[Job | None],
        *,
        at_once: int,
        on_end: OnEnd | None = None,
        should_stop: ShouldStop | None = None,
        shared: bool = False,
    ) -> dict[str, JobRecord]:
        """Runs every job that is given, whatever its record says, and gives their records by name. Must be the main thread's.

        `jobs` may be a generator: it is asked when there is room, after `on_end` of all that have ended; None means "nothing
        now, ask again". `should_stop` is asked about once a second of each running job, and says as what to end it.
        Raises RunExistsError where another driver is at work on the folder; with `shared` that is allowed, and jobs that
        another one runs are left out. Raises Stopped after a signal, when all jobs have ended; ConfigError for a job that
        needs more GPUs than there are. However it ends, no job is left running.
        """
        if at_once < 1:
            raise ConfigError("at least one job has to run at a time")
        if isinstance(jobs, Sequence):
            for job in jobs:
                self.rules.check(job)
        held = contextlib.nullcontext() if shared else driving(self.folder)
        with held, handled(relays=True) as watch:
            return Drive(self.rules, iter(jobs), at_once, on_end, should_stop).run(watch)

    def status(self, jobs: Sequence[Job]) -> dict[str, JobRecord]:
        """The jobs' records; one that says "running" of a process that is gone is corrected."""
        found = {}
        for job in jobs:
            record = job.record()
            if record.status is Status.RUNNING and not is_alive(record.job_id):
                with held(job) as mine:
                    record = job.record()  # its driver may have written the end meanwhile
                    if mine and record.status is Status.RUNNING:
                        record = record.but(status=Status.STOPPED, ended_at=now(), last_line=GONE)
                        record.write(job.folder)
            found[job.name] = record
        return found

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Ends jobs, also those of a driver that is at work, which then starts them no more."""
        for job in jobs:
            job.folder.mkdir(parents=True, exist_ok=True)
            cancel_mark(job).touch()
            with held(job) as mine:
                record = job.record()
                if record.status is Status.RUNNING and record.job_id is not None:
                    send(record.job_id, signal.SIGTERM)
                if mine and (not record.status.is_over or record.status is Status.STOPPED):
                    record.but(status=Status.CANCELLED, ended_at=now()).write(job.folder)
