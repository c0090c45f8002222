"""A page of all operations, made from the OpenAPI document: no scripts, nothing from elsewhere.

Knows nothing of what the operations do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 14px/1.4 ui-monospace, monospace; }
pre { padding: .7rem; overflow-x: auto; border: 1px solid; border-radius: 4px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; }
summary { padding: .4rem 0; cursor: pointer; }
"""


def docs_page(document: dict[str, Any], base: str = "localhost:8000") -> str:
    """The page; its examples ask the server at `base`."""
    operations = "".join(_operation(document, base, *found) for found in _operations(document))
    title = escape(document["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body><main>'
        f"<h1>{title}</h1><p>{escape(document['info'].get('description', ''))}</p>"
        f'<p><a href="openapi.json">openapi.json</a> says the same to programs.</p>{operations}</main></body></html>'
    )


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method.upper(), operation


def _operation(document: dict[str, Any], base: str, path: str, method: str, operation: dict[str, Any]) -> str:
    bodies = [*_bodies(document, operation)]
    return (
        f"<details><summary><code>{method} {escape(path)}</code> {escape(operation.get('description', ''))}</summary>"
        + "".join(_fields(body) + _examples(base + path, body) for body in bodies)
        + "</details>"
    )


def _bodies(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if schema is not None:
        found = _resolved(document, schema)
        for part in found.get("anyOf") or found.get("oneOf") or [found]:
            yield _resolved(document, part)


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if not reference:
        return schema
    found: dict[str, Any] = document["components"]["schemas"][reference.rpartition("/")[2]]
    return found


def _fields(body: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_kind(field))}</td><td>{escape(_text(field))}</td></tr>"
        for name, field in body.get("properties", {}).items()
    )
    head = "<tr><th>field</th><th>type</th><th>meaning</th></tr>"
    return f"<p>{escape(body.get('description', ''))}</p><table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _text(field: dict[str, Any]) -> str:
    default = field.get("default")
    shown = f"default {json.dumps(default)}" if default is not None else ""
    return "; ".join(part for part in (field.get("description", ""), shown) if part)


def _kind(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(part) for part in field["anyOf"] if part.get("type") != "null"))
    if "$ref" in field:
        return str(field["$ref"].rpartition("/")[2])
    if "const" in field:
        return json.dumps(field["const"])
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}))}"
    return str(field.get("type", "object"))


def _examples(url: str, body: dict[str, Any]) -> str:
    commands = (
        f"curl {url} -H 'Content-Type: application/json' -d '{json.dumps(example)}'"
        for example in body.get("examples", ())
    )
    return "".join(f"<pre>{escape(command)}</pre>" for command in commands)
