"""A real Slurm of one node with pretended GPUs, in a folder of its own: keys, sockets, ports and state are nobody else's."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
SBIN = "/usr/sbin"
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=3
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SchedulerTimeSlice=5
MailProg=/bin/true
GresTypes=gpu
NodeName={host} CPUs={cpus} RealMemory=2000 Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# cred_expire is how long a requeued job waits before it starts again: two minutes by default.


def missing() -> str | None:
    """Why there can be no Slurm here."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:{SBIN}") is None]
    if absent:
        return f"Debian's packages slurm-wlm and munge are not installed ({', '.join(absent)})"
    return None if os.geteuid() == 0 else "slurmd needs root"


class SlurmNode:
    """Started by `start`, ended by `stop`; `environment` is what Slurm's commands need to find it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, []
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{SBIN}"}

    def start(self) -> None:
        host = socket.gethostname().split(".")[0]
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        controller_port, node_port = free_ports(2)
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=host,
                folder=self.folder,
                user="root",
                controller_port=controller_port,
                node_port=node_port,
                cpus=os.cpu_count(),
            )
        )
        (self.folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File=/dev/tty[0-3]\n")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        names = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        places = [f"--{option}={self.folder}/munge.{name}" for option, name in names.items()]
        self._begin(["munged", "--foreground", "--force", f"--key-file={key}", *places])
        until(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._begin(["slurmctld", "-D", "-c"])
        until(lambda: self.ask("scontrol", "ping").returncode == 0, "slurmctld")
        self._begin(["slurmd", "-D"])
        until(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%T").stdout, "slurmd")

    def stop(self) -> None:
        self.ask("scancel", "--user=root")
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False, timeout=60
        )

    def warn(self, job_id: str) -> None:
        """Signals a job's batch shell as --signal=B:USR1@90 does, without waiting for scancel.

        Where the job is requeued before scancel has its answer, it asks for a minute whether it may signal again.
        """
        self._begin(["scancel", "--batch", "--signal=USR1", job_id])

    @classmethod
    @contextlib.contextmanager
    def running(cls, folder: Path) -> Iterator[SlurmNode]:
        """One that this process and its children find while the block lasts."""
        node = cls(folder)
        before = {name: os.environ.get(name) for name in node.environment}
        os.environ.update(node.environment)
        try:
            node.start()
            yield node
        finally:
            node.stop()
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def _begin(self, command: list[str]) -> None:
        with (self.folder / f"{command[0]}.out").open("wb") as out:
            self.processes.append(
                subprocess.Popen(command, env={**os.environ, **self.environment}, stdout=out, stderr=out)
            )


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def until(condition, what: str, *, within_s: float = 60.0):
    """Waits until the condition is true, and gives what it gave."""
    end = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not come within {within_s:g} s"
        time.sleep(0.2)
    return found
