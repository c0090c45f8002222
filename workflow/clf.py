"""The entry point that fine-tunes a model that scores or classifies inputs.

Knows nothing of how; imports torch only after the flags are known to be good.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workflow.config.clf_settings import ClfSettings
from workflow.config.flags import parse
from workflow.entry import train_in_ranks
from workflow.exits import run_main
from workflow.training.ds_file import check_deepspeed
from workflow.training.trackers import check_installed

if TYPE_CHECKING:
    from workflow.recipe.place import Place

EXAMPLE = "python3 clf.py --model_pretrain_name google/flan-t5-small --data_name 1226verifier_ft_all --max_steps 1000 --eval_steps 200 --lr 3e-4"


def clf(argv: Sequence[str]) -> int:
    """Parses, then runs here as one rank, or launches the ranks. Returns an exit code."""
    resolved = parse(ClfSettings, argv, prog="clf.py", example=EXAMPLE)
    check_installed(resolved.settings.tracking.trackers)
    check_deepspeed(resolved.settings.training.deepspeed)
    if resolved.settings.run.dry_run:
        from workflow.recipe.plan import dry_run

        return dry_run(resolved.settings)

    def work(place: Place) -> None:
        from workflow.recipe.clf_task import ClfTask
        from workflow.recipe.train import run_task

        run_task(ClfTask(resolved, place))

    return train_in_ranks("workflow.clf", argv, resolved.settings.run, work)


def main() -> None:
    """`python3 clf.py ...`"""
    run_main(clf, sys.argv[1:])


if __name__ == "__main__":
    main()
