"""Settings from layers: defaults < configs/default.json < each --config file in order < flags; later wins, deeply.

Every value keeps the name of the layer it came from. All problems of all layers are collected and told at once.
Knows nothing of argv (`flags`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from workflow.config.sections import CommandSettings, field_aliases, section_fields, settings_within
from workflow.errors import ConfigError, did_you_mean

DEFAULT_FILE = Path("configs/default.json")
FLAGS = "flag"
_YAML_BOOL = "tag:yaml.org,2002:bool"
NULL = "null"
"""A flag's text for no value."""

S = TypeVar("S", bound=CommandSettings)


@dataclass(frozen=True)
class Layer:
    """Raw values of one source, flat or by section, and the source's name for messages."""

    name: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Resolved(Generic[S]):
    """Valid settings, and where each value that is not a default came from (flat name -> layer name)."""

    settings: S
    origins: dict[str, str] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """Flat name -> JSON-ready value."""
        return flatten(self.settings)

    def origin(self, name: str) -> str:
        """The layer that gave this setting."""
        return self.origins.get(name, "default")


def flatten(settings: BaseModel) -> dict[str, Any]:
    """Flat name -> JSON-ready value of each setting."""
    return {name: value for section in settings.model_dump(mode="json").values() for name, value in section.items()}


def with_defaults(values: Mapping[str, Any], settings: BaseModel) -> dict[str, Any]:
    """Flat values, in which settings with parts that say nothing of a part that `settings` have say its default."""
    parts = {
        name: type(value)().model_dump(mode="json")
        for section in (getattr(settings, of) for of in type(settings).model_fields)
        for name in type(section).model_fields
        if isinstance(value := getattr(section, name), BaseModel)
    }
    return {
        name: {**parts[name], **value} if name in parts and isinstance(value, dict) else value
        for name, value in values.items()
    }


def resolve(
    settings_type: type[S], layers: Sequence[Layer], *, problems: Sequence[str] = (), complete: bool = True
) -> Resolved[S]:
    """Merges the layers into valid settings.

    Raises ConfigError with every problem found, `problems` of an earlier stage first.
    """
    found = list(problems)
    fields = section_fields(settings_type)
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    opened = [(layer.name, _by_flat_name(layer, settings_type, found)) for layer in layers]
    said = {name: value for _, values in opened for name, value in values.items()}
    for origin, values in (settings_type.implied(said), *opened):
        for name, value in values.items():
            merged[name] = _merge(merged.get(name), value)
            origins[name] = origin
    if complete:
        found += settings_type.missing(merged)
    nested: dict[str, dict[str, Any]] = {}
    for name, value in merged.items():
        nested.setdefault(fields[name][0], {})[name] = value
    try:
        settings = settings_type.model_validate(nested)
    except ValidationError as error:
        found += [told for problem in error.errors() if (told := _explain(problem, origins))]
        raise ConfigError(*found) from None
    if found:
        raise ConfigError(*found)
    return Resolved(settings, origins)


def _by_flat_name(layer: Layer, settings_type: type[BaseModel], problems: list[str]) -> dict[str, Any]:
    """The layer's values by flat setting name; sections are opened, aliases replaced, unknown keys noted."""
    fields = section_fields(settings_type)
    names = {alias: name for name, (_, info) in fields.items() for alias in (name, *field_aliases(info))}
    values: dict[str, Any] = {}
    parts = {name: within for name, (_, info) in fields.items() if (within := settings_within(info))}

    def take(key: str, value: Any, section: str | None) -> None:
        name = names.get(key)
        where = f"{section}.{key}" if section else key
        if name is None or (section and fields[name][0] != section):
            hint = did_you_mean(key, names)
            problems.append(f'{layer.name}: unknown key "{where}"{hint}')
        elif name in values:
            problems.append(f'{layer.name}: "{where}" is given twice ({name})')
        else:
            values[name] = _opened(value) if name in parts else value
            problems.extend(_unknown_parts(layer.name, name, values[name], parts.get(name)))

    for key, value in layer.values.items():
        if key in settings_type.model_fields and isinstance(value, dict):
            for inner, inner_value in value.items():
                take(inner, inner_value, key)
        elif key in settings_type.model_fields and key not in names:  # "data" is both a section and a name of data_name
            problems.append(
                f'{layer.name}: "{key}" is a section and needs an object, not {json.dumps(value, default=str)}'
            )
        else:
            take(key, value, None)
    return values


def _opened(value: Any) -> Any:
    """Of a setting made of settings: those by their defaults for `true`, None for `false`."""
    if value is True or value in ("true", "yes", "on"):
        return {}
    return None if value is False or value in ("false", "no", "off", NULL) else value


def _read_yaml(text: str) -> Any:
    """YAML by its version 1.2, where true and false alone are truth values: `labels: [no, yes]` are two words."""
    import yaml

    class Loader(yaml.SafeLoader):
        """A loader of its own, since the words are kept with the class."""

    words = re.compile("true|True|TRUE|false|False|FALSE")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _YAML_BOOL]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(_YAML_BOOL, words, list("tTfF"))
    return yaml.load(text, Loader=Loader)


def _unknown_parts(origin: str, name: str, value: Any, within: type[BaseModel] | None) -> list[str]:
    if within is None or not isinstance(value, dict):
        return []
    return [
        f'{origin}: unknown key "{name}.{key}"{did_you_mean(str(key), within.model_fields)}'
        for key in value
        if key not in within.model_fields
    ]


def _merge(old: Any, new: Any) -> Any:
    """`new` over `old`; two objects are merged key by key."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merge(old.get(key), value) for key, value in new.items()}}
    return new


def _explain(problem: Any, origins: dict[str, str]) -> str:
    """One line of a pydantic error: the setting, its value, its origin, what is wrong."""
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("model_type", "model_attributes_type"):
        message = "turned on and off by true and false; what more it takes is said by --help"
    if len(problem["loc"]) < 2:
        return str(message)
    if problem["type"] == "extra_forbidden":  # told before, by its layer
        return ""
    name = ".".join(map(str, problem["loc"][1:3] if isinstance(problem["loc"][-1], str) else problem["loc"][1:2]))
    value = json.dumps(problem["input"], default=str, ensure_ascii=False)
    return f"{_spelled(name, origins)} = {value}: {message}"


def _spelled(name: str, origins: dict[str, str]) -> str:
    origin = origins.get(name.partition(".")[0], "default")
    return f"--{name}" if origin == FLAGS else f'{origin}: "{name}"'


def read_layers(files: Sequence[Path], flags: dict[str, Any]) -> list[Layer]:
    """The layers of a command line: `configs/default.json` if there is one, the files in order, the flags."""
    all_files = [*([DEFAULT_FILE] if DEFAULT_FILE.is_file() else []), *files]
    return [*(Layer(str(path), read_settings_file(path)) for path in all_files), Layer(FLAGS, flags)]


def read_settings_file(path: Path) -> dict[str, Any]:
    """The object in a YAML file, or in a JSON file that may hold comments. ConfigError says where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot read this settings file: {getattr(error, 'strerror', None) or error}"
        ) from None
    try:
        if path.suffix in (".yaml", ".yml"):
            values = _read_yaml(text) or {}
        else:
            import json5

            values = json5.loads(text, allow_duplicate_keys=False)
    except Exception as error:  # each parser has its own family of errors
        raise ConfigError(f"{path}: not a valid settings file: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a settings file holds one object, not {type(values).__name__}")
    return {str(key): value for key, value in values.items()}
