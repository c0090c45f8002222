"""Starts one rank per GPU on this machine (or as many CPU ranks as asked) with torch's elastic launcher.

Knows nothing of what the ranks do. The ranks die with the launcher, even by SIGKILL (`runtime.die_with_launcher`),
and the launcher ends with the exit code that the first rank wrote down, not with the elastic launcher's own.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from workflow.errors import BackendError, ConfigError, StartAgain
from workflow.runtime import PARENT_VARIABLE, START_AGAIN, STATUS_VARIABLE

SIGNALLED = 128
"""What shells add to a signal's number to make an exit code."""


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
    os.execv(sys.executable, [sys.executable, "-m", module, *argv])


def launch(module: str, argv: Sequence[str], *, nproc: int) -> int:
    """Runs `python -m module argv` as `nproc` ranks, again while they ask for it, and gives the exit code of the run."""
    while (code := _launch_once(module, argv, nproc)) is None:
        pass
    return code


def _launch_once(module: str, argv: Sequence[str], nproc: int) -> int | None:
    """None: a rank wants all of them to start again."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the ranks say what is wrong themselves
    with tempfile.TemporaryDirectory(prefix="workflow-") as folder:
        status = Path(folder) / "exit_code"
        os.environ[PARENT_VARIABLE] = str(os.getpid())
        os.environ[STATUS_VARIABLE] = str(status)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            run_id="workflow",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
        )
        try:
            elastic_launch(config, sys.executable)("-m", module, *argv)
        except SignalException as stop:  # the ranks have been stopped too
            return SIGNALLED + int(stop.sigval)
        except ChildFailedError as error:
            if status.is_file():
                note = status.read_text(encoding="utf-8")
                return None if note == START_AGAIN else int(note)
            rank, failure = error.get_first_failure()
            raise BackendError(
                f"rank {rank} ended with exit code {failure.exitcode} without a word; its output above may say why"
            ) from None
    return 0
