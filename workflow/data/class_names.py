"""The names that a data set gives its classes, and the label that each class is for a run.

A row says a class's name beside its number: `{"target": 0, "target_name": "entailment"}`. Made data sets do, so that their
rows fit any model that knows the same names, whatever the order of its labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from workflow.data.sources import Row
from workflow.errors import DataError
from workflow.label_names import as_number, listed, places_of, shared

KEY = "target"
LABEL_KEY = "label"
"""Read where a row has no `target`: what data sets of other programs call it."""
UNLABELLED = -1
"""The `label` of rows without one, as in GLUE's test splits on the hub."""
NAME_KEY = "target_name"
"""Beside a number: the name of the class that it stands for."""


def target_of(row: Row) -> Any:
    """A row's `target`, else its `label`; None where it has neither."""
    return row[KEY] if KEY in row else row.get(LABEL_KEY)


def has_target(row: Row) -> bool:
    """Whether a row has a `target`, or a `label`."""
    return KEY in row or LABEL_KEY in row


@dataclass(frozen=True)
class ClassNames:
    """The name of each number that stands for a class, by number; none where the rows do not say."""

    numbers: tuple[float, ...] = ()
    names: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.names)

    def name(self, number: float) -> str | None:
        """The name of the class of this number."""
        return dict(zip(self.numbers, self.names, strict=True)).get(number)

    def places(self, labels: tuple[str, ...]) -> dict[float, int]:
        """The place of each number's label: by name, or in the numbers' order where no name is among the labels.

        Raises DataError where that leaves a class without a label.
        """
        by_name = places_of(self.names, labels)
        if by_name is not None:
            return dict(zip(self.numbers, by_name, strict=True))
        if known := shared(self.names, labels):
            unknown = [name for name in self.names if name not in known]
            raise DataError(
                f"the data's classes are {listed(self.names)}, of which {listed(unknown)} is no label; "
                f"--labels has {listed(labels)}"
            )
        are_places = not self._are_numbers and all(number in range(len(labels)) for number in self.numbers)
        if not are_places and len(self.numbers) != len(labels):
            raise DataError(
                f"the data's {len(self.names)} classes ({listed(self.names)}) cannot be read in the order of the "
                f"{len(labels)} labels {listed(labels)}; name them by --labels"
            )
        return {number: int(number) if are_places else place for place, number in enumerate(self.numbers)}

    @property
    def _are_numbers(self) -> bool:
        """Whether each class is called by its number."""
        return all(as_number(name) == number for name, number in zip(self.names, self.numbers, strict=True))

    def note(self, labels: tuple[str, ...]) -> str | None:
        """What to tell of classes whose labels have other names, or None."""
        if not self or places_of(self.names, labels) is not None:
            return None
        pairs = [f"{self.name(number)} is {labels[place]}" for number, place in self.places(labels).items()]
        return f"the data's classes have other names than the labels, and are read in their order: {listed(pairs)}"

    def problem(self, row: Row) -> str | None:
        """Why a row's own name for its class contradicts these, or None."""
        name, number = row.get(NAME_KEY), _number(target_of(row))
        if name is None or (number is not None and self.name(number) == name):
            return None
        return (
            f'"{NAME_KEY}" is {name!r} beside the "{KEY}" {target_of(row)!r}, which is '
            f"{self.name(number)!r} in this data set"
            if number is not None and self.name(number) is not None
            else f'"{NAME_KEY}" is {name!r}, and the first row of the data has none: give it to all rows or to none'
        )


NO_NAMES = ClassNames()


def is_unlabelled(row: Row) -> bool:
    """Whether a row says by its `label` that it has none."""
    return KEY not in row and NAME_KEY not in row and row.get(LABEL_KEY, 0) in (UNLABELLED, str(UNLABELLED))


def class_names(rows: Iterable[Row]) -> ClassNames:
    """What rows call their classes; nothing where the first row with a target does not say.

    Raises DataError where a number has two names, or a name two numbers.
    """
    found: dict[float, str] = {}
    for row in rows:
        name, number = row.get(NAME_KEY), _number(target_of(row))
        if not isinstance(name, str) or number is None:
            if found or not has_target(row) or is_unlabelled(row):
                continue
            return NO_NAMES
        if found.setdefault(number, name) != name:
            raise DataError(f'"{KEY}" {number} is called {found[number]!r} in one row and {name!r} in another')
    numbers = tuple(sorted(found))
    names = tuple(found[number] for number in numbers)
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f'two values of "{KEY}" are called {twice[0]!r} ("{NAME_KEY}")')
    return ClassNames(numbers, names)


def _number(value: Any) -> float | None:
    """A target that is a number, also as a text of a CSV file; else None."""
    if isinstance(value, str):
        return as_number(value)
    return value if isinstance(value, int | float) else None
