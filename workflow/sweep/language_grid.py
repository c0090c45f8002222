"""A grid file with `languages`: each of its combinations is a transfer matrix, over the data of a transfer file.

Knows nothing of how points run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workflow.config.cascade import Layer, layered_values, read_settings_file
from workflow.errors import ConfigError
from workflow.sweep.entries import Entry, nested
from workflow.sweep.grid import SEED, Grid, check_count, combinations, draft
from workflow.sweep.points import silenced
from workflow.sweep.start import Options, start
from workflow.sweep.study import Study, open_study
from workflow.sweep.summaries import say
from workflow.sweep.transfer import plan_matrix
from workflow.sweep.transfer_file import Languages, TransferFile, read_transfer


def is_transfer(file: Path) -> bool:
    """Whether a file of --config is a transfer file, rather than one of settings."""
    return "registry" in read_settings_file(file)


def check_without_registry(grid: Grid) -> None:
    """All languages of one data set are that data set. Raises ConfigError where some are chosen."""
    named = {key: value for key, value in (grid.languages or {}).items() if value != "all"}
    if named:
        raise ConfigError(
            f'{grid.name}: "languages" chooses among data sets of a registry; pass a transfer file (docs/datasets.md) '
            "among the files of --config"
        )
    say(f'notice: {grid.name}: "languages": the data is --data_name alone, since no file of --config names a registry')


def run_language_grid(
    grid: Grid,
    entry: Entry,
    files: Sequence[Path],
    base: Sequence[Layer],
    folder: Path,
    mount: Path,
    options: Options,
    *,
    max_points: int,
) -> int:
    """Every combination on every train set, measured on every eval language; gives an exit code."""
    if entry.name != "clf" or grid.search is not None or len(files) > 1:
        raise ConfigError(f'{grid.name}: "languages" needs --entry clf, one transfer file, and no "search"')
    (file,) = files
    given = _chosen(grid, read_transfer(file), file)
    axes = Grid(grid.name, {name: values for name, values in grid.axes.items() if name != SEED}, grid.fixed)
    check_count(axes.num_combinations, max_points, where=grid.name)
    below = (Layer(str(file), given.settings), *base)
    varied = {
        str(draft(axes, entry, [], values, {}).labels["setting"]): _layered(grid, entry, below, values)
        for values in combinations(axes)
    }
    matrix = plan_matrix(given, file, folder, varied=varied)
    check_count(len(matrix.points), max_points, where=grid.name)
    study = Study(folder, "sweep", mount, list(matrix.points), {"swept": list(grid.swept)})
    open_study(study)  # first, so that a folder of another study leaves no data sets behind
    matrix.write_data(mount)
    return start(study, options)


def _chosen(grid: Grid, given: TransferFile, file: Path) -> TransferFile:
    """The file with the grid's languages and seeds."""
    try:
        languages = Languages.model_validate(dict(grid.languages or {}))
    except ValidationError as error:
        told = error.errors()[0]
        raise ConfigError(f'{grid.name}: "languages".{".".join(map(str, told["loc"]))}: {told["msg"]}') from None
    seeds = grid.axes.get(SEED, [grid.fixed[SEED]] if SEED in grid.fixed else given.seeds)
    if not all(isinstance(seed, int) for seed in seeds):
        raise ConfigError(f'{grid.name}: "seed": expected whole numbers; the data is {file}\'s')
    return given.model_copy(update={"languages": languages, "seeds": list(seeds)})


def _layered(grid: Grid, entry: Entry, below: Sequence[Layer], values: Mapping[str, Any]) -> dict[str, Any]:
    """A combination over the settings below it, as one object. Raises ConfigError."""
    problems: list[str] = []
    layers = (*below, Layer(grid.name, nested({**grid.fixed, **values})))
    merged = layered_values(entry.settings_type, layers, problems)
    problems += silenced(entry, tuple(values), merged.origins, merged.values, merged.unset)
    if problems:
        raise ConfigError(*problems)
    return merged.values
