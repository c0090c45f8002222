"""Starts one rank per GPU on this machine (or as many CPU ranks as asked), and keeps watch over them until all have ended.

Knows nothing of what the ranks do. The ranks die with the launcher, even by SIGKILL (`runtime.die_with_launcher`),
and the launcher ends with the exit code that the first rank wrote down. It hosts the store through which the ranks meet, so
that this outlives any of them. (Why not torch's elastic launcher: docs/decisions/0011.)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from workflow.errors import ConfigError, RankLost, StartAgain, Stopped
from workflow.runtime import AGAIN_VARIABLE, PARENT_VARIABLE, RANK_LOST, START_AGAIN, STATUS_VARIABLE
from workflow.threads import CHOSEN, THREADS, share_of_threads
from workflow.watch.signals import SIGNALLED, Watch, handled

LAST_WORDS_S = 10.0
"""How long the others have, after a rank has failed, to end by themselves and say what they know."""
POLL_S = 0.05


@dataclass(frozen=True)
class Supervision:
    """How ranks are looked after: seconds from a signal to their end, and how often they are started again after a death."""

    grace_s: float = 60.0
    max_restarts: int = 0
    stops: bool = False
    """Whether the ranks obey signals by themselves, and lose nothing by one that comes before they can."""


def ranks_to_start(nproc: int | None) -> int:
    """How many ranks this machine should run: as asked, else one per visible GPU, else one."""
    import torch

    num_gpus = torch.cuda.device_count()
    if nproc is not None and 0 < num_gpus < nproc:
        raise ConfigError(f"--nproc {nproc}: only {num_gpus} GPUs are visible here")
    return nproc or max(1, num_gpus)


def start_again(module: str, argv: Sequence[str], reason: StartAgain) -> NoReturn:
    """Replaces this process by a new one that does the same; a new one, because only then is all memory free."""
    print(f"notice: {reason}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(
        sys.executable, [sys.executable, "-m", module, *argv], {**os.environ, **same_package(), AGAIN_VARIABLE: "1"}
    )


def same_package() -> dict[str, str]:
    """The variable by which `python -m` finds this very package: a checkout's own scripts may be called from another folder."""
    here = str(Path(__file__).resolve().parents[1])
    others = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place and place != here]
    return {"PYTHONPATH": os.pathsep.join([here, *others])}


def launch(module: str, argv: Sequence[str], *, nproc: int, supervision: Supervision) -> int:
    """Runs `python -m module argv` as `nproc` ranks, again while they ask for it, and gives the exit code of the run.

    Raises RankLost where a rank died, as often as `supervision` allows and once more.
    """
    restarts, again = 0, False
    with handled(relays=True) as watch:
        while True:
            with tempfile.TemporaryDirectory(prefix="workflow-") as folder:
                group = _Group(module, argv, nproc, Path(folder) / "exit_code", supervision, watch, again=again)
                code, again = group.run(), True
            if code is not None:
                return code
            if group.lost is None:
                continue
            if restarts >= supervision.max_restarts:
                if group.is_told:
                    return RankLost.exit_code
                raise RankLost(group.lost)
            restarts += 1
            print(
                f"notice: {group.lost}; starting the ranks again ({restarts} of {supervision.max_restarts})",
                file=sys.stderr,
                flush=True,
            )


class _Group:
    """The ranks of one start. After `run`, `lost` says which rank died, if one did, and `is_told` that a rank has said so."""

    def __init__(
        self,
        module: str,
        argv: Sequence[str],
        nproc: int,
        status: Path,
        supervision: Supervision,
        watch: Watch,
        *,
        again: bool,
    ) -> None:
        self.command = [sys.executable, "-m", module, *argv]
        self.nproc, self.status, self.supervision, self.watch = nproc, status, supervision, watch
        self.again = {AGAIN_VARIABLE: "1"} if again else {}
        self.ranks: list[subprocess.Popen[bytes]] = []
        self.passed_on: set[int] = set()
        self.first_failed: int | None = None
        self.died: list[int] = []
        self.lost: str | None = None
        self.is_told = False

    def run(self) -> int | None:
        """Starts the ranks, waits for them, and gives the run's exit code; None where it shall be started again, or was lost."""
        import torch.distributed as dist

        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        try:
            self.ranks = [
                subprocess.Popen(self.command, env=self._environment(rank, store.port), start_new_session=True)
                for rank in range(self.nproc)
            ]
            ended_by = self._wait()
        finally:
            for process in self.ranks:
                process.kill()
                process.wait()
        return ended_by if ended_by is not None else self._outcome()

    def _environment(self, rank: int, port: int) -> dict[str, str]:
        return {
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
            **os.environ,
            **same_package(),
            **self.again,
            THREADS: share_of_threads(os.environ, self.nproc),
            CHOSEN: "",  # ranks take what they are given
            PARENT_VARIABLE: str(os.getpid()),
            STATUS_VARIABLE: str(self.status),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.nproc),
            "LOCAL_WORLD_SIZE": str(self.nproc),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # torch's name for a store that the launcher hosts
        }

    def _wait(self) -> int | None:
        """Until all ranks have ended. An exit code where a signal ended them by force."""
        until: float | None = None
        while any(process.poll() is None for process in self.ranks):
            for number in self.watch.take():
                if number in self.passed_on:
                    return SIGNALLED + number
                self._pass_on(number)
                until = until or time.monotonic() + self.supervision.grace_s
            if self.first_failed is None and self._look_for_failures():
                until = min(until or float("inf"), time.monotonic() + LAST_WORDS_S)
            if until is not None and time.monotonic() > until:
                break
            time.sleep(POLL_S)
        self._look_for_failures()
        running = [rank for rank, process in enumerate(self.ranks) if process.poll() is None]
        if running and self.passed_on and self.first_failed is None:
            print(
                f"error: not stopped within --grace_s {self.supervision.grace_s:g}: rank {', '.join(map(str, running))}; "
                "the same command continues from the newest checkpoint",
                file=sys.stderr,
            )
            return SIGNALLED + min(self.passed_on)
        return None

    def _pass_on(self, number: int) -> None:
        self.passed_on.add(number)
        for process in self.ranks:
            if process.poll() is None:
                process.send_signal(number)

    def _look_for_failures(self) -> bool:
        """Notes which rank failed first, and those that a signal of somebody else's killed."""
        for rank, process in enumerate(self.ranks):
            code = process.poll()
            if code and self.first_failed is None:
                self.first_failed = rank
            if code and code < 0 and -code not in self.passed_on and rank not in self.died:
                self.died.append(rank)
        return self.first_failed is not None

    def _outcome(self) -> int | None:
        if self.first_failed is None:
            return 0
        note = self.status.read_text(encoding="utf-8") if self.status.is_file() else ""
        if self.died:
            self.lost = "; ".join(f"rank {rank} was killed by {_signal_name(self._code(rank))}" for rank in self.died)
        elif note == RANK_LOST:
            self.lost, self.is_told = "a rank was lost", True
        elif note == START_AGAIN:
            return Stopped.code_of(self.watch.asked) if self.watch.asked else None
        elif note:
            return int(note)
        elif self.passed_on:  # killed before they could hear
            number = min(self.passed_on)
            return Stopped.code_of(number) if self.supervision.stops else SIGNALLED + number
        else:
            code = self._code(self.first_failed)
            self.lost = (
                f"rank {self.first_failed} ended with exit code {code} without a word; its output above may say why"
            )
        if self.watch.asked:  # no restart any more
            raise RankLost(self.lost)
        return None

    def _code(self, rank: int) -> int:
        code = self.ranks[rank].returncode
        assert code is not None
        return code


def _signal_name(code: int) -> str:
    name = signal.Signals(-code).name
    return f"{name} (by hand, or by the system where memory runs out)" if name == "SIGKILL" else name
