"""Writes the mount's data file `{"train": [...], "eval": [...]}` of registered data sets, in bounded memory.

Knows nothing of models. The same entries and data give the same bytes, so that the file's hash names its content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workflow.data.examples import encode_row
from workflow.data.registry_rows import NORMAL, Survey, made_rows
from workflow.data.sources import Row
from workflow.errors import DataError
from workflow.files import whole_file

BLOCK = 1 << 20


@dataclass(frozen=True)
class Made:
    """A data file to be: the surveyed entries to learn from and to measure on, which agree in their classes."""

    train: tuple[Survey, ...]
    eval: tuple[Survey, ...]
    model_type: str = NORMAL

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of their classes; none for numbers."""
        return (self.train or self.eval)[0].labels

    @property
    def problem(self) -> str:
        """binary, multiclass or regression."""
        return (self.train or self.eval)[0].entry.problem

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of train or eval, entry after entry."""
        surveys, place = (self.train, 0) if split == "train" else (self.eval, 1)
        for found in surveys:
            classes = {label: number for number, label in enumerate(found.labels)}
            yield from made_rows(found.entry, found.entry.splits[place], classes, self.model_type)


def make(train: Sequence[Survey], evaluation: Sequence[Survey], model_type: str = NORMAL) -> Made:
    """Joins entries. Raises DataError where they have not the same classes."""
    first, *others = dict.fromkeys(found.entry.key for found in (*train, *evaluation))
    by_key = {found.entry.key: found for found in (*train, *evaluation)}
    for key in others:
        one, other = by_key[first], by_key[key]
        if one.entry.classes != other.entry.classes:
            raise DataError(f"{first} and {key} cannot be joined: they have {_classes(one)} and {_classes(other)}")
        # Labels that the registry gives both sets in the order of their classes mean the same by their places.
        named = one.entry.labels and other.entry.labels
        if one.labels != other.labels and not named:
            raise DataError(
                f"{first} and {key} cannot be joined: their labels are {', '.join(one.labels)} and {', '.join(other.labels)}; "
                'give both "labels" in the registry, in the same order of classes'
            )
    return Made(tuple(train), tuple(evaluation), model_type)


def _classes(found: Survey) -> str:
    return f"{found.entry.classes} classes" if found.entry.classes else "numbers"


def write_once(made: Made, path: Path, *, overwrite: bool = False) -> bool:
    """Writes the file, whole or not at all, unless it is there already; says whether it did.

    Raises DataError for a file that holds something else, unless `overwrite`.
    """
    if path.is_file() and not overwrite:
        if hash_of_file(path) != hash_of(made):
            raise DataError(f"{path}: holds something else; --overwrite replaces it, or choose another --out")
        return False
    with whole_file(path) as file:
        file.writelines(_made_pieces(made))
    return True


def write_eval(rows: Iterable[Row], path: Path) -> int:
    """Writes rows to be scored alone, `{"eval": [...]}`; gives their number."""
    number = 0

    def counted() -> Iterator[Row]:
        nonlocal number
        for row in rows:
            number += 1
            yield row

    with whole_file(path) as file:
        file.writelines(_pieces(("eval", counted())))
    return number


def hash_of(made: Made) -> str:
    """sha256 of the file that `write_once` would write."""
    digest = hashlib.sha256()
    for text in _made_pieces(made):
        digest.update(text.encode())
    return digest.hexdigest()


def hash_of_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _made_pieces(made: Made) -> Iterator[str]:
    return _pieces(("train", made.rows("train")), ("eval", made.rows("eval")))


def _pieces(*splits: tuple[str, Iterable[Row]]) -> Iterator[str]:
    """The file's text, a row a line."""
    yield "{"
    for place, (split, rows) in enumerate(splits):
        yield f'{"," if place else ""}\n"{split}": ['
        for number, row in enumerate(rows):
            yield f"{',' if number else ''}\n{encode_row(row).decode()}"
        yield "\n]"
    yield "\n}\n"
