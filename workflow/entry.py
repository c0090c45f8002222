"""How both entry points start: flags -> settings -> ranks -> recipe.

Imports torch only after the flags are known to be good.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow.launch import Supervision
    from workflow.recipe.place import Place


def train_in_ranks(module: str, argv: Sequence[str], settings: Any, work: Callable[[Place], None]) -> int:
    """`in_ranks` for training: signals stop the run where it can go on, ranks are started again as `settings` say."""
    from workflow.launch import Supervision

    supervision = Supervision(grace_s=settings.grace_s, max_restarts=settings.max_restarts, stops=True)
    patience = timedelta(seconds=settings.rank_timeout_s)
    return in_ranks(module, argv, settings, work, patience=patience, supervision=supervision)


def in_ranks(
    module: str,
    argv: Sequence[str],
    settings: Any,
    work: Callable[[Place], None],
    *,
    patience: timedelta | None = None,
    supervision: Supervision | None = None,
) -> int:
    """Does the work here as one rank, or launches the ranks that do it by `python -m module argv`. Gives an exit code.

    `settings` hold `nproc` and `mount`. `patience` is how long ranks wait for each other, by default half an hour.
    """
    from workflow.errors import StartAgain
    from workflow.launch import Supervision, launch, ranks_to_start, start_again
    from workflow.runtime import Ranks, die_with_launcher, meeting, ranks_from_environment
    from workflow.watch.signals import handled

    die_with_launcher()
    supervision = supervision or Supervision()
    ranks = ranks_from_environment()
    if ranks is not None and ranks.world_size > 1:
        meeting(ranks)  # before anything is loaded
    try:
        with handled() if supervision.stops else contextlib.nullcontext():
            if ranks is not None:
                _run_rank(ranks, settings, work, patience)
                return 0
            nproc = ranks_to_start(settings.nproc)
            if nproc == 1 and not supervision.max_restarts:
                _run_rank(Ranks(), settings, work, patience)
                return 0
        return launch(module, argv, nproc=nproc, supervision=supervision)
    except StartAgain as reason:
        if ranks is not None:
            raise
        start_again(module, argv, reason)


def _run_rank(ranks: Any, settings: Any, work: Callable[[Place], None], patience: timedelta | None) -> None:
    from workflow.console import make_console
    from workflow.paths import find_mount
    from workflow.recipe.place import Place
    from workflow.runtime import COLLECTIVE_TIMEOUT, join_ranks, leave_ranks, pick_device
    from workflow.watch.heartbeat import beating

    device = pick_device()
    join_ranks(ranks, device=device, patience=patience)
    try:
        with beating(ranks, timeout=patience or COLLECTIVE_TIMEOUT):
            work(Place(ranks, device, find_mount(settings.mount), make_console(quiet=not ranks.is_first)))
    finally:
        leave_ranks()
