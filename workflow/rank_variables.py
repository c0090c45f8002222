"""The variables by which launchers tell a process its place among the ranks, and where the ranks meet.

A pure function of the environment, which raises ValueError with a sentence for people.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

MEETING = ("MASTER_ADDR", "MASTER_PORT")
FIRST_PORT, NUM_PORTS = 20000, 20000


@dataclass(frozen=True)
class Ranks:
    """Where this process stands: `rank` of `world_size`, `local_rank` on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this rank prints and writes files."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Whether this rank is the first on its machine, the one that fills node-local caches."""
        return self.local_rank == 0


@dataclass(frozen=True)
class Launcher:
    """A launcher's variables. `local_rank` and `job` may have one of several names; `job` is the same for all ranks, and for no other job."""

    name: str
    rank: str
    world_size: str
    local_rank: tuple[str, ...]
    local_size: tuple[str, ...] = ()
    job: tuple[str, ...] = ()
    is_for_ranks: bool = True
    """Whether these variables are for programs that make ranks of processes: others start single programs, too."""


TORCHRUN = Launcher("torchrun or the deepspeed launcher", "RANK", "WORLD_SIZE", ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE",))
SRUN = Launcher("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_LOCALID",), is_for_ranks=False)
LAUNCHERS = (
    TORCHRUN,
    Launcher(
        "Open MPI's mpirun",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
        ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_hnp_uri"),
        is_for_ranks=False,
    ),
    SRUN,
    Launcher(
        "mpiexec (MPICH, Intel MPI, PALS)",
        "PMI_RANK",
        "PMI_SIZE",
        ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID"),
        ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE", "PALS_LOCAL_SIZE"),
        ("PALS_APID", "PBS_JOBID", "I_MPI_HYDRA_UUID"),
        is_for_ranks=False,
    ),
)
NAMES = (
    tuple(name for one in LAUNCHERS for name in (one.rank, one.world_size, *one.local_rank, *one.local_size)) + MEETING
)
"""Variables by which a program takes itself for a rank."""


def find_ranks(env: Mapping[str, str]) -> tuple[Ranks, Launcher] | None:
    """The place that a launcher gave this process; None where nobody started several. Raises ValueError."""
    for launcher in LAUNCHERS:
        if launcher is SRUN and not env.get("SLURM_STEP_ID", "").isdigit():
            continue  # a batch script has such variables, too; only a process that srun started has a step that is a number
        if launcher is TORCHRUN:
            if _is_half_set(env):
                continue
        elif launcher.world_size not in env:
            continue
        ranks = Ranks(*_numbers(env, launcher))
        if ranks.world_size > 1 or launcher.is_for_ranks:
            return ranks, launcher
    return None


def _is_half_set(env: Mapping[str, str]) -> bool:
    """Whether RANK and WORLD_SIZE are not both set, and nothing is lost by passing them over. Raises ValueError."""
    names = (TORCHRUN.rank, TORCHRUN.world_size)
    there = [name for name in names if name in env]
    if len(there) == 2:
        return False
    if there and (there[0], env[there[0]]) not in (("RANK", "0"), ("WORLD_SIZE", "1")):
        missing = next(name for name in names if name not in env)
        raise ValueError(f"{there[0]}={env[there[0]]} is set without {missing}; {_ways_out(env, TORCHRUN)}")
    return True


def _numbers(env: Mapping[str, str], launcher: Launcher) -> tuple[int, int, int]:
    local = next((name for name in launcher.local_rank if name in env), None)
    names = [launcher.rank, launcher.world_size, *([local] if local else [])]
    for name in names:
        if name not in env:
            raise ValueError(f"{launcher.world_size} is set without {name}; {_ways_out(env, launcher)}")
        if not re.fullmatch(r"\d{1,9}", env[name].strip()):
            raise ValueError(f"{name}={env[name]!r} is not a number; {_ways_out(env, launcher)}")
    rank, world_size, *rest = (int(env[name]) for name in names)
    if rank >= world_size:
        raise ValueError(
            f"{launcher.rank}={rank} and {launcher.world_size}={world_size}: ranks are numbered from 0; {_ways_out(env, launcher)}"
        )
    return rank, world_size, rest[0] if rest else 0


def meeting_place(env: Mapping[str, str], ranks: Ranks, launcher: Launcher, *, parent: int) -> tuple[str, int]:
    """Host and port where all ranks of a job meet. `parent` is the process that started this one. Raises ValueError."""
    if MEETING[0] in env:
        port = env.get(MEETING[1], "")
        if not env[MEETING[0]].strip() or not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 1 << 16:
            raise ValueError(
                f"{_claim(ranks, launcher)}, which meet at MASTER_ADDR and MASTER_PORT, but these are {env[MEETING[0]]!r} and "
                f"{port or None!r}; {_ways_out(env, launcher)}"
            )
        return env[MEETING[0]], int(port)
    if launcher is SRUN and (nodes := env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST")):
        return _first_host(nodes), _port(env.get("SLURM_JOB_ID", ""))
    job = next((env[name] for name in launcher.job if env.get(name)), str(parent))
    if not launcher.is_for_ranks and local_size(env, launcher) == ranks.world_size:
        return "127.0.0.1", _port(job)
    raise ValueError(
        f"{_claim(ranks, launcher)}, but MASTER_ADDR and MASTER_PORT, where they meet, are not set; {_ways_out(env, launcher)}"
    )


def local_size(env: Mapping[str, str], launcher: Launcher) -> int:
    """How many ranks stand on this machine, as far as the launcher tells."""
    told = next((env[name] for name in launcher.local_size if env.get(name, "").isdigit()), "1")
    return max(1, int(told))


def left_behind(ranks: Ranks, launcher: Launcher) -> str:
    """What to do where nobody else will come."""
    return f"{_claim(ranks, launcher)}; if that is left over from another program: unset {launcher.rank} {launcher.world_size}"


def _claim(ranks: Ranks, launcher: Launcher) -> str:
    return f"{launcher.rank}={ranks.rank} and {launcher.world_size}={ranks.world_size} say that this is one of {ranks.world_size} ranks"


def _ways_out(env: Mapping[str, str], launcher: Launcher) -> str:
    there = [name for name in (launcher.rank, launcher.world_size, *launcher.local_rank) if name in env]
    return (
        f"start all ranks by {launcher.name}, with MASTER_ADDR and MASTER_PORT exported where it does not set them, or run here alone "
        f"after: unset {' '.join(there)}"
    )


def _port(job: str) -> int:
    """A port that every rank of the job derives alike."""
    return FIRST_PORT + (int(job) if job.isdigit() else zlib.crc32(job.encode())) % NUM_PORTS


def _first_host(nodes: str) -> str:
    """Of Slurm's list of nodes, such as `n[01-04,7],gpu1`; by scontrol, where it is installed (in containers it seldom is)."""
    if shutil.which("scontrol"):
        listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
        if listed.returncode == 0 and listed.stdout.split():
            return listed.stdout.split()[0]
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)
