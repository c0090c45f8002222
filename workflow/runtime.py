"""This process's place among the ranks, and the process-level facts a run depends on.

Knows nothing of models or training; imports torch only inside functions, so that `-h` stays fast.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from workflow.errors import BackendError, ConfigError, RankLost, WorkflowError
from workflow.rank_variables import TORCHRUN, find_ranks, left_behind, meeting_place
from workflow.rank_variables import Ranks as Ranks

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
UNTOLD_S = 5.0
"""How long ranks wait for each other without a word."""
MEETING_POLL_S = 0.1
PARENT_VARIABLE = "WORKFLOW_LAUNCHER_PID"
STATUS_VARIABLE = "WORKFLOW_STATUS_FILE"
AGAIN_VARIABLE = "WORKFLOW_STARTED_AGAIN"  # of a command that has been started before
START_AGAIN = "start again"
RANK_LOST = "rank lost"

_joined = threading.Event()


def ranks_from_environment(environment: dict[str, str] | None = None) -> Ranks | None:
    """The ranks that a launcher gave; None where nobody launched us as a rank. Raises ConfigError for variables that make no sense."""
    try:
        found = find_ranks(os.environ if environment is None else environment)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return found[0] if found is not None else None


def own_ranks() -> Ranks | None:
    """`ranks_from_environment` for those who end a process: None, too, where the variables make no sense."""
    with contextlib.suppress(ConfigError):
        return ranks_from_environment()
    return None


def die_with_launcher() -> None:
    """Asks the kernel to kill this process when its launcher, if any, dies, even by SIGKILL (Linux; elsewhere nothing is done).

    A launcher is what started ranks, or the steps of a longer command. Each rank has a session of its own, so killing the
    launcher's process group would otherwise leave the ranks running; this holds for the user's own torchrun too. The
    deepspeed launcher and srun look after their ranks themselves.
    """
    launcher = os.environ.get(PARENT_VARIABLE)
    if not launcher and "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = str(os.getppid())
    if not launcher or not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != int(launcher):  # it died before the line above
        os.kill(os.getpid(), signal.SIGKILL)


def join_ranks(ranks: Ranks, *, device: str, patience: timedelta | None = None) -> None:
    """Joins torch.distributed: nccl on GPUs, gloo on CPU. One rank alone needs no port and no rendezvous.

    A rank that waits longer than `patience` for another gives up.
    """
    import torch
    import torch.distributed as dist

    backend = "nccl" if device == "cuda" else "gloo"
    if device == "cuda":
        torch.cuda.set_device(torch_device(device, ranks))
    _joined.set()
    if ranks.world_size == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        os.environ["LOCAL_RANK"] = str(ranks.local_rank)  # DeepSpeed reads it
        return
    timeout = patience or COLLECTIVE_TIMEOUT
    store = _meet(ranks, timeout)
    place = {"RANK": ranks.rank, "WORLD_SIZE": ranks.world_size, "LOCAL_RANK": ranks.local_rank}
    os.environ.update({name: str(number) for name, number in place.items()})
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("default_pg", store),  # type: ignore[attr-defined]
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timeout,
    )


def meeting(ranks: Ranks) -> tuple[str, int, str]:
    """Host and port where the ranks meet, and what to do if nobody comes. Raises ConfigError."""
    found = find_ranks(os.environ)
    launcher = found[1] if found is not None else TORCHRUN
    try:
        host, port = meeting_place(os.environ, ranks, launcher, parent=os.getppid())
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return host, port, left_behind(ranks, launcher)


def _meet(ranks: Ranks, timeout: timedelta) -> Any:
    """The store through which all ranks are connected. Says for whom it waits. Raises ConfigError, or RankLost after the timeout."""
    import torch.distributed as dist

    host, port, advice = meeting(ranks)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, str(port)
    hosts = ranks.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    where = f"at {host}:{port}"
    try:
        if not hosts:
            patience = _Patience(timeout, f"waiting for an answer {where}", advice)
            while not _answers(host, port):
                patience.wait("nobody answered")
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host, port, ranks.world_size, hosts, timeout, wait_for_workers=False, multi_tenant=True
        )
        store.set(f"here/{ranks.rank}", "")
        if ranks.is_first:
            keys = [f"here/{rank}" for rank in range(ranks.world_size)]
            patience = _Patience(timeout, "", advice)
            while missing := [key for key in keys if not store.check([key])]:
                patience.what = f"waiting for {len(missing)} of {ranks.world_size} ranks {where}"
                patience.wait(f"{len(missing)} of them did not come")
            store.set("here/all", "")
        store.wait(["here/all"], timeout)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise RankLost(f"the {ranks.world_size} ranks did not meet {where}: {reason}; {advice}") from None
    return store


def _answers(host: str, port: int) -> bool:
    """Asked without torch, which neither hears a signal while it waits nor gives up without a stack trace."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=UNTOLD_S):
        return True
    return False


class _Patience:
    """Waits in a loop, says so once, and gives up in the end. Silent under our own launcher, which looks after its ranks."""

    def __init__(self, timeout: timedelta, what: str, advice: str) -> None:
        self.what, self.advice = what, advice
        self._began, self._most = time.monotonic(), timeout.total_seconds()
        self._told = PARENT_VARIABLE in os.environ

    def wait(self, why: str) -> None:
        """A moment. Raises RuntimeError after the last."""
        waited = time.monotonic() - self._began
        if waited > self._most:
            raise RuntimeError(f"{why} within {waited:.0f} s")
        if waited > UNTOLD_S and not self._told:
            self._told = True
            print(f"notice: {self.what} ({self.advice})", file=sys.stderr, flush=True)
        time.sleep(MEETING_POLL_S)


def note_for_launcher(note: str) -> None:
    """Ranks write down for the launcher that waits for them how they ended: an exit code, START_AGAIN or RANK_LOST.

    The first one's word counts: the others may only have lost it.
    """
    if note and own_ranks() is not None and (name := os.environ.get(STATUS_VARIABLE)):
        with contextlib.suppress(FileExistsError), Path(name).open("x", encoding="utf-8") as file:
            file.write(note)


def leave_ranks() -> None:
    """Leaves torch.distributed, if joined, so that this process can join again.

    DeepSpeed, where it has been imported, remembers groups of its own, which only its own call forgets.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        comm = sys.modules.get("deepspeed.comm")
        (comm if comm is not None and comm.is_initialized() else dist).destroy_process_group()


def exit_process(code: int) -> NoReturn:
    """Ends the process with a code; where it joined torch.distributed, without tearing the interpreter down.

    gloo's threads outlive `destroy_process_group`, and may still hold tensors that Python made. One that lets go of them
    while the interpreter goes down aborts the process ("terminate called without an active exception"), so that a
    finished run would now and then end with code 134 (https://github.com/pytorch/pytorch/pull/179291).
    A process that somebody goes on working in (`%run` in a notebook, `python -i`) is left to them.
    """
    if not _joined.is_set() or _is_interactive():
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _is_interactive() -> bool:
    """Whether a person types in this process: into IPython (notebooks too), or at Python's own prompt."""
    shell = sys.modules.get("IPython")
    return (
        bool(shell is not None and shell.get_ipython() is not None)
        or hasattr(sys, "ps1")
        or bool(sys.flags.interactive)
    )


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed for the next update (Linux; elsewhere nothing is done).

    By itself it gives gradients and activations back to the kernel after every update, which hands them out again page
    by page, zeroed: a fifth to a third of a small update's time on CPUs.
    """
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


def pick_device() -> str:
    """`cuda` where a GPU is visible, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_device(device: str, ranks: Ranks) -> torch.device:
    """The torch device of this rank."""
    import torch

    if device != "cuda":
        return torch.device("cpu")
    # srun may show each rank one GPU of its own, which is then number 0 for all of them.
    return torch.device("cuda", ranks.local_rank % torch.cuda.device_count())


def derived_seed(seed: int, *parts: object) -> int:
    """A 31-bit seed for one purpose: a pure function of the run's seed and the named parts, alike on every machine."""
    return zlib.crc32(":".join(map(str, (seed, *parts))).encode()) & 0x7FFFFFFF


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block torch's draws on the CPU depend on the seed alone; those after it are as if there had been none."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def environment_report(device: str) -> dict[str, Any]:
    """Hardware, versions and commit for `report.json`."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    versions = {"python": sys.version.split()[0]}
    for package in ("torch", "transformers", "deepspeed", "tokenizers", "sacrebleu"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    hardware: dict[str, Any] = {"host": socket.gethostname(), "device": device, "cpu_count": os.cpu_count()}
    if device == "cuda":
        hardware |= {"gpu": torch.cuda.get_device_name(), "gpus_here": torch.cuda.device_count()}
    return {"versions": versions, "hardware": hardware, "commit": current_commit()}


def current_commit() -> str | None:
    """The checkout's commit (`+` appended when files differ from it); None outside a checkout or without git."""
    here = str(Path(__file__).resolve().parent)

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", "__init__.py"
        )  # an installed copy may stand inside somebody else's repository
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def max_over_ranks(number: int, ranks: Ranks) -> int:
    """The largest of the ranks' numbers, on all of them; a collective call."""
    import torch
    import torch.distributed as dist

    if ranks.world_size == 1:
        return number
    device = f"cuda:{torch.cuda.current_device()}" if dist.get_backend() == "nccl" else "cpu"
    numbers = torch.tensor(number, device=device)
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    return int(numbers)


def collectively(work: Callable[[], T], ranks: Ranks, *, first_alone: bool = False) -> T:
    """Does the same work on every rank; an error of one is raised on all, so that no rank waits for another for ever.

    With `first_alone` the first rank of each machine works before the others, which then find its files in place.
    """
    result: T | None = None
    for turn in (True, False) if first_alone else (None,):
        error: Exception | None = None
        if turn is None or turn == ranks.is_first_here:
            try:
                result = work()
            except Exception as caught:
                error = caught
        _raise_for_all(error, ranks)
    return cast("T", result)


def on_first(work: Callable[[], T], ranks: Ranks) -> T:
    """Does work on the first rank alone and gives its result, or its error, to all."""
    import torch.distributed as dist

    result: T | None = None
    error: Exception | None = None
    if ranks.is_first:
        try:
            result = work()
        except Exception as caught:
            error = caught
    _raise_for_all(error, ranks)
    if ranks.world_size > 1:
        said = [result]
        dist.broadcast_object_list(said, src=0)
        result = said[0]
    return cast("T", result)


def _raise_for_all(error: Exception | None, ranks: Ranks) -> None:
    """Raises on every rank if one has an error: its own where it happened, a WorkflowError elsewhere."""
    import torch.distributed as dist

    told = (
        error if error is None or isinstance(error, WorkflowError) else BackendError(f"{type(error).__name__}: {error}")
    )
    errors: list[WorkflowError | None] = [told]
    if ranks.world_size > 1:
        errors = [None] * ranks.world_size
        dist.all_gather_object(errors, told)
    first = next((found for found in errors if found is not None), None)
    if error is not None:
        setattr(error, "known_to_all", True)  # of every kind of error: all ranks leave what they did together
    if error is not None and not isinstance(error, WorkflowError):
        raise error
    if first is not None:
        first.known_to_all = True
        raise first
