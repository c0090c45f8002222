"""`workflow sweep`, `workflow suite run` and `workflow ablate`.

Knows nothing of points or runs.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflow.commands.parsing import CommandParser, add_mount, command_parser
from workflow.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from workflow.sweep.start import Options

MAX_POINTS = 500


def sweep(argv: Sequence[str]) -> int:
    """Runs the points of a grid file, or a search among them."""
    parser = command_parser(
        "sweep",
        "Runs one of the programs with every combination of a grid file's parameters, or searches among them. Without --submit it\n"
        "only writes and shows what would be run. GRID.json stands first; all further flags are the program's (seq2seq.py -h,\n"
        "clf.py -h), alike in all points; --config FILE... are the settings below the grid's.",
        "workflow sweep grid.json --entry clf --config base.json --out sweeps/first --submit --jobs 2",
    )
    parser.usage = "workflow sweep GRID.json --entry seq2seq|clf --out DIR [--config FILE...] [--submit] [flags]"
    parser.add_argument("--entry", required=True, metavar="seq2seq|clf", help="the program that is run")
    parser.add_argument("--metric", help="what best.json is best in (default: what chooses the best checkpoint)")
    parser.add_argument("--submit", action="store_true", help="run the points, or send them to a cluster")
    group = parser.add_argument_group("searches")
    group.add_argument("--n_trials", type=_count, metavar="N", help="points to try (default: the grid file's, else 20)")
    group.add_argument("--search_timeout_s", type=float, metavar="S", help="seconds after which no new point is begun")
    group.add_argument("--storage", metavar="URL", help="a database for Optuna (default: the file DIR/search.journal)")
    add_study_flags(parser)
    given, rest = parser.parse_known_args(argv)
    from workflow.config.cascade import Layer, read_layers
    from workflow.config.flags import raw_flags
    from workflow.paths import find_mount
    from workflow.sweep.entries import entry_named
    from workflow.sweep.grid import read_grid
    from workflow.sweep.sweep import Sweep, run_sweep

    entry = entry_named(given.entry, where="--entry")
    raw = raw_flags(entry.settings_type, rest, prog=parser.prog, example="")
    if raw.problems:
        raise ConfigError(*(_with_own_flags(problem, parser) for problem in raw.problems))
    if len(raw.others) != 1:
        told = f"{len(raw.others)} files ({', '.join(raw.others)})" if raw.others else "no grid file"
        raise ConfigError(f"{parser.prog}: {told}; expected one: {parser.usage}")
    base: list[Layer] = read_layers(raw.files, raw.flags)
    planned = Sweep(
        entry,
        read_grid(Path(raw.others[0]), entry),
        base,
        given.out,
        find_mount(given.mount).absolute(),
        given.metric,
        given.max_points,
    )
    options = study_options(given, submit=given.submit)
    return run_sweep(planned, options, n_trials=given.n_trials, timeout_s=given.search_timeout_s, storage=given.storage)


def _with_own_flags(problem: str, parser: CommandParser) -> str:
    """A misspelt flag may be one of this command's."""
    flag = problem.removeprefix("unknown flag ").split(";")[0]
    known = [spelling for action in parser._actions for spelling in action.option_strings]
    own = did_you_mean(flag, known)
    return f"unknown flag {flag}{own}" if own else problem


def add_study_flags(parser: CommandParser) -> None:
    """What all kinds of studies have."""
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder of the study; the same command goes on"
    )
    parser.add_argument("--jobs", type=_count, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--retry_failed", action="store_true", help="run what failed or was cancelled again")
    parser.add_argument(
        "--max_points", type=_count, default=MAX_POINTS, metavar="N", help=f"refuse more points (default: {MAX_POINTS})"
    )
    add_mount(parser)
    group = parser.add_argument_group("where runs run")
    group.add_argument("--executor", default="local", help="local (default), slurm, kubernetes or ctl")
    group.add_argument(
        "--template", type=Path, metavar="FILE", help="the script's template (default: the executor's in jobs/)"
    )
    group.add_argument(
        "--gpus", type=int, default=None, metavar="N", help="GPUs of each run (default: one if there are any)"
    )
    group.add_argument("--cpus", type=_count, default=1, metavar="N", help="CPU cores of each run (default: 1)")
    group.add_argument("--memory_gb", type=_count, metavar="N", help="memory of each run, on clusters")
    group.add_argument(
        "--timeout_s", type=_count, metavar="S", help="a run that takes longer is stopped and counts as failed"
    )


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ConfigError(f"{text!r}: expected a whole number from 1 on")
    return value


def study_options(given: Namespace, *, submit: bool) -> Options:
    """How a study is run, of the flags that all kinds of studies have."""
    from workflow.jobs.local import LocalExecutor
    from workflow.paths import find_mount
    from workflow.sweep.driver import Needs
    from workflow.sweep.start import Options

    if given.executor != "local":
        raise ConfigError(f"--executor {given.executor}: not known here")
    executor = LocalExecutor(given.out)
    gpus = given.gpus if given.gpus is not None else min(1, len(executor.rules.gpu_ids))
    needs = Needs(gpus, given.cpus, given.memory_gb, given.timeout_s, find_mount(given.mount).absolute())
    return Options(executor, needs, given.jobs, submit, given.retry_failed)
