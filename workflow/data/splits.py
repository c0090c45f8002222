"""Names of splits, and which of several names are eval rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workflow.errors import DataError, did_you_mean

SPLIT_FILES = {
    "train": ("train",),
    "eval": ("eval", "dev", "validation", "valid", "val", "test"),
    "calibration": ("calibration",),
}
"""Split -> the names that mean it, best first."""
TEST = "test"
SPLIT_OF = {name: split for split, names in SPLIT_FILES.items() for name in names}


def split_of(name: object, where: str) -> str:
    """The split that a name means. Raises DataError."""
    found = SPLIT_OF.get(name) if isinstance(name, str) else None
    if found is None:
        raise DataError(
            f"{where}: unknown split {name!r}{did_you_mean(str(name), SPLIT_OF)}; known are {', '.join(SPLIT_OF)}"
        )
    return found


@dataclass(frozen=True)
class LeftOut:
    """Rows that are not read, and those that are the eval rows in their place."""

    name: str
    kept: str

    def note(self, where: str) -> str:
        """What to tell of it."""
        return f"{where}: {self.name} is not read, since {self.kept} is what is evaluated on"


def left_out(names: Iterable[str], where: str) -> LeftOut | None:
    """The test rows where others are the eval rows, if so. Raises DataError for other rivals."""
    there = set(names)
    rivals = [name for name in SPLIT_FILES["eval"] if name in there]
    if len(rivals) < 2:
        return None
    if len(rivals) == 2 and rivals[1] == TEST:
        return LeftOut(TEST, rivals[0])
    raise DataError(
        f"{where}: {' and '.join(rivals)} would all be eval rows; keep one, or leave test rows to a data set of their own"
    )
