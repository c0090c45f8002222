"""`workflow sweep`, `workflow suite run|transfer` and `workflow ablate`.

Knows nothing of points or runs.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflow.commands.parsing import CommandParser, add_mount, command_parser
from workflow.commands.rendering import add_site, needs_of, site_of
from workflow.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from workflow.sweep.entries import Entry
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
    _add_study_flags(parser)
    given, rest = parser.parse_known_args(argv)
    from workflow.config.cascade import Layer, read_layers
    from workflow.config.flags import raw_flags
    from workflow.paths import find_mount
    from workflow.sweep.entries import entry_named
    from workflow.sweep.grid import read_grid
    from workflow.sweep.language_grid import check_without_registry, is_transfer, run_language_grid
    from workflow.sweep.sweep import Sweep, run_sweep

    entry = entry_named(given.entry, where="--entry")
    raw = raw_flags(entry.settings_type, rest, prog=parser.prog, example="")
    if raw.problems:
        raise ConfigError(*(_with_all_flags(problem, parser, entry) for problem in raw.problems))
    if len(raw.others) != 1:
        told = f"{len(raw.others)} files ({', '.join(raw.others)})" if raw.others else "no grid file"
        raise ConfigError(f"{parser.prog}: {told}; expected one: {parser.usage}")
    grid = read_grid(Path(raw.others[0]), entry)
    options = _options(given, submit=given.submit)
    matrices = [file for file in raw.files if is_transfer(file)] if grid.languages is not None else []
    base: list[Layer] = read_layers([file for file in raw.files if file not in matrices], raw.flags)
    if grid.languages is not None:
        if matrices:
            mount = find_mount(given.mount).absolute()
            return run_language_grid(
                grid, entry, matrices, base, given.out, mount, options, max_points=given.max_points
            )
        check_without_registry(grid)
    planned = Sweep(
        entry,
        grid,
        base,
        given.out,
        find_mount(given.mount).absolute(),
        given.metric,
        given.max_points,
    )
    return run_sweep(planned, options, n_trials=given.n_trials, timeout_s=given.search_timeout_s, storage=given.storage)


def suite(argv: Sequence[str]) -> int:
    """`suite run FILE...` and `suite transfer FILE`."""
    usage = "usage: workflow suite run FILE... --out DIR, workflow suite transfer FILE --out DIR   (with -h for all)"
    kinds = {"run": suite_run, "transfer": suite_transfer}
    if argv[:1] in (["-h"], ["--help"]):
        print(usage)
        return 0
    if not argv or argv[0] not in kinds:
        raise ConfigError(usage)
    return kinds[argv[0]](argv[1:])


def suite_run(argv: Sequence[str]) -> int:
    """Tasks with settings of their own, several seeded runs each."""
    parser = command_parser(
        "suite run",
        "Runs every task of suite files (JSON with comments, or YAML) with its own settings and several seeds. Everything is\n"
        "checked first: steps, metrics, data, zeros of pruned models, disk space. The same command goes on where it stopped.",
        "workflow suite run configs/suite-glue-small.json --out suites/glue --jobs 2 --keep best",
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="one experiment each; their tasks stand in one table"
    )
    parser.add_argument("--force", action="store_true", help="run in spite of what is merely doubtful")
    parser.add_argument(
        "--keep",
        choices=("all", "best"),
        default="all",
        help="best: remove the checkpoints of all but each task's best run",
    )
    given, mount = _given_at_once(parser, argv)
    from workflow.sweep.suite import Suite, run_suite
    from workflow.sweep.suite_file import read_suite

    files = [read_suite(path) for path in given.files]
    planned = Suite(files, given.out, mount, given.keep, given.force, given.max_points)
    return run_suite(planned, _options(given, submit=given.submit))


def suite_transfer(argv: Sequence[str]) -> int:
    """The matrix of languages trained on by languages evaluated on."""
    parser = command_parser(
        "suite transfer",
        "Trains on each language and on all of them together, and evaluates on each. All data is read and checked before anything\n"
        "is written; the same command goes on where it stopped. docs/datasets.md tells what stands in FILE.",
        "workflow suite transfer configs/transfer-example.json --out studies/tweets --jobs 2",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="registry, task, languages, models, settings, seeds")
    parser.add_argument(
        "--pairs",
        action="store_true",
        help="a run for each pair of train set and eval language, each with a best checkpoint of its own; without it a run "
        "for each train set fills its row of the matrix",
    )
    given, mount = _given_at_once(parser, argv)
    from workflow.sweep.run_transfer import run_transfer

    options = _options(given, submit=given.submit)
    return run_transfer(given.file, given.out, mount, options, pairs=given.pairs, max_points=given.max_points)


def _with_all_flags(problem: str, parser: CommandParser, entry: Entry) -> str:
    """A misspelt flag may be one of this command's, or of the program's."""
    if "; here it is " in problem:
        return problem
    from workflow.config.sections import field_aliases, section_fields

    flag = problem.removeprefix("unknown flag ").split(";")[0]
    fields = section_fields(entry.settings_type).items()
    theirs = [f"--{spelling}" for name, (_, field) in fields for spelling in (name, *field_aliases(field))]
    own = [spelling for action in parser._actions for spelling in action.option_strings]
    return f"unknown flag {flag}{did_you_mean(flag, [*own, *theirs])}"


def ablate(argv: Sequence[str]) -> int:
    """Variants x seeds on one data set, compared with a baseline."""
    parser = command_parser(
        "ablate",
        "Runs every variant of a file with every seed, and compares each with the baseline: means over seeds with intervals,\n"
        "paired tests over seeds and eval rows, corrected for their number. The same command goes on where it stopped.",
        "workflow ablate configs/ablation-cola.json --out ablations/cola --jobs 2",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="entry, base, variants, baseline, seeds, metric")
    given, mount = _given_at_once(parser, argv)
    from workflow.sweep.ablation import run_ablation

    options = _options(given, submit=given.submit)
    return run_ablation(given.file, given.out, mount, options, max_points=given.max_points)


def _given_at_once(parser: CommandParser, argv: Sequence[str]) -> tuple[Namespace, Path]:
    """(flags, mount) of a study that runs at once unless it goes to a cluster: `submit` says whether it runs now."""
    parser.add_argument("--dry_run", action="store_true", help="check, write and show; run nothing")
    parser.add_argument("--submit", action="store_true", help="send the runs to the cluster; here they run anyway")
    _add_study_flags(parser)
    given = parser.parse_args(argv)
    from workflow.paths import find_mount

    given.submit = not given.dry_run and (given.submit or given.executor == "local")
    return given, find_mount(given.mount).absolute()


def _add_study_flags(parser: CommandParser) -> None:
    """What all kinds of studies have."""
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder of the study; the same command goes on"
    )
    parser.add_argument("--jobs", type=_count, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--retry_failed", action="store_true", help="run what failed or was cancelled again")
    parser.add_argument(
        "--wait", action="store_true", help="with --submit on a cluster: until all is over (here a study always waits)"
    )
    parser.add_argument(
        "--max_points", type=_count, default=MAX_POINTS, metavar="N", help=f"refuse more points (default: {MAX_POINTS})"
    )
    add_mount(parser)
    group = parser.add_argument_group("where runs run")
    group.add_argument("--executor", default="local", help="local (default), slurm, kubernetes or ctl")
    group.add_argument(
        "-t",
        "--template",
        type=Path,
        metavar="FILE",
        help="a script's template (default: the executor's, docs/jobs.md)",
    )
    add_site(parser)


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ConfigError(f"{text!r}: expected a whole number from 1 on")
    return value


def _options(given: Namespace, *, submit: bool) -> Options:
    """What runs the study. Here and on Slurm runs find the study's mount, elsewhere their own place's; here they share the GPUs."""
    from workflow.jobs.executors import make_executor
    from workflow.jobs.local import LocalExecutor
    from workflow.jobs.slurm import SlurmExecutor
    from workflow.paths import find_mount
    from workflow.sweep.driver import Needs
    from workflow.sweep.start import Options

    gpus, cpus, memory_gb, timeout_s = needs_of(given)
    executor = make_executor(given.executor, given.out, site=site_of(given), template=given.template)
    if given.wait and (not submit or executor.name == "ctl"):
        raise ConfigError(
            "--wait: is for what --submit sends to Slurm or Kubernetes; ctl is asked nothing after sending"
        )
    shares_files = isinstance(executor, LocalExecutor | SlurmExecutor)
    mount = find_mount(given.mount).absolute() if shares_files or given.mount is not None else None
    if isinstance(executor, LocalExecutor):
        gpus = gpus if given.gpus is not None else min(1, len(executor.rules.gpu_ids))
        cpus = given.cpus or 1  # as many threads as there are cores, shared out
    needs = Needs(gpus, cpus, memory_gb, timeout_s, mount)
    return Options(executor, needs, given.jobs, submit, given.retry_failed, given.wait)
