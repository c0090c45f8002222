"""Settings that silence one another: a later layer unsets the weaker layers' rivals, one layer may not set both.

A pair is declared once, on the setting that the program reads first (`setting(..., rivals=("num_epochs",))`), and holds
both ways. Parts of settings take part by their dotted names (`layerwise_lrd.top_lr`). Companions are rivals that one
layer may set together, because the weaker of the two still says something there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from workflow.config.sections import CommandSettings, field_extra, section_fields, settings_within


@dataclass(frozen=True)
class Unset:
    """A value that another setting of a later layer took out."""

    value: Any
    origin: str
    by: str
    by_origin: str

    def __str__(self) -> str:
        return f"{self.value} of {self.origin} unset by {self.by} of {self.by_origin}"


@functools.cache
def _fields(settings_type: type[BaseModel]) -> dict[str, Any]:
    """Flat name, or dotted name of a part -> pydantic FieldInfo."""
    found: dict[str, Any] = {}
    for name, (_, info) in section_fields(settings_type).items():
        found[name] = info
        within = settings_within(info)
        found |= {f"{name}.{part}": inner for part, inner in within.model_fields.items()} if within else {}
    return found


@functools.cache
def silenced_by(settings_type: type[BaseModel], *, companions: bool = True) -> dict[str, tuple[str, ...]]:
    """Name -> the settings that have no say where this one is set."""
    fields = _fields(settings_type)
    kinds = ("rivals", "companions") if companions else ("rivals",)
    return {
        name: found
        for name, info in fields.items()
        if (found := tuple(other for kind in kinds for other in field_extra(info, kind) if other in fields))
    }


@functools.cache
def rivals_of(settings_type: type[BaseModel], *, companions: bool = True) -> dict[str, frozenset[str]]:
    """Name -> its rivals, both ways."""
    pairs = [
        (name, other) for name, others in silenced_by(settings_type, companions=companions).items() for other in others
    ]
    found: dict[str, set[str]] = {}
    for one, other in pairs:
        found.setdefault(one, set()).add(other)
        found.setdefault(other, set()).add(one)
    return {name: frozenset(others) for name, others in found.items()}


@functools.cache
def dependents_of(settings_type: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """Name -> the settings that say nothing without it."""
    found: dict[str, tuple[str, ...]] = {}
    for name, info in _fields(settings_type).items():
        for needed in field_extra(info, "needs"):
            found[needed] = (*found.get(needed, ()), name)
    return found


def is_set(settings_type: type[BaseModel], name: str, value: Any) -> bool:
    """Whether a raw value says something: none, false, an empty text and a default of 0 mean that a setting is off."""
    if value is None or value is False:
        return False
    info = _fields(settings_type)[name]
    if isinstance(value, Mapping) or settings_within(info) is not None:
        return True
    try:
        valid = TypeAdapter(info.annotation).validate_python(value)
    except ValidationError:
        return True  # it is told with all other bad values
    return not (valid is None or valid is False or valid == "" or (not info.default and valid == info.default))


def names_set(settings_type: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """What raw values by flat name set, parts by their dotted names."""
    parts = {
        f"{name}.{part}": inner
        for name, value in values.items()
        if isinstance(value, Mapping)
        for part, inner in value.items()
    }
    known = _fields(settings_type)
    return {
        name: value
        for name, value in {**values, **parts}.items()
        if name in known and is_set(settings_type, name, value)
    }


def without_silenced(settings_type: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values but those that have no say beside others: of a complete record, or of one from before pairs were refused."""
    on = names_set(settings_type, values)
    silent = {
        other
        for name, others in silenced_by(settings_type, companions=False).items()
        if name in on
        for other in others
        if other in on
    }
    return {name: value for name, value in values.items() if name not in silent}


def outweighed(
    settings_type: type[CommandSettings], values: Mapping[str, Any], unset: Mapping[str, Unset]
) -> dict[str, str]:
    """Settings among these values that have no say -> why, beside what a later layer unset for that reason."""
    on = names_set(settings_type, values)
    found = {
        other: f"{name} is set, which wins over it"
        for name, others in silenced_by(settings_type).items()
        for other in others
        if name in on and other in on
    }
    implied = settings_type.implied(values)
    hidden = [name for name, value in implied.values.items() if name in values and not _shows(values[name], value)]
    if implied.by in on and hidden and len(hidden) == len(implied.values):
        found[implied.by] = f"{', '.join(hidden)} is set, which wins over it"
    # A strategy's rate of its own that lr has unset: which of the two was to vary is a guess.
    parts = {name: gone for name, gone in unset.items() if "." in name}
    return {**found, **{gone.by: f"{gone.origin} sets {name}, a rate of its own" for name, gone in parts.items()}}


@dataclass
class Merged:
    """Layers over one another: raw values by flat name, where each came from, what was unset, what one layer may not say."""

    settings_type: type[CommandSettings]
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    unset: dict[str, Unset] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, origin: str, layer: Mapping[str, Any], spelled: Callable[[str], str]) -> None:
        """Merges a layer over those before it. `spelled` says how messages call its settings."""
        values = self._alone(dict(layer), spelled)
        claims = self._claims(values)
        for name in values:
            if name not in claims:
                self._put_back(name)
        for name, rival in _pairs(rivals_of(self.settings_type), claims):
            if rival not in claims:
                self._take_out(rival, by=name, by_origin=origin)
        for name, needing in dependents_of(self.settings_type).items():
            if name in values and name not in claims:
                for dependent in needing:
                    self._take_out(dependent, by=name, by_origin=origin)
        for name, value in values.items():
            self.values[name] = merge(self.values.get(name), value)
            self.origins[name] = origin
        for name in claims:
            self.unset.pop(name, None)

    def add_implied(self) -> None:
        """What a setting says of others, below all that is said of these."""
        implied = self.settings_type.implied(self.values)
        for name, value in implied.values.items():
            self.origins.setdefault(name, implied.origin)
            self.values[name] = merge(value, self.values[name]) if name in self.values else value

    def idle(
        self, settings: CommandSettings, spelled: Callable[[str, str], str], layers: Sequence[str]
    ) -> list[str] | None:
        """Take out what says nothing with the value of a setting of a later layer; None where all settings have a say.

        Gives the problems: of what stands in the same layer, or in a later one.
        """
        problems: list[str] = []
        idle = {
            name: told
            for name, told in settings.idle().items()
            if name in self.origins
            and is_set(self.settings_type, name, self.values[name])
            and not self._is_default(name)
        }
        for name, (by, why) in idle.items():
            origin, by_origin = self.origins[name], self.origins.get(by)
            if by_origin is not None and layers.index(origin) < layers.index(by_origin):
                self._take_out(name, by=by, by_origin=by_origin)
            else:
                problems.append(
                    f"{spelled(origin, name)} says nothing with this {by}: {why}; change {by}, or leave it out"
                )
        return problems if idle else None

    def _is_default(self, name: str) -> bool:
        info = _fields(self.settings_type)[name]
        return bool(TypeAdapter(info.annotation).validate_python(self.values[name]) == info.default)

    def _claims(self, values: Mapping[str, Any]) -> dict[str, str]:
        """What a layer sets -> the setting of it that does so: itself, or the preset that implies it."""
        claims = {name: name for name in names_set(self.settings_type, values)}
        implied = self.settings_type.implied({**self.values, **values})
        if implied.by in values:
            for name in names_set(self.settings_type, implied.values):
                claims.setdefault(name, implied.by)
        return claims

    def _alone(self, values: dict[str, Any], spelled: Callable[[str], str]) -> dict[str, Any]:
        """The layer without those of its settings that others of it silence, each noted as a problem."""
        claims = self._claims(values)
        for name, others in silenced_by(self.settings_type, companions=False).items():
            for other in others if name in claims else ():
                if other in claims and all(claims[key].partition(".")[0] in values for key in (name, other)):
                    self.problems.append(
                        f"{spelled(claims[name])} and {spelled(claims[other])} cannot both count; pass one of them"
                    )
                    values = _without(values, claims[other])
        return values

    def _take_out(self, name: str, *, by: str, by_origin: str) -> None:
        on = names_set(self.settings_type, self.values)
        implied = self.settings_type.implied(self.values)
        if name not in on and name in implied.values:
            name = implied.by
        if name not in on:
            return
        whole = name.partition(".")[0]
        self.unset[name] = Unset(on[name], self.origins[whole], by, by_origin)
        self.values = _without(self.values, name)
        if whole not in self.values:
            self.origins.pop(whole, None)
        for dependent in dependents_of(self.settings_type).get(name, ()):
            self._take_out(dependent, by=by, by_origin=by_origin)

    def _put_back(self, by: str) -> None:
        """What a setting had unset counts again, once that setting itself is turned off."""
        rivals, fields = rivals_of(self.settings_type), _fields(self.settings_type)
        for name, gone in list(self.unset.items()):
            whole, _, part = name.partition(".")
            if gone.by.partition(".")[0] != by or (part and not isinstance(self.values.get(whole, {}), Mapping)):
                continue
            on = names_set(self.settings_type, _without(self.values, by))
            if on.keys() & rivals.get(name, ()) or not on.keys() >= {*field_extra(fields[name], "needs")}:
                continue
            self.values[whole] = {**self.values.get(whole, {}), part: gone.value} if part else gone.value
            self.origins.setdefault(whole, gone.origin)
            del self.unset[name]


def _shows(value: Any, below: Any) -> bool:
    """Whether the value below is part of the one above it."""
    return bool(merge(value, below) == value)


def _pairs(rivals: Mapping[str, frozenset[str]], claims: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for claimed, name in claims.items():
        for rival in sorted(rivals.get(claimed, ())):
            yield name, rival


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The values without one, or without a part of one."""
    whole, dot, part = name.partition(".")
    if dot and isinstance(inner := values.get(whole), Mapping):
        return {**values, whole: {key: value for key, value in inner.items() if key != part}}
    return {key: value for key, value in values.items() if key != name}


def merge(old: Any, new: Any) -> Any:
    """`new` over `old`; two objects are merged key by key."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}
    return new
