"""`workflow data list`, `show` and `make`: registered data sets.

Knows nothing of what a registry holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workflow.commands.parsing import CommandParser, add_mount, command_parser
from workflow.data.registry_rows import MODEL_TYPES, NORMAL

ENTRY_HELP = "LANGUAGE/TASK/NAME; LANGUAGE/TASK, or NAME alone, where that means one"


def registered_data(command: str, argv: Sequence[str]) -> int:
    """Runs one of the three."""
    from workflow.recipe import registered

    make_parser, run = {
        "list": (_list_parser, registered.list_data),
        "show": (_show_parser, registered.show_data),
        "make": (_make_parser, registered.make_data),
    }[command]
    return run(make_parser().parse_args(argv))


def _list_parser() -> CommandParser:
    parser = command_parser(
        "data list",
        "Lists registered data sets; no data file is opened.",
        "workflow data list language-database.json\n  workflow data list glue",
    )
    parser.add_argument(
        "registry",
        nargs="?",
        help="a registry file, or glue; by default language-database.json of the working directory, else glue's tasks",
    )
    _add_glue_dir(parser)
    return parser


def _show_parser() -> CommandParser:
    parser = command_parser(
        "data show",
        "Reads a registered data set, checks it, and shows its rows as they will be seen.",
        "workflow data show language-database.json english/sentiment\n"
        "  workflow data show glue CoLA --glue_dir /data/glue",
    )
    parser.add_argument("registry", help="a registry file, or glue")
    parser.add_argument("entry", metavar="ENTRY", help=ENTRY_HELP)
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="rows of each split to show (default: 3)")
    _add_model_type(parser)
    _add_glue_dir(parser)
    return parser


def _make_parser() -> CommandParser:
    parser = command_parser(
        "data make",
        'Writes the data file {"train": [...], "eval": [...]} of registered data sets, for --data_name.',
        "workflow data make language-database.json english/sentiment spanish/sentiment --out tweets\n"
        "  workflow data make glue CoLA MRPC STS-B --glue_dir /data/glue\n"
        "  workflow data make glue CoLA --glue_dir /data/glue --split test --out cola-test",
    )
    parser.add_argument("registry", help="a registry file, or glue")
    parser.add_argument("entries", nargs="+", metavar="ENTRY", help=f"{ENTRY_HELP}; several are joined")
    parser.add_argument(
        "--out",
        metavar="NAME|FILE",
        help="NAME becomes mount/data/NAME.json; a FILE ends in .json; - is standard output; without it each task of glue becomes a data set of its own "
        "(cola, mrpc, ...)",
    )
    parser.add_argument(
        "--eval", nargs="+", metavar="ENTRY", help="take the eval rows of these instead, e.g. of another language"
    )
    parser.add_argument(
        "--split", help='only this split, without targets, as {"eval": [...]}: rows to be scored, e.g. a leaderboard\'s'
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that holds something else")
    _add_model_type(parser)
    _add_glue_dir(parser)
    add_mount(parser)
    return parser


def _add_model_type(parser: CommandParser) -> None:
    parser.add_argument(
        "--model_type",
        choices=MODEL_TYPES,
        default=NORMAL,
        help="ipa reads the column FEATURE-phoneme for each feature (default: normal)",
    )


def _add_glue_dir(parser: CommandParser) -> None:
    parser.add_argument(
        "--glue_dir", type=Path, metavar="DIR", help="of the registry glue: the folder with CoLA/, MRPC/ ..."
    )
