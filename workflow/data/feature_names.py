"""Names of classes that the features of a `datasets` set give to the numbers of its labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

FeatureNames = Mapping[str, Sequence[str] | None]
"""Column -> names of its classes, None where it has none."""


def with_class_name(row: dict[str, Any], features: FeatureNames) -> dict[str, Any]:
    """Add `target_name` to a row whose label is a number that the features name."""
    key = next((key for key in ("target", "label") if key in row), None)
    names, number = features.get(key) if key is not None else None, row.get(key) if key is not None else None
    if not names or "target_name" in row or not isinstance(number, int) or not 0 <= number < len(names):
        return row
    return {**row, "target_name": names[number]}


def features_of_parquet(metadata: Mapping[bytes, bytes] | None) -> FeatureNames:
    """Read the names of the classes of each column from a Parquet file that `datasets` wrote (key `huggingface`)."""
    try:
        said = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {key: feature.get("names") for key, feature in said.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def features_of_hub(features: Mapping[str, Any] | None) -> FeatureNames:
    """Read the names of the classes of each column of a loaded data set."""
    return {key: getattr(feature, "names", None) for key, feature in (features or {}).items()}
