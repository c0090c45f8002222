"""Finds the added tokens that completions hold, how often, and the blanks beside them in the texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from workflow.data.features import Features, IntArray
from workflow.data.sources import Row

MOST_ROWS = 2000
"""Rows of a split whose texts are looked at."""
ROWS_PER_LOOK = 100_000
COMPLETION = "completion"


@dataclass
class Held:
    """Rows of a split by the token that their completions hold; the first of them all; rows with an end inside."""

    rows: Counter[int] = field(default_factory=Counter)
    first: list[int] = field(default_factory=list)
    ends_inside: int = 0


def held_tokens(features: Features, tokens: Collection[int], *, ends: Collection[int]) -> Held:
    """Looks for tokens in the completions of a split, and for ends that something follows."""
    found = Held()
    for rows, numbers in _occurrences(features, tokens):
        pairs = np.unique(np.stack([numbers, rows]), axis=1)
        found.rows.update(dict(zip(*(part.tolist() for part in np.unique(pairs[0], return_counts=True)), strict=True)))
        found.first += np.unique(rows)[: MOST_ROWS - len(found.first)].tolist()
    for rows, _ in _occurrences(features, ends, inside=True):
        found.ends_inside += len(np.unique(rows))
    return found


def _occurrences(
    features: Features, tokens: Collection[int], *, inside: bool = False
) -> Iterator[tuple[npt.NDArray[np.integer], IntArray]]:
    """(rows, tokens) of some rows at a time, wherever one of the tokens stands; `inside`: before one that is none of them."""
    wanted = np.array(sorted(tokens), dtype=np.int32)
    for first in range(0, len(features), ROWS_PER_LOOK):
        ids, starts = features.block(COMPLETION, first, first + ROWS_PER_LOOK)
        places = np.flatnonzero(np.isin(ids, wanted))
        rows = np.searchsorted(starts, places, side="right") - 1
        if inside:
            rows, places = rows[kept := places != starts[rows + 1] - 1], places[kept]
            rows, places = rows[kept := ~np.isin(ids[places + 1], wanted)], places[kept]
        if len(places):
            yield rows + first, ids[places]


def written_out(rows: Sequence[Row], numbers: Sequence[int], text: str) -> bool:
    """Whether any of these rows' completions holds a text."""
    return any(text in rows[number][COMPLETION] for number in numbers)


def blanks_beside(
    texts: Iterator[str], marks: Collection[str]
) -> Mapping[str, tuple[str | None, str | None, str | None]]:
    """For each mark the blanks before it, behind it, and between it and a next one; None where they are not always the same."""
    seen: dict[str, tuple[set[str], set[str], set[str]]] = {mark: (set(), set(), set()) for mark in marks}
    pattern = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))))
    for text in texts:
        found, parts = pattern.findall(text), pattern.split(text)
        for place, part in enumerate(parts):
            blank = not part.strip()
            if blank and 0 < place < len(found):
                seen[found[place - 1]][2].add(part)
            elif not blank:
                if place:
                    seen[found[place - 1]][1].add(part[: len(part) - len(part.lstrip())])
                if place < len(found):
                    seen[found[place]][0].add(part[len(part.rstrip()) :])
    return {mark: (_only(before), _only(after), _only(between)) for mark, (before, after, between) in seen.items()}


def _only(values: set[str]) -> str | None:
    return next(iter(values)) if len(values) == 1 else None
