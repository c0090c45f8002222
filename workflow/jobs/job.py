"""A job, how it stands, and what runs jobs.

Knows nothing of what a job does, nor of any scheduler.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from workflow.errors import ConfigError, ResultsError
from workflow.files import read_json, write_json

ENTRIES = ("seq2seq", "clf")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,79}")
TRY_AGAIN = 75
"""Exit code of a program that a signal stopped and that the same command continues (sysexits' EX_TEMPFAIL)."""


class Status(StrEnum):
    """How a job stands. STOPPED means that the same command goes on; PRUNED that nobody wants it to."""

    WRITTEN = "written"
    SENT = "sent"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    PRUNED = "pruned"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen unless somebody starts the job again."""
        return self not in (Status.WRITTEN, Status.SENT, Status.RUNNING)


@dataclass(frozen=True)
class Job:
    """One process tree to run: the program of `entry` with `flags` (argv items), and what it needs.

    `folder` is the job's own: script, log and record stand in it. ConfigError where a name or a number cannot be.
    """

    name: str
    folder: Path
    entry: str
    flags: tuple[str, ...]
    gpus: int = 0
    cpus: int = 1
    memory_gb: int | None = None
    timeout_s: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = [
            *([] if NAME.fullmatch(self.name) else ["a name has up to 80 letters, digits and . _ = , + -"]),
            *([] if self.entry in ENTRIES else [f"entry {self.entry!r} is none of {', '.join(ENTRIES)}"]),
            *([] if self.gpus >= 0 and self.cpus >= 1 else ["gpus are 0 or more, cpus 1 or more"]),
            *([] if all("\0" not in flag for flag in self.flags) else ["a flag holds a zero byte"]),
        ]
        if problems:
            raise ConfigError(f"job {self.name!r}: {'; '.join(problems)}")

    @property
    def script(self) -> Path:
        """What a scheduler is given, or what could be run by hand."""
        return self.folder / "job.sh"

    @property
    def log(self) -> Path:
        """Standard output and error of all attempts."""
        return self.folder / "log.txt"

    @property
    def record_file(self) -> Path:
        """The job's record."""
        return self.folder / "job.json"

    def record(self) -> JobRecord:
        """What is written down of this job, or a new record. Raises ResultsError."""
        return read_record(self.folder) or JobRecord()


@dataclass(frozen=True)
class JobRecord:
    """What `job.json` says. Times are ISO 8601 with offset; `job_id` is the scheduler's, or names the process."""

    status: Status = Status.WRITTEN
    exit_code: int | None = None
    attempts: int = 0
    job_id: str | None = None
    executor: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    last_line: str | None = None
    gpus: tuple[str, ...] = ()
    """Those that a job of the local executor was given."""

    def but(self, **changes: Any) -> JobRecord:
        """A copy with changes."""
        return dataclasses.replace(self, **changes)

    def write(self, folder: Path) -> None:
        """Writes `job.json`, whole."""
        write_json(folder / "job.json", dataclasses.asdict(self))


def read_record(folder: Path) -> JobRecord | None:
    """The record in a job's folder, None where there is none. Raises ResultsError where it cannot be read."""
    file = folder / "job.json"
    values = read_json(file, broken=ResultsError)
    if values is None:
        return None
    try:
        known = {one.name for one in dataclasses.fields(JobRecord)}
        given = {key: value for key, value in dict(values).items() if key in known}
        return JobRecord(**{**given, "status": Status(given["status"]), "gpus": tuple(given.get("gpus", ()))})
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(
            f"{file}: not a job's record ({error}); remove it to have the job count as never started"
        ) from None


def now() -> str:
    """The time as records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


class Executor(Protocol):
    """What runs jobs. Writing shows what would be sent; nothing is sent before `submit`."""

    name: str

    def write(self, jobs: Sequence[Job]) -> list[Path]:
        """Writes the scripts and gives their paths. Raises TemplateError."""
        ...

    def submit(self, jobs: Sequence[Job], *, at_once: int) -> None:
        """Sends the jobs, at most `at_once` of them running at a time, and records their ids. Raises JobError."""
        ...

    def status(self, jobs: Sequence[Job]) -> dict[str, JobRecord]:
        """How the jobs stand, by name; what was learnt is recorded."""
        ...

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Ends jobs that are not over, and records it."""
        ...
