"""The two entry programs as a study sees them: settings, metrics, and the flags that give a run its settings.

Knows nothing of points or files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from workflow.config.cascade import NULL, is_off
from workflow.config.clf_settings import ClfSettings
from workflow.config.sections import CommandSettings, field_aliases, section_fields, settings_within
from workflow.config.settings import Seq2SeqSettings
from workflow.errors import ConfigError, did_you_mean
from workflow.metric_names import SCORE_METRICS, TEXT_METRICS, listed


@dataclass(frozen=True)
class Entry:
    """An entry program: its settings, and which of them names the metric that chooses the best checkpoint."""

    name: str
    settings_type: type[CommandSettings]
    metric_setting: str

    def metrics(self, settings: Any) -> tuple[str, ...]:
        """What a run with these settings measures."""
        return SCORE_METRICS[str(settings.score.kind)] if self.name == "clf" else TEXT_METRICS

    def canonical(self, name: str) -> str:
        """A setting's own name for any of its names, `optim.lr` too; unknown ones, and parts like `r_drop.alpha`, stay."""
        section, dot, rest = name.partition(".")
        if dot and section in self.settings_type.model_fields:
            return self.canonical(rest)
        for own, (_, field) in section_fields(self.settings_type).items():
            if name == own or name in field_aliases(field):
                return own
        return name

    def _field(self, name: str) -> Any:
        """The pydantic field of a setting, or of a part like `freeze.head`; None where there is none."""
        whole, _, part = name.partition(".")
        field = section_fields(self.settings_type).get(whole, (None, None))[1]
        if part and field is not None:
            within = settings_within(field)
            field = within.model_fields.get(part) if within is not None else None
        return field

    def is_whole(self, name: str) -> bool:
        """Whether a setting, or a part like `freeze.head`, takes whole numbers alone."""
        field = self._field(name)
        kinds = set(get_args(field.annotation) or (field.annotation,)) if field is not None else set()
        return kinds - {type(None)} == {int}

    def plain(self, name: str, value: Any) -> Any:
        """A value as the setting holds it where that is a number: `"1e-3"` and 0.001 are one; any other as it is."""
        field = self._field(name)
        if field is None or isinstance(value, bool):
            return value
        try:
            valid = TypeAdapter(field.annotation).validate_python(value)
        except ValidationError:
            return value  # it is told with all other bad values
        return valid if isinstance(valid, int | float) and not isinstance(valid, bool) else value

    def short(self, name: str) -> str:
        """The shortest of a setting's names, for labels: `lr`, `batch_size`."""
        field = section_fields(self.settings_type).get(name, (None, None))[1]
        return str(min((name, *(field_aliases(field) if field is not None else ())), key=len))


ENTRIES = {
    "seq2seq": Entry("seq2seq", Seq2SeqSettings, "best_metric"),
    "clf": Entry("clf", ClfSettings, "save_best_metric"),
}


def entry_named(name: Any, *, where: str) -> Entry:
    """The entry program of this name. Raises ConfigError."""
    if name not in ENTRIES:
        raise ConfigError(f"{where}: {name!r} is no entry program; expected {' or '.join(ENTRIES)}")
    return ENTRIES[name]


def checked_metric(name: str, known: Iterable[str], *, where: str) -> str:
    """`name` if it is among the metrics. Raises ConfigError with all of them and their directions."""
    known = tuple(known)
    if name not in known:
        raise ConfigError(
            f"{where}: {name!r} is not measured here{did_you_mean(str(name), known)}; there are, best when: {listed(known)}"
        )
    return name


def flags_of(settings: Mapping[str, Any]) -> list[str]:
    """argv items that give these settings, by flat name, whatever files below say; objects are opened: `--r_drop.alpha 1.0`."""
    found: list[str] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found += flags_of({f"{name}.{key}": inner for key, inner in value.items()}) or [f"--{name}", "true"]
        elif isinstance(value, list | tuple):
            is_plain = value and not any(isinstance(item, str) and _is_taken_otherwise(item) for item in value)
            found += [f"--{name}", *map(_text, value)] if is_plain else [f"--{name}={json.dumps(value)}"]
        else:
            text = _text(value)
            found += [f"--{name}", text] if text and text[0] != "-" else [f"--{name}={text}"]
    return found


def _is_taken_otherwise(item: str) -> bool:
    """Whether a word of a list would be taken for a flag, or for a JSON text."""
    return item == NULL or item.startswith(("-", "["))


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"r_drop.alpha": 1}` -> `{"r_drop": {"alpha": 1}}`; beside its parts, `r_drop` itself says nothing unless it is off."""
    found: dict[str, Any] = {name: value for name, value in values.items() if "." not in name}
    for name, value in values.items():
        whole, dot, part = name.partition(".")
        before = found.get(whole)
        if dot and not (whole in found and (before is None or is_off(before))):
            found[whole] = {**(before if isinstance(before, dict) else {}), **nested({part: value})}
    return found


def _text(value: Any) -> str:
    if value is None:
        return NULL
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):  # not -1e-05, which argparse takes for a flag
        return f"{Decimal(repr(value)):f}" if value < 0 else repr(value)
    return str(value)
