"""`workflow compare`.

Knows nothing of predictions or tests.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence

from workflow.commands.parsing import CommandParser, add_meaning, add_mount, command_parser
from workflow.errors import ConfigError

DESCRIPTION = """Tests whether runs differ in a metric by more than chance: paired approximate randomisation over the rows of
their prediction files (Noreen 1989, Yeh 2000), p = (r + 1) / (n + 1), with a paired bootstrap interval of the difference,
and Holm's correction where there are several pairs. Runs must have been evaluated on the same rows."""
EXAMPLE = """workflow compare stsb_t5 stsb_bert --metric spearman
  workflow compare runs/suite --by model --where task=CoLA --metric mcc
  workflow compare en.json es.json both.json --metric macro_f1 --json"""


def compare(argv: Sequence[str]) -> int:
    """Tests every pair of what is named."""
    parser = command_parser("compare", DESCRIPTION, EXAMPLE)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="runs, prediction files, or studies (their runs, matched by seed)"
    )
    parser.add_argument(
        "--metric",
        nargs="+",
        default=[],
        metavar="NAME",
        help="what to compare, or all (default: f1_macro; spearman of regression, exact_match of texts)",
    )
    parser.add_argument(
        "--by", metavar="LABEL", help="compare the values of a study's label: model, setting, train, ..."
    )
    add_where(parser)
    add_which(parser)
    parser.add_argument("--rounds", type=int, default=10_000, help="rounds of randomisation (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rounds (default: 0)")
    parser.add_argument(
        "--data", "--data_name", metavar="NAME|FILE", help="take the targets from this data set's eval rows"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_meaning(parser)
    add_mount(parser)
    given = parser.parse_args(argv)
    if given.rounds < 1 or given.seed < 0:
        raise ConfigError("workflow compare: --rounds must be at least 1, --seed at least 0")
    if given.by is None and len(given.runs) < 2:
        raise ConfigError(
            "workflow compare: needs two or more runs, prediction files or studies, or --by LABEL of one study"
        )
    return _compare(given)


def _compare(given: Namespace) -> int:
    from workflow.console import make_console
    from workflow.evaluation.prediction_files import SAID
    from workflow.paths import find_mount
    from workflow.results.comparing import all_pairs, comparison_sheet, notes_of
    from workflow.results.formats import rich_table
    from workflow.results.prediction_sets import checked_metrics, read_set
    from workflow.results.sides import find_sides

    mount = find_mount(given.mount)
    sides = find_sides(given.runs, by=given.by, where=where_of(given), which=given.which, mount=mount)
    paths = list(dict.fromkeys(path for side in sides for path in side.files.values()))
    asked = {name: getattr(given, name) for name in SAID if getattr(given, name) is not None}
    found = read_set(paths, data=given.data, asked=asked, mount=mount)
    metrics = checked_metrics(found, given.metric)
    tested = all_pairs(sides, found, metrics, num_rounds=given.rounds, seed=given.seed)
    notes = notes_of(sides)
    if given.json:
        files = {side.name: [str(path) for path in side.files.values()] for side in sides}
        told = {"rounds": given.rounds, "seed": given.seed, "predictions": files, "notes": notes}
        print(json.dumps({**told, "pairs": [one.as_json() for one in tested]}, ensure_ascii=False))
        return 0
    make_console().print(rich_table(comparison_sheet(tested, num_rounds=given.rounds, notes=notes)))
    return 0


def add_where(parser: CommandParser) -> None:
    """`--where LABEL=VALUE...`."""
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="LABEL=VALUE", help="only results with these labels, e.g. task=CoLA"
    )


def where_of(given: Namespace) -> dict[str, str]:
    """--where by label. Raises ConfigError."""
    for text in given.where:
        if "=" not in text:
            raise ConfigError(f"--where {text}: expected LABEL=VALUE, e.g. task=CoLA")
    return dict(text.split("=", 1) for text in given.where)


def add_which(parser: CommandParser) -> None:
    """`--best` and `--final`: which evaluation of a run counts."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--best",
        dest="which",
        action="store_const",
        const="best",
        default="best",
        help="a run's best evaluation, by the metric that chose its best checkpoint (the default)",
    )
    group.add_argument(
        "--final", dest="which", action="store_const", const="final", help="a run's last evaluation instead"
    )
    group.add_argument(
        "--average", dest="which", choices=("swa", "ema"), help="the last one of a run's averaged weights instead"
    )
