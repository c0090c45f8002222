"""Streams the rows of one split of a registered data set, from wherever they are, each with the place it stands at.

Knows nothing of what the columns mean (`registry_rows`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from workflow.data.glue_files import LeftOut, find_split, glue_rows
from workflow.data.hub_dates import as_written
from workflow.data.registry import LINES, Entry
from workflow.data.sources import HUB_PREFIX, SUFFIXES, Row, file_rows
from workflow.data.splits import SPLIT_FILES
from workflow.errors import DataError, did_you_mean

Located = tuple[str, Row]
"""Where a row stands, for messages, and the row."""

PHONEME = "-phoneme"
"""After a feature's name: the column with its phonemes, which models of type `ipa` read."""
PHONEME_FIX = 'add that column (the text in phonemes) to the data, or leave the model type "ipa" out'
OUR_NAMES = {name: "eval" for name in SPLIT_FILES["eval"] if name != "test"}
"""Splits that the mount's own data files call otherwise."""


def split_rows(
    entry: Entry, split: str, columns: Sequence[str], left_out: LeftOut, *, labelled: bool = True
) -> Iterator[Located]:
    """The rows of a split in their order. `columns` are those that will be read; `left_out` counts broken rows.

    Raises DataError for what is missing or malformed, naming file and row.
    """
    if entry.dataset.startswith(HUB_PREFIX):
        yield from _hub_rows(entry.dataset.removeprefix(HUB_PREFIX), split)
    elif entry.glue is not None:
        task, folder = entry.glue
        yield from glue_rows(find_split(folder, task, split), task, left_out, labelled=labelled)
    elif entry.dataset.startswith(LINES):
        folder = entry.home / Path(entry.dataset.removeprefix(LINES)).expanduser()
        yield from _line_rows(folder, split, columns)
    else:
        yield from _local_rows(entry, split)


def place_of(entry: Entry, split: str) -> str:
    """What a split is called in messages: its file where it has one of its own."""
    if entry.dataset.startswith(HUB_PREFIX):
        return f"{entry.dataset} {split}"
    if entry.glue is not None:
        return str(find_split(entry.glue[1], entry.glue[0], split))
    return f"{entry.dataset.removeprefix(LINES)} {split}"


def column_file(entry: Entry, split: str, column: str) -> Path:
    """The file of a column of a `lines:` data set."""
    return entry.home / Path(entry.dataset.removeprefix(LINES)).expanduser() / f"{split}_{column}.txt"


def _local_rows(entry: Entry, split: str) -> Iterator[Located]:
    path = entry.home / Path(entry.dataset).expanduser()
    if path.is_dir():
        file = _split_file(path, split)
        for number, (_, row) in enumerate(file_rows(file)):
            yield f"{file}: {split}[{number}]", row
    elif path.is_file():
        yield from _rows_of_split(path, split)
    else:
        hint = f"; a hub data set is asked for as {HUB_PREFIX}NAME" if not path.suffix else ""
        raise DataError(
            f'{entry.key}: no file or folder {path} (a relative "dataset" starts at the registry\'s folder{hint})'
        )


def _split_file(folder: Path, split: str) -> Path:
    """`SPLIT.jsonl` and so on in the folder, or the file of exactly this name."""
    named = [folder / split] if Path(split).suffix in SUFFIXES else []
    found = [path for path in (*named, *(folder / f"{split}{suffix}" for suffix in SUFFIXES)) if path.is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{folder}: two files for split {split}: {', '.join(path.name for path in found)}; keep one")
    there = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
    raise DataError(
        f"{folder}: no file of split {split!r}{did_you_mean(split, [Path(name).stem for name in there])} "
        f"(there are {', '.join(there) or 'no data files'}; known are {', '.join(SUFFIXES)})"
    )


def _rows_of_split(path: Path, split: str) -> Iterator[Located]:
    """The rows of a file that say they are of this split, by their list or by their own `split`."""
    wanted = {split, OUR_NAMES.get(split, split)}
    number, others = 0, dict[str, None]()
    for said, row in file_rows(path):
        of = said if said is not None else row.get("split")
        if of is None:
            raise DataError(
                f'{path}: its rows say no split, and the registry names {split!r}; give each row a "split", '
                "or use a folder with a file a split"
            )
        if str(of) in wanted:
            yield f"{path}: {split}[{number}]", row
            number += 1
        else:
            others[str(of)] = None
    if not number:
        raise DataError(
            f"{path}: no rows of split {split!r}{did_you_mean(split, others)} (there are {', '.join(others) or 'no rows at all'})"
        )


def _line_rows(folder: Path, split: str, columns: Sequence[str]) -> Iterator[Located]:
    """Rows of files with a column each, which have equally many lines."""
    paths = [folder / f"{split}_{column}.txt" for column in columns]
    for path in paths:
        if not path.is_file():
            there = sorted(file.name for file in folder.glob("*.txt")) if folder.is_dir() else []
            fix = f"; {PHONEME_FIX}" if path.stem.endswith(PHONEME) else did_you_mean(path.name, there)
            raise DataError(
                f"{path}: no such file{fix}; a {LINES} data set has a file SPLIT_COLUMN.txt for "
                f"each column that is read (there are {', '.join(there) or 'none'})"
            )
    with ExitStack() as stack:
        files = [stack.enter_context(path.open(encoding="utf-8-sig", newline="\n")) for path in paths]
        try:
            for number, lines in enumerate(zip(*files, strict=True)):
                texts = (line.rstrip("\r\n") for line in lines)
                yield f"{paths[0]}: line {number + 1}", dict(zip(columns, texts, strict=True))
        except UnicodeDecodeError as error:
            raise DataError(f"{folder}: {split}: not UTF-8 ({error.reason}); save its files as UTF-8") from None
        except ValueError:
            counts = ", ".join(f"{path.name} {_count_lines(path)}" for path in paths)
            raise DataError(f"{folder}: the files of split {split} have unlike numbers of lines: {counts}") from None


def _count_lines(path: Path) -> int:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        return sum(1 for _ in file)


def _hub_rows(hub_name: str, split: str) -> Iterator[Located]:
    rows = _load_hub(hub_name, split)
    for number, row in enumerate(rows):
        yield f"{HUB_PREFIX}{hub_name}: {split}[{number}]", dict(row)


def class_label_names(entry: Entry) -> tuple[str, ...]:
    """What the features of a hub data set call the classes of its label; nothing where they do not say."""
    if not entry.dataset.startswith(HUB_PREFIX):
        return ()
    features = _load_hub(entry.dataset.removeprefix(HUB_PREFIX), entry.splits[0]).features or {}
    return tuple(getattr(features.get(entry.label), "names", None) or ())


def _load_hub(hub_name: str, split: str) -> Any:
    import datasets

    name, _, config = hub_name.partition("@")
    try:
        rows = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # `datasets` raises many kinds: network, missing, malformed
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{HUB_PREFIX}{hub_name}: split {split!r} cannot be loaded with `datasets` (NAME, or NAME@CONFIG): {reason}"
        ) from None
    return as_written(rows, name, config or None, split, file_rows)[0]
