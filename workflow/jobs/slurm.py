"""The Slurm executor: one array for all jobs with the same needs, sent by sbatch, followed by squeue.

Knows nothing of what a job does. Slurm's own commands are all that is needed: a job is a script, and the array's script
requeues its task after exit code 75 (submitit would pickle functions, and requeue in its own way).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from workflow.errors import JobError, TemplateError
from workflow.files import whole_file
from workflow.jobs.fields import Site, job_fields, scheduler_name, site_fields
from workflow.jobs.holding import driving
from workflow.jobs.job import TRY_AGAIN, Job, JobRecord, Status, now
from workflow.jobs.logs import last_line
from workflow.jobs.template import Template, check_shell
from workflow.jobs.tools import ask

CANCELLED = "cancelled"
"""The file by which a task learns that it was cancelled, however Slurm's signals reach its shell and its program."""
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING")
ACTIVE = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING", "PREEMPTED")
LOST = "Slurm knows it no more, and it left no word of its end (killed with its node, or beyond its limits?)"


class SlurmExecutor:
    """Jobs of a folder as arrays. A user's template stands for the array's where it has {folders}, else for each job's script."""

    name = "slurm"

    def __init__(self, folder: Path, *, site: Site | None = None, template: Template | None = None) -> None:
        self.folder, self.site = folder, site or Site()
        is_array = template is not None and "folders" in template.fields()
        self.array = template if template is not None and is_array else Template.named("slurm-array.sh")
        self.single = template if template is not None and not is_array else Template.named("shell.sh")
        if "#SBATCH" in self.single.text:
            raise TemplateError(
                f"{self.single.name}: a template of many jobs for Slurm is one array with {{folders}} and {{array}} in it; "
                "jobs/slurm-array.sh shows one"
            )

    def write(self, jobs: Sequence[Job]) -> list[Path]:
        """Each job's script, and the arrays; at most one job of an array runs at a time where nobody says more."""
        for job in jobs:
            text = self.single.fill(job_fields(job, self.site, kind="slurm"))
            check_shell(text, name=self.single.name)
            with whole_file(job.script) as file:
                file.write(text)
            if not job.record_file.exists():
                JobRecord(executor=self.name).write(job.folder)
        groups = _groups(jobs)
        return [self._write_array(group, number, len(groups)) for number, group in enumerate(groups)]

    def submit(self, jobs: Sequence[Job], *, at_once: int) -> None:
        """Sends what is not in the queue already, each array with the limit."""
        with driving(self.folder):
            now_known = self.status(jobs)
            waiting = [job for job in jobs if now_known[job.name].status not in (Status.SENT, Status.RUNNING)]
            for script, group in zip(self.write(waiting), _groups(waiting), strict=True):
                for job in group:
                    _ended_file(job).unlink(missing_ok=True)
                    (job.folder / CANCELLED).unlink(missing_ok=True)
                limit = f"--array=0-{len(group) - 1}%{at_once}"
                array = ask(["sbatch", "--parsable", limit, str(script)]).strip().split(";")[0]
                for index, job in enumerate(group):
                    record = JobRecord(Status.SENT, job_id=f"{array}_{index}", executor=self.name)
                    record.write(job.folder)

    def status(self, jobs: Sequence[Job]) -> dict[str, JobRecord]:
        """By what tasks wrote at their end, the queue, then Slurm's memory of what is over."""
        records = {job.name: job.record() for job in jobs}
        open_ = [job for job in jobs if records[job.name].job_id and not records[job.name].status.is_over]
        queue = _queue() if open_ else {}
        for job in open_:
            record = _settled(job, records[job.name], queue)
            if record != records[job.name]:
                record.write(job.folder)
            records[job.name] = record
        return records

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Takes jobs out of the queue, or ends them; they write their checkpoints first."""
        found = self.status(jobs)
        open_ = [job for job in jobs if not found[job.name].status.is_over]
        if ids := [id_ for job in open_ if (id_ := found[job.name].job_id)]:
            for job in open_:
                (job.folder / CANCELLED).touch()
            ask(["scancel", *ids])
        for job in open_:
            found[job.name].but(status=Status.CANCELLED, ended_at=now()).write(job.folder)

    def _write_array(self, jobs: Sequence[Job], number: int, count: int) -> Path:
        name = "array" if count == 1 else f"array-{number + 1}"
        fields = site_fields(jobs[0], self.site, kind="slurm") | {
            "job_name": scheduler_name(self.folder.absolute().name, "slurm"),
            "array": f"0-{len(jobs) - 1}%1",
            "folders": [str(job.folder.absolute()) for job in jobs],
            "log": str(self.folder.absolute() / "slurm-%A_%a.txt"),
        }
        asked = self.site.given - {"gpus", "cpus", "memory", "timeout"} - self.single.fields()
        text = self.array.fill(fields, given=asked)
        check_shell(text, name=self.array.name)
        with whole_file(self.folder / f"{name}.sh") as file:
            file.write(text)
        return self.folder / f"{name}.sh"


def refused(script: Path) -> str | None:
    """Why Slurm would not take a script, where it can be asked; else None."""
    if shutil.which("sbatch") is None:
        return None
    try:
        ask(["sbatch", "--test-only", str(script)])
    except JobError as error:
        return str(error)
    return None


def state_of(state: str) -> Status:
    """What a state of Slurm's means."""
    word = state.split()[0].rstrip("+") if state.split() else ""
    if word in WAITING:
        return Status.SENT
    if word in ACTIVE:
        return Status.RUNNING
    return {"COMPLETED": Status.DONE, "CANCELLED": Status.CANCELLED}.get(word, Status.FAILED)


def _groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs with the same needs, in order."""
    groups: dict[tuple[int | None, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.gpus, job.cpus, job.memory_gb, job.timeout_s), []).append(job)
    return [*groups.values()]


def _queue() -> dict[str, str]:
    """Job id -> state of this user's jobs, an array's task each."""
    lines = ask(["squeue", "--me", "--noheader", "--array", "--format=%i|%T"]).splitlines()
    return dict(line.strip().split("|", 1) for line in lines if "|" in line)


def _settled(job: Job, record: JobRecord, queue: dict[str, str]) -> JobRecord:
    assert record.job_id is not None
    ended, state = _ended(job, record), queue.get(record.job_id)
    # Slurm ends a task that it preempts like one that somebody cancels, and then starts it again.
    if ended is not None and (state is None or (state in ACTIVE and ended.status is not Status.CANCELLED)):
        return ended
    if state is not None:
        return record.but(status=state_of(state))
    state = _remembered(record.job_id)
    status = Status.FAILED if state is None else state_of(state)
    if not status.is_over:
        return record.but(status=status)
    line = last_line(job.log)
    told = line if status is Status.DONE else f"{f'Slurm says {state}' if state else LOST}; last: {line}"
    return record.but(status=status, ended_at=now(), last_line=told)


def _ended(job: Job, record: JobRecord) -> JobRecord | None:
    """What the task wrote at its end."""
    try:
        id_, code, attempts, at, cancelled = _ended_file(job).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    if id_ != record.job_id:
        return None
    status = Status.DONE if code == "0" else Status.STOPPED if int(code) == TRY_AGAIN else Status.FAILED
    if cancelled == "cancelled" and status is not Status.DONE:
        status = Status.CANCELLED
    return record.but(
        status=status, exit_code=int(code), attempts=int(attempts), ended_at=at, last_line=last_line(job.log)
    )


def _remembered(job_id: str) -> str | None:
    """The state by accounting where there is some, else by the controller's memory of the last minutes."""
    with contextlib.suppress(JobError):
        lines = ask(["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job_id}", "--format=State"])
        if lines.strip():
            return lines.splitlines()[0]
    with contextlib.suppress(JobError):
        shown = ask(["scontrol", "show", "job", "--oneliner", job_id])
        return next((word.removeprefix("JobState=") for word in shown.split() if word.startswith("JobState=")), None)
    return None


def _ended_file(job: Job) -> Path:
    return job.folder / "ended"
