"""Reads YAML of one value a key. Imported where a YAML file is read, for it loads the parser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"


class OneValueEach(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: one value would hide the other."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Makes the mapping, as the base class does. Raises YAMLError."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE]
        if (twice := next((key for key in keys if keys.count(key) > 1), None)) is not None:
            raise yaml.YAMLError(f'the key "{twice}" stands twice in the object at line {node.start_mark.line + 1}')
        return super().construct_mapping(node, deep)


def documents(text: str) -> Iterator[Any]:
    """The plain values of a text's documents. Raises YAMLError."""
    return yaml.load_all(text, OneValueEach)


def document(text: str) -> Any:
    """The plain value of a text's only document. Raises YAMLError."""
    return yaml.load(text, OneValueEach)
