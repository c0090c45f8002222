"""`workflow suite transfer`: the matrix of languages trained on by languages evaluated on.

Knows nothing of points or runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workflow.commands.parsing import command_parser
from workflow.commands.sweeping import add_study_flags, study_options
from workflow.errors import ConfigError


def suite(argv: Sequence[str]) -> int:
    """`suite transfer`."""
    usage = "usage: workflow suite transfer FILE --out DIR   (workflow suite transfer -h for all)"
    if argv[:1] in (["-h"], ["--help"]):
        print(usage)
        return 0
    if argv[:1] != ["transfer"]:
        raise ConfigError(usage)
    return transfer(argv[1:])


def transfer(argv: Sequence[str]) -> int:
    """Plans the matrix, writes its data sets and its study, and runs it."""
    parser = command_parser(
        "suite transfer",
        "Trains on each language and on all of them together, and evaluates on each. All data is read and checked before anything\n"
        "is written; the same command goes on where it was left. On a cluster, scripts are only written and shown without --submit.",
        "workflow suite transfer configs/transfer-example.json --out studies/tweets --jobs 2",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the matrix: see docs/datasets.md")
    parser.add_argument(
        "--pairs",
        action="store_true",
        help="a run for each pair of train set and eval language, so that each has a best checkpoint of its own; without it "
        "a run for each train set fills its row of the matrix",
    )
    parser.add_argument("--dry_run", action="store_true", help="check, write and show everything, but run nothing")
    parser.add_argument("--submit", action="store_true", help="send the runs to a cluster (here, they are run anyway)")
    add_study_flags(parser)
    given = parser.parse_args(argv)
    from workflow.paths import find_mount
    from workflow.sweep.run_transfer import run_transfer

    options = study_options(given, submit=not given.dry_run and (given.submit or given.executor == "local"))
    mount = find_mount(given.mount).absolute()
    return run_transfer(given.file, given.out, mount, options, pairs=given.pairs, max_points=given.max_points)
