"""`workflow leaderboard`.

Knows nothing of tasks or files.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflow.commands.comparing import add_which
from workflow.commands.parsing import add_mount, command_parser, output_file
from workflow.errors import ConfigError
from workflow.files import is_stdout, is_stream

if TYPE_CHECKING:
    from workflow.results.leaderboard_files import Unscored

DESCRIPTION = """Writes GLUE's leaderboard files (CoLA.tsv ... AX.tsv, index<TAB>prediction) and zips them, from scores of the test
rows: RUN/test-TASK.jsonl of each task's best run on the dev rows, as `workflow score` writes it, or --predictions.
Of two classes the second is answered where its score is at least 0.5 (or --fitted_threshold), of several the likeliest;
STS-B's numbers are clipped to [0, 5]. File names and numbers of rows are checked."""
EXAMPLE = """workflow leaderboard suites/small --out glue.zip --data glue --score --fill
  workflow leaderboard --predictions CoLA=cola.jsonl MNLI-m=m.jsonl MNLI-mm=mm.jsonl --out glue.zip"""


def leaderboard(argv: Sequence[str]) -> int:
    """Writes the zip, and tells what stands in it."""
    parser = command_parser("leaderboard", DESCRIPTION, EXAMPLE)
    parser.add_argument("places", nargs="*", metavar="RUN", help="studies, runs, or folders of runs")
    parser.add_argument("--out", required=True, type=output_file, metavar="ZIP", help="file to write")
    parser.add_argument(
        "--predictions", nargs="+", default=[], metavar="TASK=FILE", help="scores of a task's test rows; these win"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of GLUE, whose test files are checked against")
    parser.add_argument(
        "--score", action="store_true", help="score the test files in --data first, with each task's best run"
    )
    parser.add_argument(
        "--fitted_threshold",
        action="store_true",
        help="of two classes: by the threshold that was fitted on dev rows for the task's metric (default: 0.5, as in tables)",
    )
    parser.add_argument("--fill", action="store_true", help="answer tasks without predictions with a constant")
    parser.add_argument(
        "--unofficial", action="store_true", help="accept test files of other than the official number of rows"
    )
    add_which(parser)
    add_mount(parser)
    given = parser.parse_args(argv)
    if not given.places and not given.predictions:
        raise ConfigError("workflow leaderboard: name runs, or --predictions TASK=FILE")
    if given.out.suffix != ".zip" and not is_stream(given.out):
        raise ConfigError(f"--out {given.out}: ends in .zip")
    if given.data is not None and not given.data.is_dir():
        raise ConfigError(f"--data {given.data}: no such folder; name the one with CoLA/, MRPC/ ...")
    if given.score and (given.data is None or not given.places):
        raise ConfigError("--score: name studies or runs, and with --data the folder of GLUE that has the test files")
    return _write(given)


def _write(given: Namespace) -> int:
    from workflow.data.glue import TASKS
    from workflow.errors import ResultsError
    from workflow.paths import find_mount
    from workflow.results.leaderboard import answers_of, placeholder
    from workflow.results.leaderboard_files import check_rows, files_of_runs, missing_tasks, named_files, write_zip
    from workflow.results.runs import read_results

    named = named_files(given.predictions)
    results = read_results(given.places, models=find_mount(given.mount) / "models") if given.places else []
    of_runs, unscored = files_of_runs(results, given.which)
    if given.score and (wanted := [one for one in unscored if one.task.name not in named]):
        _score(given, wanted)
        of_runs, unscored = files_of_runs(results, given.which)
    advice = [one.advice for one in unscored]
    files = {**of_runs, **named}
    if not files:
        told = "\n".join(f"  {line}" for line in advice) or "  no finished run is of a task of GLUE (by its label)"
        raise ResultsError(
            f"no scores of test rows are there; --score makes them of the test files in --data, or by hand:\n{told}"
        )
    every = {
        task.name: answers_of(task, files[task.name], fitted=given.fitted_threshold)
        for task in TASKS.values()
        if task.name in files
    }
    checked = {name: check_rows(found, given.data, unofficial=given.unofficial) for name, found in every.items()}
    missing = missing_tasks(every)
    if given.fill:
        every |= {task.name: placeholder(task) for task in missing}
    ordered = [every[name] for name in TASKS if name in every]
    write_zip(given.out, ordered)
    rows = tuple(
        (
            found.task.leaderboard,
            str(len(found.answers)),
            _short(found.source),
            found.rule,
            found.shares,
            checked.get(found.task.name, "filled"),
        )
        for found in ordered
    )
    _tell(given, rows, [task.leaderboard for task in missing], advice)
    return 0


def _score(given: Namespace, wanted: Sequence[Unscored]) -> None:
    """The test rows that are there, each task's scored by its best run in a process of its own."""
    from workflow.data.glue import TEST
    from workflow.data.made_files import write_eval
    from workflow.data.registry import glue_entry
    from workflow.data.registry_rows import unlabelled_rows
    from workflow.errors import DataError, ResultsError

    told = sys.stderr if is_stdout(given.out) else None
    for one in wanted:
        rows = one.file.with_name(f"{one.file.stem}-rows.json")
        try:
            count = write_eval(unlabelled_rows(glue_entry(one.task, given.data), TEST), rows)
        except DataError as error:
            print(f"notice: {one.task.name} is not scored: {error}", file=sys.stderr)
            continue
        print(f"{one.task.name}: {count:,} test rows, scored by {one.run}", flush=True, file=told)
        command = [sys.executable, "-m", "workflow", "score", str(one.run), "--data", str(rows), "--out", str(one.file)]
        if code := subprocess.run(command, check=False, stdout=told).returncode:
            raise ResultsError(f"{one.task.name}: scoring ended with {code}: {shlex.join(command)}")


def _short(path: Path | None) -> str:
    """As it is named from here."""
    if path is None:
        return "-"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _tell(given: Namespace, rows: tuple[tuple[str, ...], ...], missing: list[str], advice: list[str]) -> None:
    from workflow.console import make_console
    from workflow.results.formats import rich_table
    from workflow.results.sheets import Sheet

    console = make_console()
    head = ("file", "rows", "from", "rule", "answers", "checked against")
    console.print(rich_table(Sheet(str(given.out), head, rows, len(head))))
    if missing:
        done = (
            "FILLED with a constant, which is no result"
            if given.fill
            else "left out (--fill answers them with a constant)"
        )
        console.print(f"without predictions, {done}: {', '.join(missing)}", soft_wrap=True)
        if not given.fill:
            console.print("the leaderboard takes all eleven files together", soft_wrap=True)
    for line in advice:
        console.print(f"to make them: {line}", soft_wrap=True)
