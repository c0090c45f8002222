"""How both entry points start: flags -> settings -> ranks -> recipe.

Imports torch only after the flags are known to be good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow.recipe.place import Place


def in_ranks(
    module: str,
    argv: Sequence[str],
    settings: Any,
    work: Callable[[Place], None],
    *,
    patience: timedelta | None = None,
) -> int:
    """Does the work here as one rank, or launches the ranks that do it by `python -m module argv`. Gives an exit code.

    `settings` hold `nproc` and `mount`. `patience` is how long ranks wait for each other, by default half an hour.
    """
    from workflow.errors import StartAgain
    from workflow.launch import launch, ranks_to_start, start_again
    from workflow.runtime import Ranks, die_with_launcher, ranks_from_environment

    die_with_launcher()
    ranks = ranks_from_environment()
    if ranks is not None:
        _run_rank(ranks, settings, work, patience)
        return 0
    nproc = ranks_to_start(settings.nproc)
    if nproc > 1:
        return launch(module, argv, nproc=nproc)
    try:
        _run_rank(Ranks(), settings, work, patience)
    except StartAgain as reason:
        start_again(module, argv, reason)
    return 0


def _run_rank(ranks: Any, settings: Any, work: Callable[[Place], None], patience: timedelta | None) -> None:
    from workflow.console import make_console
    from workflow.paths import find_mount
    from workflow.recipe.place import Place
    from workflow.runtime import join_ranks, leave_ranks, pick_device

    device = pick_device()
    join_ranks(ranks, device=device, patience=patience)
    try:
        work(Place(ranks, device, find_mount(settings.mount), make_console(quiet=not ranks.is_first)))
    finally:
        leave_ranks()
