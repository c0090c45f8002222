"""The text, or pair of texts, that a row of a classification data set stands for, with or without a template.

Knows nothing of targets or tokens.
"""

from __future__ import annotations

import json
import string
from dataclasses import dataclass
from datetime import date, time
from functools import cached_property
from pathlib import Path
from typing import Literal

from workflow.data.sources import Row
from workflow.errors import ConfigError, did_you_mean

PAIRS = (("input", "input_pair"), ("sentence1", "sentence2"))
TEXT_KEYS = tuple(key for pair in PAIRS for key in pair)
Reads = Literal["texts", "pairs"]
"""What the rows of a run hold: one text each, or two."""


@dataclass(frozen=True)
class Texts:
    """Reads `input` (and `input_pair`), or `sentence1` (and `sentence2`); or fills a template with a row's values.

    `reads` says what rows must hold; without it, and with a template, single texts and pairs may be mixed.
    """

    template: str | None = None
    reads: Reads | None = None

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The template's fields."""
        return template_fields(self.template) if self.template is not None else ()

    def of(self, row: Row) -> tuple[str, str | None]:
        """The text and, where the row has one, its pair."""
        if self.template is not None:
            return self.template.format_map(row), None
        first, second = _keys_of(row)
        return row[first], (row.get(second) or None)

    def problem_of(self, row: Row) -> str | None:
        """What is wrong with a row's texts, or None."""
        if self.template is not None:
            return self._template_problem(row)
        return _pair_problem(row) or (self._unread(row) if self.reads is not None else None)

    def kind_of(self, row: Row) -> Reads:
        """Whether a good row holds one text or two; an empty second text counts."""
        return "pairs" if row.get(_keys_of(row)[1]) is not None else "texts"

    def unread_partner(self, row: Row) -> str | None:
        """What to tell of a single text beside a key that may be meant for its partner, or None."""
        first, second = _keys_of(row)
        hint = did_you_mean(second, [key for key, value in row.items() if key != first and isinstance(value, str)])
        return f'the rows are single texts: they have no "{second}"{hint}' if hint else None

    def _unread(self, row: Row) -> str | None:
        """Why a row is none of those that the run was trained on, or None."""
        kind, (first, second) = self.kind_of(row), _keys_of(row)
        if kind == self.reads:
            return None
        if kind == "texts":
            hint = did_you_mean(second, [key for key in row if key != first])
            found = f"{hint}; the row has {', '.join(map(json.dumps, row))}"
            return f'missing "{second}", the second text: this run reads pairs, "{first}" and "{second}"{found}'
        return f'"{second}" is a second text, and this run reads single texts; leave it out, or put both into "{first}"'

    def _template_problem(self, row: Row) -> str | None:
        for name in self.fields:
            if row.get(name) is None:
                return f'missing "{name}", which the template uses (the row has {", ".join(map(json.dumps, row)) or "no keys"})'
            if not isinstance(row[name], (str, int, float)):
                return f'"{name}" must be a text or a number for the template, not {_shown(row[name])}'
            if problem := _text_problem(name, str(row[name])):
                return problem
        unused = [key for key in TEXT_KEYS if row.get(key) and key not in self.fields]
        if unused:
            return f'"{unused[0]}" is not used by the template; put {{{unused[0]}}} into it'
        return None


def _keys_of(row: Row) -> tuple[str, str]:
    return next((pair for pair in PAIRS if pair[0] in row), PAIRS[0])


def _pair_problem(row: Row) -> str | None:
    first, second = _keys_of(row)
    if first not in row:
        return (
            f'missing "input" (or "sentence1"); the row has {", ".join(map(json.dumps, row)) or "no keys"}; '
            "--template 'TEXT with {field}' reads other keys"
        )
    for key in (first, second):
        value = row.get(key)
        if key == second and value is None:
            continue
        if not isinstance(value, str):
            return not_a_text(key, value)
        if problem := _text_problem(key, value):
            return problem
    if not row.get(second):
        for other_first, other in PAIRS:
            if other != second and row.get(other):
                return f'"{other}" is the partner of "{other_first}", and would not be read beside "{first}"; call it "{second}"'
    return None


def _text_problem(key: str, value: str) -> str | None:
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        return f'"{key}" holds half a surrogate pair, which is no character'
    return None


def not_a_text(key: str, value: object) -> str:
    """What is wrong with a value where a text should stand."""
    if isinstance(value, date | time):
        return (
            f'"{key}" is a date ({value}), which the reader of its file has made; give a file whose column holds texts'
        )
    return f'"{key}" must be a text, not {_shown(value)}'


def _shown(value: object) -> str:
    return json.dumps(value, default=str)[:60]


def template_fields(template: str) -> tuple[str, ...]:
    """The names in braces, each once. Raises ConfigError for a template that is none."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(
            f"--template: {error} (a brace that is meant as such is written twice: {{{{ or }}}})"
        ) from None
    names: list[str] = []
    for _, name, specification, conversion in parts:
        if name is None:
            continue
        if not name or specification or conversion or set(name) & set(".[]!:") or name.isdecimal():
            raise ConfigError(
                f"--template: {{{name}}} is no field; a field is the plain name of a row's key, as {{input}}"
            )
        names.append(name)
    if not names:
        raise ConfigError("--template: has no {field}; put {input}, or another key of the rows, where the text belongs")
    return tuple(dict.fromkeys(names))


def read_template(given: str) -> str:
    r"""The template that --template means: the content of a file of this name, else the text itself with \n as newline.

    Raises ConfigError for a file that cannot be read and for a text that is no template.
    """
    if "{" not in given:
        path = Path(given)
        try:
            is_file = path.is_file()
        except OSError:  # a text too long for a name, say
            is_file = False
        if not is_file:
            raise ConfigError(f"--template {given}: no such file, and no text with a {{field}} either")
        try:
            text = path.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--template {given}: cannot be read: {error}") from None
    else:
        text = given.replace("\\n", "\n")
    template_fields(text)
    return text
