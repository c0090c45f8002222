"""The ctl executor: one `ctl job run` a job.

Knows nothing of what a job does. Of ctl only `job run` is known: it is not asked how a job stands, and that is said.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from workflow.errors import JobError
from workflow.files import whole_file
from workflow.jobs.fields import Site, scheduler_name
from workflow.jobs.holding import driving
from workflow.jobs.job import Job, JobRecord, Status
from workflow.jobs.render import fill
from workflow.jobs.template import Template
from workflow.jobs.tools import ask

UNKNOWN = "sent; how it stands only ctl and the run's own folder can tell"


class CtlExecutor:
    """Jobs of a folder, each sent by a command of its own."""

    name = "ctl"

    def __init__(self, folder: Path, *, site: Site | None = None, template: Template | None = None) -> None:
        self.folder, self.site = folder, site or Site()
        self.template = template or Template.named("ctl.txt")

    def write(self, jobs: Sequence[Job]) -> list[Path]:
        """Each job's command as a script."""
        for job in jobs:
            with whole_file(job.script) as file:
                file.write(self._command(job))
            if not job.record_file.exists():
                JobRecord(executor=self.name).write(job.folder)
        return [job.script for job in jobs]

    def submit(self, jobs: Sequence[Job], *, at_once: int) -> None:
        """Sends all that were not sent; ctl has no limit of jobs at a time, so none may be asked for that is smaller than their number."""
        with driving(self.folder):
            waiting = [job for job in jobs if job.record().status is not Status.SENT]
            if at_once < len(waiting):
                raise JobError(
                    f"ctl cannot hold jobs back: {len(waiting)} would start at once; pass --jobs {len(waiting)} if that is wanted"
                )
            self.write(waiting)
            for job in waiting:
                ask(shlex.split(self._command(job)))
                record = JobRecord(Status.SENT, job_id=scheduler_name(job.name, "ctl"), executor=self.name)
                record.but(last_line=UNKNOWN).write(job.folder)

    def status(self, jobs: Sequence[Job]) -> dict[str, JobRecord]:
        """What was recorded when they were sent."""
        return {job.name: job.record() for job in jobs}

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Raises JobError that says what to do."""
        ids = [id_ for job in jobs if (record := job.record()).status is Status.SENT and (id_ := record.job_id)]
        if ids:
            raise JobError(f"ctl's own commands end jobs; these were sent: {', '.join(ids)}")

    def _command(self, job: Job) -> str:
        return fill(self.template, job, self.site, kind="ctl")
