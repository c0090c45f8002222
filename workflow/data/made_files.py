"""Writes the mount's data file `{"train": [...], "eval": [...]}` of registered data sets, in bounded memory.

Knows nothing of models. The same entries and data give the same bytes, so that the file's hash names its content.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workflow.data.class_names import KEY, NAME_KEY
from workflow.data.examples import encode_row
from workflow.data.registry_rows import NORMAL, Survey, made_rows
from workflow.data.sources import Row
from workflow.errors import DataError
from workflow.files import whole_file
from workflow.label_names import place_of, places_of

BLOCK = 1 << 20
_WHOLE = re.compile(r"0|-?[1-9]\d{0,15}")


@dataclass(frozen=True)
class Made:
    """A data file to be: the surveyed entries to learn from and to measure on, which agree in their classes."""

    train: tuple[Survey, ...]
    eval: tuple[Survey, ...]
    model_type: str = NORMAL

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called, in their order; nothing for numbers."""
        return (self.train or self.eval)[0].names

    @property
    def problem(self) -> str:
        """binary, multiclass or regression."""
        return (self.train or self.eval)[0].entry.problem

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of train or eval, entry after entry."""
        surveys, place = (self.train, 0) if split == "train" else (self.eval, 1)
        for found in surveys:
            said = list(self._classes())
            places = _places(found, self.names)
            assert places is not None, "`make` has looked"
            classes = {label: said[place] for label, place in zip(found.labels, places, strict=True)}
            yield from made_rows(found.entry, found.entry.splits[place], classes, self.model_type)

    def _classes(self) -> Iterator[Row]:
        """What a row says of each class: its number, which is its name where all names are numbers, and its name."""
        are_numbers = self.problem == "multiclass" and all(_WHOLE.fullmatch(name) for name in self.names)
        are_places = self.names == tuple(map(str, range(len(self.names))))
        for place, name in enumerate(self.names):
            yield {KEY: int(name) if are_numbers else place, **({} if are_places else {NAME_KEY: name})}


def make(train: Sequence[Survey], evaluation: Sequence[Survey], model_type: str = NORMAL) -> Made:
    """Joins entries: labels of the same names are one class, those of other names by their places in the registry.

    Raises DataError where they have not the same classes.
    """
    first, *others = dict.fromkeys(found.entry.key for found in (*train, *evaluation))
    by_key = {found.entry.key: found for found in (*train, *evaluation)}
    for key in others:
        one, other = by_key[first], by_key[key]
        if one.entry.classes != other.entry.classes:
            raise DataError(f"{first} and {key} cannot be joined: they have {_classes(one)} and {_classes(other)}")
        if _places(other, one.names) is None:
            raise DataError(
                f"{first} and {key} cannot be joined: their labels are {', '.join(one.labels)} and {', '.join(other.labels)}; "
                'give both "labels" in the registry: the same names, or names in the same order of classes'
            )
    return Made(tuple(train), tuple(evaluation), model_type)


def _places(found: Survey, names: tuple[str, ...]) -> tuple[int, ...] | None:
    """The class of each of an entry's labels among these names; None where they do not say it.

    Labels of other names mean the same by their places where the registry gives them, in the order of their classes.
    """
    by_name, in_order = places_of(found.names, names), tuple(range(len(names)))
    if by_name is not None:
        return by_name
    apart = any(place_of(name, names) not in (None, place) for place, name in enumerate(found.names))
    return in_order if found.entry.labels and not apart else None


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
