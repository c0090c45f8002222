"""`workflow compare`: every pair of runs tested for a difference that chance does not explain.

Knows nothing of how predictions are read or how the test works. Where studies are given, each side has several seeds:
those that both sides have are compared, and a row's predictions of all seeds are exchanged together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from workflow.errors import ConfigError
from workflow.evaluation.comparison import Comparison, compare_pairs, holm
from workflow.results.prediction_sets import PredictionSet, rows_of
from workflow.results.sheets import UNDEFINED, Sheet, shown
from workflow.results.sides import Side

SEVERAL = "p-values of each metric are Holm-corrected over all pairs"


@dataclass(frozen=True)
class Tested:
    """A pair of sides, how many seeds it was compared on, the test, and its p-value corrected for the number of pairs."""

    first: str
    second: str
    num_runs: int
    test: Comparison
    p_holm: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        named = {"first": self.first, "second": self.second, "runs": self.num_runs, "p_holm": self.p_holm}
        test = self.test.as_json()
        return {**named, "first_value": test.pop("first"), "second_value": test.pop("second"), **test}


def all_pairs(
    sides: Sequence[Side], found: PredictionSet, metrics: Sequence[str], *, num_rounds: int, seed: int
) -> list[Tested]:
    """All pairs of sides in each metric, in order of the sides."""
    every: list[Tested] = []
    for metric in metrics:
        tested = [_tested(first, second, found, metric, num_rounds, seed) for first, second in combinations(sides, 2)]
        corrected = holm([one.test.p_value for one in tested])
        every += [replace(one, p_holm=value) for one, value in zip(tested, corrected, strict=True)]
    return every


def _tested(first: Side, second: Side, found: PredictionSet, metric: str, num_rounds: int, seed: int) -> Tested:
    seeds = shared_seeds(first, second)
    rows = rows_of(found, metric, first.part_key, first.part)
    pairs = [found.pair(metric, first.files[one], second.files[two], rows) for one, two in seeds]
    test = compare_pairs(metric, pairs, len(rows), seed=seed, num_rounds=num_rounds)
    return Tested(first.name, second.name, len(seeds), test)


def shared_seeds(first: Side, second: Side) -> list[tuple[str, str]]:
    """The seeds that both sides have, as pairs; one run a side is a pair whatever its seed. Raises ConfigError."""
    if first.part != second.part:
        raise ConfigError(f"{first.name} is measured on {first.part}, {second.name} on {second.part}: unlike eval rows")
    if len(first.files) == len(second.files) == 1:
        return [(next(iter(first.files)), next(iter(second.files)))]
    shared = [seed for seed in first.files if seed in second.files]
    if not shared:
        seeds = (", ".join(side.files) or "none" for side in (first, second))
        raise ConfigError("{} and {} share no seed: {} and {}".format(first.name, second.name, *seeds))
    return [(seed, seed) for seed in shared]


def notes_of(sides: Sequence[Side]) -> list[str]:
    """What was left out of the comparison."""
    notes = [note for side in sides for note in side.notes]
    for first, second in combinations(sides, 2):
        alone = {*first.files} ^ {*second.files}
        if alone and len(first.files) + len(second.files) > 2:
            notes.append(
                f"{first.name} and {second.name}: seeds that one side alone has are left out ({', '.join(sorted(alone))})"
            )
    return notes


def comparison_sheet(tested: Sequence[Tested], *, num_rounds: int, notes: Sequence[str]) -> Sheet:
    """A row a pair and metric."""
    corrected = len({(one.first, one.second) for one in tested}) > 1
    head = (
        "A",
        "B",
        "metric",
        "A's",
        "B's",
        "A \u2212 B",
        "95 % interval",
        "p",
        *(["p, Holm"] if corrected else []),
        "runs",
    )
    rows = tuple(_texts(one, corrected=corrected) for one in tested)
    title = f"Paired approximate randomisation, {num_rounds} rounds, {tested[0].test.n} rows"
    reasons = dict.fromkeys(f"{one.test.metric}: {one.test.reason}" for one in tested if one.test.reason)
    return Sheet(title, head, rows, 3, (*([SEVERAL] if corrected else []), *notes, *reasons))


def _texts(one: Tested, *, corrected: bool) -> tuple[str, ...]:
    test = one.test
    values = [shown(test.metric, value) for value in (test.first, test.second, test.difference)]
    interval = (
        " to ".join(shown(test.metric, value) for value in (test.low, test.high)) if test.low is not None else UNDEFINED
    )
    p_values = [test.p_value, *([one.p_holm] if corrected else [])]
    told = ["-" if value is None else f"{value:.2g}" for value in p_values]
    return (one.first, one.second, test.metric, *values, interval, *told, str(one.num_runs))
