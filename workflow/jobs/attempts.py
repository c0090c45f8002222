"""One attempt at a job: a process group of its own whose output is appended to the job's log, or one that outlived its driver.

Knows nothing of what comes after an attempt.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from workflow.jobs.job import TRY_AGAIN, Job, JobRecord, Status, now
from workflow.jobs.logs import last_line
from workflow.jobs.processes import identity, is_alive, kill_group, send
from workflow.rank_variables import NAMES
from workflow.threads import forget_chosen

OF_RANKS = (*NAMES, "WORKFLOW_STATUS_FILE")
"""Variables by which a program takes itself for a rank of whoever started the driver."""


class Attempt:
    """A started job. `asked` says as what it shall be recorded once it obeys; `gpus` are held until it ends."""

    def __init__(self, job: Job, record: JobRecord, process: subprocess.Popen[bytes] | None, since: int) -> None:
        self.job, self.record, self.process, self.since = job, record, process, since
        self.asked: Status | None = None
        self.is_overdue = False
        self._started, self._kill_at = time.monotonic(), float("inf")

    @staticmethod
    def start(
        job: Job, record: JobRecord, command: Sequence[str], environment: Mapping[str, str], *, gpus: Sequence[str]
    ) -> Attempt:
        """Starts the command in a session of its own, without a terminal, and records it. OSError where it cannot be started."""
        job.folder.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            log.write(f"=== {now()} attempt {record.attempts + 1} of {job.name}\n".encode())
            log.flush()
            since = log.tell()
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**_inherited(), **job.environment, **environment},
                start_new_session=True,
            )
        record = record.but(
            status=Status.RUNNING,
            exit_code=None,
            attempts=record.attempts + 1,
            job_id=identity(process.pid),
            executor="local",
            started_at=now(),
            ended_at=None,
            last_line=None,
            gpus=tuple(gpus),
        )
        record.write(job.folder)
        return Attempt(job, record, process, since)

    @staticmethod
    def adopt(job: Job, record: JobRecord) -> Attempt | None:
        """The attempt of a driver that was killed, where its process still lives."""
        if record.status is not Status.RUNNING or not is_alive(record.job_id):
            return None
        return Attempt(job, record, None, job.log.stat().st_size if job.log.exists() else 0)

    def poll(self) -> int | None:
        """The exit code (128 + signal's number as shells have it), None while it runs. Sees to time limits and what is left.

        How somebody else's child ended is not known: TRY_AGAIN, because the same command continues it or finds it finished.
        """
        self._keep_time()
        if self.process is None:
            return None if is_alive(self.record.job_id) else TRY_AGAIN
        # The group is cleared while the leader's number is still taken, so that it cannot be another group's by now.
        if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        kill_group(self.process.pid)
        code = self.process.wait()
        return code if code >= 0 else 128 - code

    def ask(self, as_what: Status, *, grace_s: float) -> None:
        """Asks the group to end (SIGTERM: programs write a checkpoint), and kills it when the grace is over."""
        if self.asked is None:
            self.asked, self._kill_at = as_what, time.monotonic() + grace_s
            self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Sends a signal to the whole group."""
        if self.record.job_id is not None:
            send(self.record.job_id, number)

    def ended(self, code: int, status: Status) -> JobRecord:
        """The record of an attempt that has ended."""
        line = last_line(self.job.log, since=self.since)
        if self.is_overdue:
            line = f"not done within {self.job.timeout_s} s; last: {line}"
        elif code > 128 and status is Status.FAILED:
            line = f"killed by {_signal_name(code - 128)}; last: {line}"
        return self.record.but(status=status, exit_code=code, ended_at=now(), last_line=line)

    def _keep_time(self) -> None:
        past = time.monotonic()
        if past > self._kill_at:
            self.signal(signal.SIGKILL)
        limit = self.job.timeout_s
        if limit is not None and past - self._started > limit and self.asked is None:
            self.is_overdue = True
            self.ask(Status.FAILED, grace_s=60.0)


def _inherited() -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if name not in OF_RANKS}
    forget_chosen(found)
    return found


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (by hand, or by the system where memory runs out)" if name == "SIGKILL" else name
