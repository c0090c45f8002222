"""YAML as JSON has it, and YAML 1.2: `1e-3` is a number, `no` and `yes` are words, a key stands once.

PyYAML reads YAML 1.1, in which `1e-3` is a text, `no` is false, `010` is 8, `1:30` is 90 and a date is no text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
KINDS = {
    "tag:yaml.org,2002:null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    "tag:yaml.org,2002:int": (re.compile(r"[-+]?[0-9]+"), list("-+0123456789")),
    "tag:yaml.org,2002:float": (FLOAT, list("-+0123456789.")),
    "tag:yaml.org,2002:merge": (re.compile(r"<<"), ["<"]),
}


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's core schema, without doubled keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own name)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A mapping, whose keys must differ."""
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if doubled := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f'key "{doubled[0]}" is given twice', node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _whole(loader: Any, node: Any) -> int:
    return int(loader.construct_scalar(node))


for _tag, (_pattern, _first) in KINDS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern.pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole)


def read_yaml(text: str) -> Any:
    """The one document of a text. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)
