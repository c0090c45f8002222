"""What a row's target may be, and the numbers that training and metrics compare a prediction with.

Knows nothing of files, tokens or models. A target becomes a float vector: a distribution over the labels (binary and
multi-class), a probability for each label (multi-label), or one number (regression).
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workflow.data.sources import Row
from workflow.errors import did_you_mean

KEY = "target"
SUM_TOLERANCE = 1e-3
NUMBERS_IN_TEXT = "a number in [{low:g}, {high:g}]"
LARGEST = 3.4028234e38
"""Of fp32, in which models compute."""
ROUNDING = 1e-6
"""How far outside [0, 1] a predicted probability may lie."""
_LAST_DIGITS = 1e-9
"""By which a share may leave [0, 1] when a prediction at an end of the range is read back."""
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")


class _UnfitError(ValueError):
    """Why a target cannot be used; ends in what to do."""


@dataclass(frozen=True)
class Targets:
    """Reads targets. `problem` is binary, multiclass, multilabel or regression; binary ones lie in [low, high].

    `from_text` accepts numbers written as texts, which is all that CSV and TSV files can hold.
    """

    problem: str = "binary"
    labels: tuple[str, ...] = ("no", "yes")
    low: float = 0.0
    high: float = 1.0
    from_text: bool = False

    @property
    def width(self) -> int:
        """Numbers in a target's vector."""
        return 1 if self.problem == "regression" else len(self.labels)

    def problem_of(self, row: Row) -> str | None:
        """What is wrong with a row's target, or None."""
        if KEY not in row:
            return f'missing "{KEY}" (the row has {", ".join(map(json.dumps, row)) or "no keys"})'
        try:
            self.vector(row[KEY])
        except _UnfitError as reason:
            return f'"{KEY}" {reason}'
        return None

    def vector(self, value: Any) -> list[float]:
        """The target as `width` numbers. Raises ValueError, saying what to do, for values that are none."""
        if self.problem == "binary":
            share = (self._number(value, self._binary_hint()) - self.low) / (self.high - self.low)
            if -_LAST_DIGITS <= share <= 1 + _LAST_DIGITS:
                share = min(max(share, 0.0), 1.0)
            else:
                raise _UnfitError(
                    f"is {_shown(value)}, outside [{self.low:g}, {self.high:g}]; --target_range LOW HIGH sets another range"
                )
            return [1.0 - share, share]
        if self.problem == "regression":
            number = self._number(value, "must be a number")
            if abs(number) > LARGEST:
                raise _UnfitError(f"is {_shown(value)}, more than a model's numbers (fp32) hold; scale the targets")
            return [number]
        return self._distribution(value) if self.problem == "multiclass" else self._set(value)

    def prediction(self, vector: Sequence[float]) -> Any:
        """A predicted vector as prediction files show it: a number in the targets' own range, or one a label."""
        if self.problem == "binary":
            return self.low + (self.high - self.low) * vector[1]
        return vector[0] if self.problem == "regression" else [*vector]

    def from_prediction(self, value: Any) -> list[float]:
        """The vector behind a prediction file's value. Raises ValueError where it is none."""
        if self.problem in ("multiclass", "multilabel"):
            if not isinstance(value, list) or len(value) != self.width:
                raise _UnfitError(f"must be a list of {self.width} numbers, not {_shown(value)}")
            vector = [self._number(part, "must hold numbers") for part in value]
            if min(vector) < -ROUNDING or max(vector) > 1 + ROUNDING:
                raise _UnfitError(f"{_shown(value)}: probabilities lie in [0, 1]; are these logits?")
            return vector
        return self.vector(value)

    def typed(self, value: Any) -> Any:
        """A good target as JSON holds it: numbers that were written as texts become numbers, or their labels' names."""
        if not isinstance(value, str):
            return value
        return self.labels[self._index(value)] if self.problem == "multiclass" else float(value)

    def _binary_hint(self) -> str:
        return f"must be {NUMBERS_IN_TEXT.format(low=self.low, high=self.high)}"

    def _number(self, value: Any, wanted: str) -> float:
        if isinstance(value, str) and self.from_text:
            try:
                value = float(value)
            except ValueError:
                raise _UnfitError(f"{wanted}, not {_shown(value)}") from None
        if isinstance(value, str):
            hint = "write 1 for yes and 0 for no, or name three or more classes with --labels NAME..."
            raise _UnfitError(f"{wanted}, not the text {_shown(value)}; {hint}")
        if not isinstance(value, (int, float)):  # True and False count as 1 and 0
            advice = ": write a number, or take the row out" if value is None else ""
            raise _UnfitError(f"{wanted}, not {_shown(value)}{advice}")
        try:
            number = float(value)
        except OverflowError:  # an integer of more than 300 digits
            number = math.inf
        if not math.isfinite(number):
            shown = value if isinstance(value, float) else _shown(value)
            raise _UnfitError(f"is {shown}; {wanted}: take the row out, or give it a number")
        return number

    def _index(self, value: Any) -> int:
        """The number of the label that a value names: by its name, which may be a number; else by its place."""
        if isinstance(value, str) and value in self.labels:
            return self.labels.index(value)
        named = _numbers(self.labels)
        known = named or dict(enumerate(range(len(self.labels))))
        number = value
        if isinstance(value, str):
            number = _as_number(value) if self.from_text else None
        if isinstance(number, (int, float)) and not isinstance(number, bool) and number in known:
            return known[number]
        hint = did_you_mean(value, self.labels) if isinstance(value, str) else ""
        places = "" if named else f", numbered 0 to {len(self.labels) - 1}"
        raise _UnfitError(f"{_shown(value)} is no label{hint}; --labels has {', '.join(self.labels)}{places}")

    def _distribution(self, value: Any) -> list[float]:
        if isinstance(value, dict):
            vector = [0.0] * len(self.labels)
            for name, share in value.items():
                vector[self._index(name)] = self._number(share, "must hold probabilities")
        elif isinstance(value, list):
            vector = [self._number(share, "must hold probabilities") for share in value]
            if len(vector) != len(self.labels):
                raise _UnfitError(f"holds {len(vector)} probabilities; --labels has {len(self.labels)}")
        else:
            vector = [0.0] * len(self.labels)
            vector[self._index(value)] = 1.0
        total = sum(vector)
        if min(vector) < 0 or abs(total - 1) > SUM_TOLERANCE:
            raise _UnfitError(f"{_shown(value)} is no distribution: shares are not negative and sum to 1")
        return [share / total for share in vector]

    def _set(self, value: Any) -> list[float]:
        numeric = isinstance(value, list) and value and not any(isinstance(part, str) for part in value)
        if numeric and len(value) == len(self.labels):
            vector = [self._number(share, "must hold numbers in [0, 1]") for share in value]
            if min(vector) < 0 or max(vector) > 1:
                raise _UnfitError(f"{_shown(value)}: each label's number lies in [0, 1]")
            return vector
        if not isinstance(value, list):
            raise _UnfitError(
                f"must be a list of labels, or of {len(self.labels)} numbers in [0, 1], not {_shown(value)}"
            )
        vector = [0.0] * len(self.labels)
        for name in value:
            vector[self._index(name)] = 1.0
        return vector


@functools.cache
def _numbers(labels: tuple[str, ...]) -> dict[float, int]:
    """The places of the labels whose names are numbers."""
    found = ((_as_number(label), place) for place, label in enumerate(labels))
    return {number: place for number, place in found if number is not None}


def _as_number(text: str) -> float | None:
    """The number that a label's name, or a text of a CSV file, is; or None."""
    return float(text) if _NUMBER.fullmatch(text) else None


def _shown(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)[:60]
