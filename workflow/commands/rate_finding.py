"""`workflow lr-find`.

Knows nothing of training; imports nothing heavy before its arguments are known to be good.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workflow.commands.parsing import CommandParser, command_parser, output_folder
from workflow.errors import ConfigError

if TYPE_CHECKING:
    from workflow.recipe.place import Place

TASKS = ("seq2seq", "clf")
LEAST_STEPS = 10
DESCRIPTION = """Trains from the start model while the learning rate rises from update to update, watches the loss, and suggests
a rate for --lr. Beside the options below it takes every flag of seq2seq.py, or after `clf` of clf.py
(workflow seq2seq -h, workflow clf -h). No run is made or touched; it stops by itself where the loss has diverged."""
EXAMPLE = """workflow lr-find --model_init_path google/flan-t5-small --data data
  workflow lr-find clf --model_pretrain_name google/flan-t5-xl --data_name 1226verifier_ft_all --lr_max 0.1"""


def lr_find(argv: Sequence[str]) -> int:
    """Splits its own options from the settings of the task, then tests on ranks as training has them."""
    task = argv[0] if argv[:1] and argv[0] in TASKS else TASKS[0]
    given, flags = _parser().parse_known_args(list(argv[1:] if argv[:1] == [task] else argv))
    _check(given)
    from workflow.config.clf_settings import ClfSettings
    from workflow.config.flags import parse
    from workflow.config.settings import Seq2SeqSettings
    from workflow.entry import train_in_ranks

    settings_type: Any = ClfSettings if task == "clf" else Seq2SeqSettings
    resolved = parse(settings_type, flags, prog="workflow lr-find", example=EXAMPLE)

    def work(place: Place) -> None:
        from workflow.recipe.clf_task import ClfTask
        from workflow.recipe.lr_find import lr_find as test
        from workflow.recipe.seq2seq_task import Seq2SeqTask

        test((ClfTask if task == "clf" else Seq2SeqTask)(resolved, place), given)

    return train_in_ranks("workflow", ["lr-find", *argv], resolved.settings.run, work)


def _parser() -> CommandParser:
    parser = command_parser("lr-find [seq2seq|clf]", DESCRIPTION, EXAMPLE)
    parser.usage = (
        "workflow lr-find [seq2seq|clf] [--lr_min X] [--lr_max X] [--lr_find_steps N] [--out DIR] --setting value ..."
    )
    add = parser.add_argument
    add("--lr_min", "--lr-min", type=float, default=1e-7, metavar="X", help="rate of the first update (default: 1e-7)")
    add("--lr_max", "--lr-max", type=float, default=1.0, metavar="X", help="rate of the last update (default: 1)")
    add("--lr_find_steps", "--lr-find-steps", type=int, default=100, metavar="N", help="updates at most (default: 100)")
    add(
        "--out",
        type=output_folder,
        metavar="DIR",
        help="folder for lr_find.json, .csv, .png, .svg (default: lr_find/RUN_NAME here)",
    )
    return parser


def _check(given: Namespace) -> None:
    problems = [
        *([] if 0 < given.lr_min < given.lr_max < float("inf") else ["--lr_min must be above 0 and below --lr_max"]),
        *([] if given.lr_find_steps >= LEAST_STEPS else [f"--lr_find_steps must be at least {LEAST_STEPS}"]),
        *([f"--out {given.out}: is a file; name a folder"] if given.out is not None and given.out.is_file() else []),
    ]
    if problems:
        raise ConfigError("workflow lr-find: " + "; ".join(problems))
