"""`workflow config`: every setting and its origin, and the schema of settings files.

Knows nothing of what a setting does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from workflow.errors import ConfigError

USAGE = "usage: workflow config show [seq2seq|clf] [--config FILE...] [--setting value ...], or workflow config schema [seq2seq|clf]"


def config(argv: Sequence[str]) -> int:
    """`config show` and `config schema`, of seq2seq unless clf is named."""
    if argv[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if argv[:1] not in (["show"], ["schema"]):
        raise ConfigError(USAGE)
    from workflow.config.clf_settings import ClfSettings
    from workflow.config.flags import parse
    from workflow.config.sections import CommandSettings
    from workflow.config.settings import Seq2SeqSettings

    tasks: dict[str, type[CommandSettings]] = {"seq2seq": Seq2SeqSettings, "clf": ClfSettings}
    rest = list(argv[1:])
    settings = tasks[rest.pop(0) if rest[:1] and rest[0] in tasks else "seq2seq"]
    if argv[0] == "schema":
        if rest:
            raise ConfigError(USAGE)
        print(json.dumps(_flat_schema(settings), indent=1))
        return 0
    resolved = parse(
        settings,
        rest,
        prog="workflow config show",
        example="workflow config show --config configs/quickstart.json --lr 1e-3",
        complete=False,
    )
    for name, value in resolved.flat().items():
        print(f"{name:<28} {json.dumps(value):<24} {resolved.origin_text(name)}")
    return 0


def _flat_schema(settings: Any) -> dict[str, Any]:
    """JSON schema of a settings file: sections, or their settings flat at the top, by any of their names."""
    from workflow.config.sections import field_aliases, section_fields, settings_within

    schema: dict[str, Any] = settings.model_json_schema()
    sections = {
        name: schema["$defs"][part["$ref"].rsplit("/", 1)[-1]]
        for name, part in ((key, _reference(value)) for key, value in schema["properties"].items())
    }
    for name, (section, field) in section_fields(settings).items():
        if settings_within(field) is not None:
            sections[section]["properties"][name]["anyOf"].append({"type": "boolean"})
        for spelling in (name, *field_aliases(field)):
            schema["properties"][spelling] = sections[section]["properties"][name]
    return schema


def _reference(value: dict[str, Any]) -> dict[str, Any]:
    return value if "$ref" in value else next(part for part in value["allOf"] if "$ref" in part)
