"""Names of classes: which of two lists' names are the same, and which names are numbers.

Case, spaces, dashes and underscores make no difference ("Not entailment" is not_entailment), unless a list has two names
that only they tell apart.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
_BOOLEANS = {"false": False, "true": True}


def folded(name: str) -> str:
    """A name without what people write differently."""
    return re.sub(r"[\s_-]+", "_", name.strip().casefold()) if _NUMBER.fullmatch(name) is None else name


@functools.cache
def _by_name(labels: tuple[str, ...]) -> dict[str, int]:
    plain = [folded(label) for label in labels]
    loose = {name: place for place, name in enumerate(plain) if plain.count(name) == 1}
    return {**loose, **{label: place for place, label in enumerate(labels)}}


def place_of(name: str, labels: Sequence[str]) -> int | None:
    """Where a name stands among labels; None where it does not."""
    known = _by_name(tuple(labels))
    found = known.get(name)
    return known.get(folded(name)) if found is None else found


def places_of(names: Sequence[str], labels: Sequence[str]) -> tuple[int, ...] | None:
    """Where all of these names stand among labels, each in a place of its own; None where one does not."""
    found = [place_of(name, labels) for name in names]
    places = tuple(place for place in found if place is not None)
    return places if len(set(places)) == len(names) else None


def shared(names: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The names that stand among labels too."""
    return [name for name in names if place_of(name, labels) is not None]


def as_number(text: str) -> float | None:
    """The number that a text is; or None."""
    return float(text) if _NUMBER.fullmatch(text) else None


@functools.cache
def numbers_of(labels: tuple[str, ...]) -> dict[float, int]:
    """The places of the labels whose names are numbers."""
    found = ((as_number(label), place) for place, label in enumerate(labels))
    return {number: place for number, place in found if number is not None}


@functools.cache
def booleans_of(labels: tuple[str, ...]) -> dict[bool, int]:
    """The places of the labels true and false, where there are both."""
    found = {_BOOLEANS[name]: place for place, label in enumerate(labels) if (name := label.casefold()) in _BOOLEANS}
    return found if len(found) == len(_BOOLEANS) else {}


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names for a message, the first of many."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
