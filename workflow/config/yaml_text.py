"""Reads YAML of one value a key. Imported where a YAML file is read, for it loads the parser.

Settings are read as YAML 1.2, so that they say what the same words say in JSON: PyYAML reads YAML 1.1, in which `1e-3` is
a text, `no` is false, `010` is 8, `1:30` is 90 and a date is no text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from workflow.errors import doubled

MERGE = "tag:yaml.org,2002:merge"
FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
CORE = {
    "tag:yaml.org,2002:null": ("~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": ("true|True|TRUE|false|False|FALSE", list("tTfF")),
    "tag:yaml.org,2002:int": ("[-+]?[0-9]+", list("-+0123456789")),
    "tag:yaml.org,2002:float": (FLOAT, list("-+0123456789.")),
    MERGE: ("<<", ["<"]),
}
"""YAML 1.2's core schema: how a word is taken, and the characters it begins with. Merging is of 1.1, and kept."""


class OneValueEach(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: one value would hide the other."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Makes the mapping, as the base class does. Raises YAMLError."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE]
        if (twice := doubled(keys)) is not None:
            raise yaml.YAMLError(f'the key "{twice}" stands twice in the object at line {node.start_mark.line + 1}')
        return super().construct_mapping(node, deep)


class SettingsLoader(OneValueEach):
    """The same with the words and numbers of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own name)


def _whole(loader: Any, node: Any) -> int:
    return int(loader.construct_scalar(node))


for _tag, (_words, _first) in CORE.items():
    SettingsLoader.add_implicit_resolver(_tag, re.compile(f"^(?:{_words})$"), _first)
SettingsLoader.add_constructor("tag:yaml.org,2002:int", _whole)


def documents(text: str) -> Iterator[Any]:
    """The plain values of a text's documents, as Kubernetes reads them. Raises YAMLError."""
    return yaml.load_all(text, OneValueEach)


def document(text: str) -> Any:
    """The plain value of the only document of a settings file. Raises YAMLError."""
    return yaml.load(text, SettingsLoader)
