"""`workflow results`, `workflow results export` and `workflow results merge`.

Knows nothing of how results are read or summed up.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from workflow.commands.comparing import add_where, add_which, where_of
from workflow.commands.parsing import CommandParser, add_mount, command_parser, output_file
from workflow.errors import ConfigError

DESCRIPTION = """A table of finished runs, from their report.json alone: rows and columns are labels (task, model, setting, seed,
train, eval), cells mean \u00b1 sample deviation over seeds. Runs that failed or are missing are listed, never dropped."""
EXAMPLE = """workflow results runs/suite
  workflow results mount/models --metric accuracy macro_f1 --rows model setting
  workflow results runs/suite runs/other --out results.md          # again with more: they are added, none twice
  workflow results export runs/suite --to s3://bucket/results
  workflow results merge here there --to all"""
SUFFIXES = {".md": "md", ".csv": "csv", ".tex": "latex", ".html": "html"}
PREFER = ("newest", "first")
PLACES = "studies, runs, folders of runs, or exported results (a folder or a URL)"


def results(argv: Sequence[str]) -> int:
    """The table, or one of the two sub-commands."""
    if argv[:1] in (["export"], ["merge"]):
        return _bring_together(argv[0], argv[1:])
    parser = command_parser("results", DESCRIPTION, EXAMPLE)
    parser.add_argument("places", nargs="+", metavar="DIR", help=PLACES)
    parser.add_argument(
        "--format", choices=("md", "csv", "latex", "html"), help="print this instead of a table for the terminal"
    )
    parser.add_argument(
        "--out",
        type=output_file,
        metavar="FILE",
        help="write a file; what it shows already stays in it (- is standard output)",
    )
    parser.add_argument("--rows", nargs="+", default=[], metavar="LABEL", help="labels of rows (default: what varies)")
    parser.add_argument("--columns", nargs="+", default=[], metavar="LABEL", help="labels of columns (default: task)")
    parser.add_argument(
        "--metric", nargs="+", default=[], metavar="NAME", help="metrics to show (default: each task's own)"
    )
    parser.add_argument("--details", action="store_true", help="a line a cell and metric, with n, interval and max")
    add_where(parser)
    add_which(parser)
    _add_prefer(parser)
    add_mount(parser)
    return _table(parser.parse_args(argv))


def _add_prefer(parser: CommandParser) -> None:
    parser.add_argument(
        "--prefer", choices=PREFER, help="which counts where one run has other numbers in two places (default: refuse)"
    )


def _table(given: Namespace) -> int:
    from workflow.files import is_stream, whole_file
    from workflow.paths import find_mount
    from workflow.results.appending import joined, write_results
    from workflow.results.runs import picked, read_results
    from workflow.results.tables import make_table

    _ask_slurm(given.places)
    read = read_results(given.places, models=find_mount(given.mount) / "models", prefer=given.prefer)
    found = picked(read, where_of(given))
    keeps = given.out is not None and not is_stream(given.out)
    if keeps:
        found = joined(given.out, found, prefer=given.prefer)
    table = make_table(found, rows=given.rows, columns=given.columns, metrics=given.metric, which=given.which)
    from workflow.results.sheets import details_sheet, left_sheet, main_sheet

    name = given.format or (SUFFIXES.get(given.out.suffix, "md") if given.out else None)
    main = details_sheet(table) if given.details else main_sheet(table, spread=name == "csv")
    left = left_sheet(table)
    sheets = [main, *([left] if left.rows else [])]
    if given.out is not None:
        from workflow.results.formats import FORMATS

        if keeps:
            write_results(given.out, found)
        with whole_file(given.out) as file:
            file.write(FORMATS[name or "md"](sheets))
    if given.format and given.out is None:
        from workflow.results.formats import FORMATS

        print(FORMATS[given.format](sheets), end="")
        return 0
    from workflow.console import make_console
    from workflow.results.formats import rich_table

    console = make_console()
    for sheet in sheets:
        console.print(rich_table(sheet))
    if given.out is not None:
        console.print(f"written to {given.out}: {len(found)} runs", soft_wrap=True)
    return 0


def _ask_slurm(places: Sequence[str]) -> None:
    """How jobs of these studies ended that Slurm still has by their records; nothing is asked where there are none."""
    from workflow.errors import JobError, ResultsError
    from workflow.jobs.executors import by_executor
    from workflow.jobs.study import jobs_of

    for folder in map(Path, places):
        if (folder / "study.json").is_file():
            try:
                for executor, jobs in by_executor(jobs_of(folder), folder):
                    if executor.name == "slurm":
                        executor.status(jobs)
            except (JobError, ResultsError) as error:
                print(f"notice: {folder}: jobs stand as they were last recorded: {error}", file=sys.stderr)


def _bring_together(command: str, argv: Sequence[str]) -> int:
    parser = command_parser(
        f"results {command}",
        "Brings the results of several places together, each run once: reports, study.json, settings and prediction files\n"
        "under the hashes of their content. What is there already stays. A run with other numbers in two places is shown,\n"
        "and nothing is written unless --prefer says which counts.",
        "workflow results export runs/suite --to /shared/results\n"
        "  workflow results merge /shared/results s3://bucket/results --to all-results",
    )
    parser.add_argument("places", nargs="+", metavar="DIR", help=PLACES)
    parser.add_argument("--to", required=True, metavar="DIR|URL", help="a folder, or any URL that fsspec reaches")
    parser.add_argument("--no_predictions", action="store_true", help="leave prediction files out")
    _add_prefer(parser)
    add_mount(parser)
    given = parser.parse_args(argv)
    if Path(given.to).is_file():
        raise ConfigError(f"--to {given.to}: is a file; name a folder or a URL")
    from workflow.paths import find_mount
    from workflow.results.sync import bring_together

    outcome = bring_together(
        given.places,
        given.to,
        models=find_mount(given.mount) / "models",
        predictions=not given.no_predictions,
        prefer=given.prefer,
    )
    gave_way = f", {outcome.removed} gave way to others" if outcome.removed else ""
    print(f"{given.to}: {outcome.total} results, {outcome.added} of them new{gave_way}")
    return 0
