"""Reads the TSV files of GLUE's tasks, as the benchmark and as the corpora themselves distribute them.

Knows nothing of registries. Quoting is off: a quotation mark is a character of a sentence. A header is found by its
names, so the order of its columns is free; without one the columns stand where `Columns` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workflow.data.glue import EVAL, TEST, TRAIN, GlueTask, glue_task, plain
from workflow.data.sources import Row
from workflow.data.tables import check_columns
from workflow.errors import ConfigError, DataError, did_you_mean

SUFFIXES = (".tsv", ".txt", ".csv")
INDEX = "index"
NO_GOLD_LABEL = "-"
"""What MNLI's corpus writes where its annotators did not agree."""
SPLIT_NAMES = {"train": TRAIN, "dev": EVAL, "eval": EVAL, "validation": EVAL, "test": TEST}


@dataclass
class LeftOut:
    """Rows that were left out while a file was read, and where the first one was."""

    count: int = 0
    first: str = ""

    def add(self, where: str) -> None:
        """Counts one."""
        self.first = self.first or where
        self.count += 1

    def note(self, path: Path) -> str | None:
        """What to tell of it, or None."""
        return f"{path}: {self.count} broken rows left out, the first at {self.first}" if self.count else None


@dataclass(frozen=True)
class _Layout:
    """Where a file's columns are; `label` and `index` are None where it has none."""

    texts: tuple[int, ...]
    label: int | None
    index: int | None
    width: int
    most: int | None
    """Most columns of a row: one more means that a tab of a text has shifted the others."""
    has_header: bool


def task_of_folder(given: str) -> tuple[GlueTask, Path]:
    """The task and folder that `DIR/CoLA` or `CoLA=DIR` mean. Raises ConfigError."""
    name, separator, folder = given.partition("=")
    if separator:
        return glue_task(name), Path(folder)
    try:
        return glue_task(Path(given).name), Path(given)
    except ConfigError as error:
        raise ConfigError(f"glue:{given}: {error}; a folder of another name is given as glue:TASK=DIR") from None


def folder_of_task(glue_dir: Path, task: GlueTask) -> Path:
    """The folder of a task's files inside a folder of GLUE. Raises DataError that lists what is there."""
    wanted = {plain(task.folder or task.name), plain(task.name)}
    folders = sorted(path for path in glue_dir.iterdir() if path.is_dir()) if glue_dir.is_dir() else []
    found = [path for path in folders if plain(path.name) in wanted]
    if not found:
        there = ", ".join(path.name for path in folders) or "no folders"
        raise DataError(f"{glue_dir}: no folder {task.folder or task.name} for {task.name} (there are {there})")
    return found[0]


def find_split(folder: Path, task: GlueTask, split: str) -> Path:
    """The file of a split: train, dev, test (or eval, validation), or a file's own name without suffix. Raises DataError."""
    stems = [split]
    if split in SPLIT_NAMES:
        stems = [*task.split_files(SPLIT_NAMES[split]), split]
    stems = [stem for stem in dict.fromkeys(stems) if stem]
    found = [path for stem in stems for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()]
    if found:
        return found[0]
    there = sorted(path.name for path in folder.glob("*") if path.suffix in SUFFIXES) if folder.is_dir() else []
    hint = did_you_mean(split, [Path(name).stem for name in there])
    wanted = " or ".join(f"{stem}.tsv" for stem in stems)
    raise DataError(
        f"{folder}: no {split!r} split of {task.name}{hint}; it would be {wanted} (there are {', '.join(there) or 'no TSV files'})"
    )


def glue_rows(path: Path, task: GlueTask, left_out: LeftOut, *, labelled: bool = True) -> Iterator[tuple[str, Row]]:
    """("FILE: line N", row) of each row: the task's text columns, its label as a text, and `index`.

    `index` is the file's own where it has one, else the number of the row. Rows that the official files are known to
    have cut are counted in `left_out`, where labels are read; any other row with too few columns raises DataError.
    """
    layout = None
    number = 0
    for line, cells in _lines(path):
        if layout is None:
            layout = _layout(path, cells, task, labelled=labelled)
            if layout.has_header:
                continue
        where = f"{path}: line {line}"
        if layout.most is not None and len(cells) > layout.most:
            raise DataError(
                f"{where}: {len(cells)} columns, and the {'header has' if layout.has_header else 'first line has'} {layout.most}; is "
                "there a tab in a text?"
            )
        is_cut = len(cells) < layout.width
        if is_cut and not (labelled and task.may_be_cut):
            raise DataError(
                f"{where}: {len(cells)} columns, and {task.name} needs {layout.width}; is a line of the file broken in two?"
            )
        if is_cut or (layout.label is not None and cells[layout.label] == NO_GOLD_LABEL):
            left_out.add(f"line {line}")
            continue
        yield where, _row(cells, layout, task, number)
        number += 1


def _row(cells: Sequence[str], layout: _Layout, task: GlueTask, number: int) -> Row:
    row: Row = {name: cells[place] for name, place in zip(task.texts, layout.texts, strict=True)}
    if layout.label is not None:
        row[task.label] = cells[layout.label]
    return row | {INDEX: cells[layout.index] if layout.index is not None else number}


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells). A lone carriage return inside a sentence ends no line."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if text := line.rstrip("\r\n"):
                    yield number, text.split("\t")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _layout(path: Path, first: Sequence[str], task: GlueTask, *, labelled: bool) -> _Layout:
    """By the header's names, else by the number of columns. Raises DataError."""
    names = list(first)
    if all(name in names for name in task.texts):
        if labelled and task.label not in names:
            raise DataError(
                f'{path}: no column "{task.label}", so its rows have no labels; the header has {", ".join(names)}'
            )
        label = names.index(task.label) if labelled else None
        check_columns(names, f"{path}: line 1")
        texts = tuple(names.index(name) for name in task.texts)
        index = names.index(INDEX) if INDEX in names else names.index("id") if "id" in names else None
        # A row is whole when what is read of it is there: MNLI's corpus has more columns than GLUE reads.
        used = [*texts, *([label] if label is not None else []), *([index] if index is not None else [])]
        return _Layout(texts, label, index, max(used) + 1, len(names), has_header=True)
    for columns in task.headerless:
        if len(names) >= columns.width:
            most = None if columns.may_be_longer else len(names)
            label = columns.label if labelled else None
            return _Layout(columns.texts, label, None, columns.width, most, has_header=False)
    expected = " or ".join(f"{columns.width} columns without a header" for columns in task.headerless)
    raise DataError(
        f"{path}: not {task.name}'s layout: the first line has {len(names)} columns, and none are named "
        f"{' and '.join(task.texts)}{f' (nor has it the {expected})' if expected else ''}"
    )
