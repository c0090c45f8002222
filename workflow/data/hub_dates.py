"""Dates that `datasets` makes of texts: pyarrow's reader of JSON takes every text that looks like one for a date.

The texts themselves are in the files alone, and are taken from there where these are on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Reader = Callable[[Path], Iterator[tuple[str | None, Row]]]
"""Gives the rows of a file, each with the split that it says, if any."""
JSON = "json"
SUFFIXES = (".json", ".jsonl")


@dataclass(frozen=True)
class OfFiles:
    """Rows as their files have them; can be passed over again and again."""

    files: tuple[Path, ...]
    read: Reader

    def __iter__(self) -> Iterator[Row]:
        for file in self.files:
            for _, row in self.read(file):
                yield row


def as_written(rows: Any, name: str, config: str | None, split: str, read: Reader) -> tuple[Iterable[Row], list[str]]:
    """The rows of a split, with the texts of its files in the place of dates where `read` can give them; and a note where not."""
    info = getattr(rows, "info", None)
    if info is None or info.builder_name != JSON:
        return rows, []
    dates = [field.name for field in rows.features.arrow_schema if _has_dates(field.type)]
    if not dates:
        return rows, []
    whole = OfFiles(_files_here(name, config, split), read)
    if whole.files and sum(1 for _ in whole) == len(rows):
        return whole, []
    told = ", ".join(f'"{column}"' for column in dates)
    return rows, [f"`datasets` made dates of the texts of {told}, and they may be written otherwise in the files"]


def _files_here(name: str, config: str | None, split: str) -> tuple[Path, ...]:
    """The files of a split in a local folder; none where they are elsewhere, or are no plain JSON."""
    import datasets

    if not Path(name).exists():
        return ()
    found = datasets.load_dataset_builder(name, config).config.data_files or {}
    files = tuple(Path(file) for file in found.get(split, ()))
    return files if all(file.suffix in SUFFIXES and file.is_file() for file in files) else ()


def _has_dates(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_temporal(kind):
        return True
    if types.is_struct(kind):
        return any(_has_dates(field.type) for field in kind)
    return (types.is_list(kind) or types.is_large_list(kind)) and _has_dates(kind.value_type)
