"""What makes a checkpoint a scorer: how rows become inputs and outputs become predictions; `scoring.json` beside its weights.

Knows nothing of models. Batch scoring and the server read it, so that a model is used as it was trained.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from workflow.data.class_names import NO_NAMES, ClassNames
from workflow.data.targets import Targets
from workflow.data.texts import Reads, Texts
from workflow.errors import ModelError
from workflow.files import read_json

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Scoring:
    """The settings of a scorer. `low` and `high` bound the user's binary targets; `reads` is what it was trained on,
    where that is recorded and one or the other."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    problem: str = "binary"
    labels: tuple[str, ...] = ("no", "yes")
    low: float = 0.0
    high: float = 1.0
    template: str | None = None
    max_length: int = 1024
    keep_source: str = "end"
    reads: Reads | None = None

    @property
    def texts(self) -> Texts:
        """How rows are read."""
        return Texts(self.template, self.reads)

    def targets(self, *, from_text: bool = False, names: ClassNames = NO_NAMES) -> Targets:
        """How the targets of a data set with these class names are read, and predictions written."""
        return Targets(self.problem, self.labels, self.low, self.high, from_text, names)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def differences(self, other: Scoring) -> list[str]:
        """What two scorers do not share, as `name: this, not that`."""
        mine, theirs = ({**asdict(one), "reads": None} for one in (self, other))
        return [
            f"{name}: {_shown(mine[name])}, not {_shown(theirs[name])}" for name in mine if mine[name] != theirs[name]
        ]


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def read_scoring(file: Path) -> Scoring | None:
    """The scoring settings in a checkpoint, or None where it has none. Raises ModelError."""
    values = read_json(file, broken=ModelError)
    if values is None:
        return None
    if isinstance(values, dict) and isinstance(values.get("scoring"), dict):  # a run's own, beside its checkpoints
        values = values["scoring"]
    if not isinstance(values, dict) or values.pop("schema_version", None) != SCHEMA_VERSION:
        raise ModelError(f"{file}: not a scoring file that this version reads")
    try:
        return TypeAdapter(Scoring).validate_python(values)
    except ValidationError as error:
        raise ModelError(f"{file}: {' '.join(str(error).split())[:300]}") from None
