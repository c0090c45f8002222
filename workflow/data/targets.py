"""What a row's target may be, and the numbers that training and metrics compare a prediction with.

A target becomes a float vector: a distribution over the labels (binary and multi-class), a probability for each label
(multi-label), or one number (regression). Which class a target means:

    a text                               the label of this name
    a number in data with class names    the label of that class's name, whatever the labels' order (`class_names`)
    a number where labels are numbers    the label of this name: of the labels 1 2 3 4 5, 1 is the first
    true, false                          the labels of these names, else yes and no of binary targets
    any other number                     the label in this place; of binary targets, the share of the second label
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workflow.data.class_names import (
    KEY,
    LABEL_KEY,
    NAME_KEY,
    NO_NAMES,
    UNLABELLED,
    ClassNames,
    has_target,
    is_unlabelled,
    target_of,
)
from workflow.data.sources import Row
from workflow.errors import DataError, did_you_mean
from workflow.label_names import as_number, booleans_of, listed, numbers_of, place_of

SUM_TOLERANCE = 1e-3
NUMBERS_IN_TEXT = "a number in [{low:g}, {high:g}]"
LARGEST = 3.4028234e38
"""Of fp32, in which models compute."""
ROUNDING = 1e-6
"""How far outside [0, 1] a predicted probability may lie."""
_LAST_DIGITS = 1e-9
"""By which a share may leave [0, 1] when a prediction at an end of the range is read back."""


class _UnfitError(ValueError):
    """Why a target cannot be used; ends in what to do."""


@dataclass(frozen=True)
class Targets:
    """Reads targets. `problem` is binary, multiclass, multilabel or regression; binary ones lie in [low, high].

    `from_text` accepts numbers written as texts, which is all that CSV and TSV files can hold; `names` are what the data
    set calls the classes that its numbers stand for.
    """

    problem: str = "binary"
    labels: tuple[str, ...] = ("no", "yes")
    low: float = 0.0
    high: float = 1.0
    from_text: bool = False
    names: ClassNames = NO_NAMES

    @property
    def width(self) -> int:
        """Numbers in a target's vector."""
        return 1 if self.problem == "regression" else len(self.labels)

    def problem_of(self, row: Row) -> str | None:
        """What is wrong with a row's target, or None."""
        if not has_target(row):
            return f'missing "{KEY}" (the row has {", ".join(map(json.dumps, row)) or "no keys"})'
        if self.has_classes and (contradiction := self.names.problem(row)):
            return contradiction
        try:
            self.of(row)
        except _UnfitError as reason:
            return f'"{KEY if KEY in row else LABEL_KEY}" {reason}'
        return None

    def of(self, row: Row) -> list[float]:
        """A row's target as `width` numbers. Raises ValueError where it is none."""
        return self.vector(target_of(row))

    def leaves_out(self, row: Row) -> bool:
        """Whether a row has no label, as its `label` -1 says where no label is called so."""
        return is_unlabelled(row) and self.has_classes and place_of(str(UNLABELLED), self.labels) is None

    def vector(self, value: Any) -> list[float]:
        """The target as `width` numbers. Raises ValueError, saying what to do, for values that are none."""
        if self.problem == "binary":
            return self._two(value)
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
            if isinstance(value, dict):
                return self._filled(value)
            if not isinstance(value, list) or len(value) != self.width:
                raise _UnfitError(f"must be a list of {self.width} numbers, not {_shown(value)}")
            vector = [self._number(part, "must hold numbers") for part in value]
            if min(vector) < -ROUNDING or max(vector) > 1 + ROUNDING:
                raise _UnfitError(f"{_shown(value)}: probabilities lie in [0, 1]; are these logits?")
            return vector
        return self._share(value) if self.problem == "binary" else self.vector(value)

    def _filled(self, likeliest: dict[str, Any]) -> list[float]:
        """A vector of the likeliest labels' numbers; of a distribution, what is missing from 1 is the others' alike."""
        vector = [0.0] * self.width
        given = {self._index(name): self._number(share, "must hold numbers") for name, share in likeliest.items()}
        rest = max(0.0, 1 - sum(given.values())) / max(1, self.width - len(given))
        if self.problem == "multiclass":
            vector = [rest] * self.width
        for place, share in given.items():
            vector[place] = share
        return vector

    def typed(self, row: Row) -> Row:
        """A good row whose target means the same in any data set: numbers in texts are numbers, classes have their labels' names."""
        value = target_of(row)
        is_class = self.problem == "multiclass" and not isinstance(value, list | dict)
        if is_class:
            value = self.labels[self._index(value)]
        elif self.problem == "binary" and (isinstance(value, str) or self.names):
            value = self.target(self.prediction(self.vector(value)))
        elif isinstance(value, str):
            value = float(value)
        left_out = (NAME_KEY,) if KEY in row else (NAME_KEY, LABEL_KEY)
        return {**{key: part for key, part in row.items() if key not in left_out}, KEY: value}

    def target(self, prediction: Any) -> Any:
        """A prediction file's value as a row's target: where two labels are numbers, a share would be read as one of them."""
        if isinstance(prediction, dict):
            total = sum(prediction.values()) if self.problem == "multiclass" else 1.0
            return {name: share / total for name, share in prediction.items()}
        numbers = numbers_of(self.labels)
        if self.problem != "binary" or self._has_range or len(numbers) < 2 or numbers == {0: 0, 1: 1}:
            return prediction
        return dict(zip(self.labels, self._share(prediction), strict=True))

    @property
    def has_classes(self) -> bool:
        """Whether a target is one of the labels."""
        return self.problem in ("binary", "multiclass")

    @property
    def _has_range(self) -> bool:
        return (self.low, self.high) != (0.0, 1.0)

    def _two(self, value: Any) -> list[float]:
        """A binary target: a class by its name, the share of the second class, or a distribution by names."""
        if isinstance(value, dict):
            return self._distribution(value)
        if (named_number := self._named_number(value)) is not None and not self._has_range:
            return self._one_hot(self._places[named_number])
        if isinstance(value, str):
            if (place := place_of(value, self.labels)) is not None:
                return self._one_hot(place)
            if not self.from_text:
                raise _UnfitError(self._no_label(value))
            number = as_number(value)
            value = value if number is None else number
        if isinstance(value, bool) and (named := booleans_of(self.labels)):
            return self._one_hot(named[value])
        if self.names and not self._has_range:
            share = self._share(value)
            return share if self._first_place == 0 else share[::-1]
        numbers = numbers_of(self.labels)
        if len(numbers) == 2 and numbers != {0: 0, 1: 1} and not self._has_range:
            if isinstance(value, int | float) and value in numbers:
                return self._one_hot(numbers[value])
            raise _UnfitError(self._no_label(value))
        return self._share(value)

    @property
    def _first_place(self) -> int:
        """The place of the class that a binary data set writes as 0."""
        if not {*self.names.numbers} <= {0, 1}:
            numbers = listed(f"{number:g}" for number in self.names.numbers)
            raise _UnfitError(f"is none of the numbers of the classes {listed(self.names.names)}, which are {numbers}")
        return self._places[0] if 0 in self._places else 1 - self._places[1]

    @functools.cached_property
    def _places(self) -> dict[float, int]:
        """The place of the label that each number stands for."""
        if not self.names:
            return numbers_of(self.labels) or {float(place): place for place in range(len(self.labels))}
        try:
            return self.names.places(self.labels)
        except DataError as error:
            raise _UnfitError(f"stands for a class without a label: {error}") from None

    def _share(self, value: Any) -> list[float]:
        """[first, second] of the second label's share of [low, high]."""
        hint = f"must be {NUMBERS_IN_TEXT.format(low=self.low, high=self.high)}"
        share = (self._number(value, hint) - self.low) / (self.high - self.low)
        if not -_LAST_DIGITS <= share <= 1 + _LAST_DIGITS:
            raise _UnfitError(
                f"is {_shown(value)}, outside [{self.low:g}, {self.high:g}]; --target_range LOW HIGH sets another range"
            )
        share = min(max(share, 0.0), 1.0)
        return [1.0 - share, share]

    def _one_hot(self, place: int) -> list[float]:
        return [float(place == other) for other in range(len(self.labels))]

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
        """The place of the label that a value names: see the module's table."""
        place = self._place(value)
        if place is None:
            raise _UnfitError(self._no_label(value))
        return place

    def _named_number(self, value: Any) -> float | None:
        """The number of one of the data's classes, also as a text of a CSV file; else None."""
        number = as_number(value) if isinstance(value, str) and self.from_text else value
        is_class = isinstance(number, int | float) and self.names.name(number) is not None
        return number if is_class else None

    def _place(self, value: Any) -> int | None:
        if (named_number := self._named_number(value)) is not None:
            return self._places.get(named_number)
        if isinstance(value, str):
            place = place_of(value, self.labels)
            number = as_number(value) if self.from_text else None
            return self._places.get(number) if place is None and number is not None else place
        if isinstance(value, bool):
            return booleans_of(self.labels).get(value)
        return self._places.get(value) if isinstance(value, int | float) else None

    def _no_label(self, value: Any) -> str:
        hint = did_you_mean(value, self.labels) if isinstance(value, str) else ""
        places = f", numbered 0 to {len(self.labels) - 1}"
        if self.problem == "binary":
            places = "; write a label's name, or a number (1 for yes, 0 for no)"
        if numbers_of(self.labels) or self.names:
            places = ""
        return f"{_shown(value)} is no label{hint}; --labels has {listed(self.labels)}{places}"

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
        """A list of labels, or a number for each label; what may be both is refused."""
        if isinstance(value, dict):
            vector = [0.0] * len(self.labels)
            for name, share in value.items():
                vector[self._index(name)] = self._probability(share, value)
            return vector
        if not isinstance(value, list):
            raise _UnfitError(
                f"must be a list of labels, or of {len(self.labels)} numbers in [0, 1], not {_shown(value)}"
            )
        # Whole numbers alone may be labels: 1.0 and true are a label's probability.
        are_labels = all(isinstance(part, str | int) and not isinstance(part, bool) for part in value)
        are_numbers = len(value) == len(self.labels) and not any(isinstance(part, str) for part in value)
        if are_labels and are_numbers:
            places = {self._place(part) for part in value}
            is_set = None not in places and len(places) == len(value)
            in_range = all(0 <= part <= 1 for part in value)
            if is_set and in_range:
                raise _UnfitError(
                    f"{_shown(value)} may be two labels by their numbers, or a number for each of two labels; write names, "
                    "or true and false (or 1.0 and 0.0) for each label"
                )
            are_labels, are_numbers = is_set, not is_set
        if are_numbers:
            return [self._probability(share, value) for share in value]
        vector = [0.0] * len(self.labels)
        for name in value:
            vector[self._index(name)] = 1.0
        return vector

    def _probability(self, share: Any, value: Any) -> float:
        number = self._number(share, "must hold numbers in [0, 1]")
        if not 0 <= number <= 1:
            raise _UnfitError(f"{_shown(value)}: each label's number lies in [0, 1]")
        return number


def _shown(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)[:60]
