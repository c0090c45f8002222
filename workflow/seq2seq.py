"""The entry point that fine-tunes on prompts and completions: flags -> settings -> ranks -> recipe.

Imports torch only after the flags are known to be good.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from workflow.config.cascade import Resolved
from workflow.config.flags import parse
from workflow.config.settings import Seq2SeqSettings
from workflow.exits import run_main

EXAMPLE = "python3 seq2seq.py --model_init_path google/flan-t5-small --data_name data --max_steps 1000 --eval_steps 200 --lr 3e-4"


def seq2seq(argv: Sequence[str]) -> int:
    """Parses, then runs here as one rank, or launches the ranks. Returns an exit code."""
    resolved = parse(Seq2SeqSettings, argv, prog="seq2seq.py", example=EXAMPLE)

    from workflow.launch import launch, ranks_to_start
    from workflow.runtime import Ranks, ranks_from_environment

    ranks = ranks_from_environment()
    if ranks is None:
        nproc = ranks_to_start(resolved.settings.run.nproc)
        if nproc > 1:
            return launch("workflow.seq2seq", argv, nproc=nproc)
    _run_rank(resolved, ranks or Ranks())
    return 0


def _run_rank(resolved: Resolved[Seq2SeqSettings], ranks: object) -> None:
    from workflow.console import make_console
    from workflow.paths import find_mount
    from workflow.recipe.prepare import Place
    from workflow.recipe.train import run_seq2seq
    from workflow.runtime import Ranks, die_with_launcher, join_ranks, leave_ranks, pick_device

    assert isinstance(ranks, Ranks)
    die_with_launcher()
    device = pick_device()
    join_ranks(ranks, device=device)
    try:
        console = make_console(quiet=not ranks.is_first)
        run_seq2seq(resolved, Place(ranks, device, find_mount(resolved.settings.run.mount), console))
    finally:
        leave_ranks()


def main() -> None:
    """`python3 seq2seq.py ...`"""
    run_main(seq2seq, sys.argv[1:])


if __name__ == "__main__":
    main()
