"""Reads a shell template: plain `{field}` names, and how a value has to be quoted where each of them stands.

Knows nothing of values. `${VAR}` is the shell's and left alone; `{{` and `}}` are braces; `{field?}` takes its line with it
where the field has no value. There are no attributes, indices, conversions or format specs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

FIELD = re.compile(r"\{([a-z][a-z0-9_]*)(\??)\}")
HERE_DOCUMENT = re.compile(r"<<-?\s*(['\"\\]?)(\w+)\1?")


class Place(Enum):
    """Where a piece of a shell script stands; a value cannot stand in the last three."""

    PLAIN = "plain"
    DOUBLE = "within double quotes"
    SINGLE = "within single quotes"
    COMMENT = "in a comment"
    ANSI = "within $'...'"
    BACKTICK = "within backticks"
    HERE = "in a here-document"


CLOSED = (Place.ANSI, Place.BACKTICK, Place.HERE)


@dataclass(frozen=True)
class Piece:
    """Literal text of one line, or a field; `line` counts from 1."""

    line: int
    place: Place
    text: str = ""
    field: str | None = None
    is_optional: bool = False


Value = str | int | Sequence[str]


def quoted(value: Value, place: Place, *, directive: bool = False) -> str:
    """A value as it must be written there. A list is quoted item by item, and within quotes it is one shell-quoted text.

    A line break in a comment would end it: it is written as `\\n`. A `directive` is a comment that sbatch reads as a shell does.
    """
    as_list = not isinstance(value, str | int)
    text = shlex.join(value) if as_list else str(value)  # type: ignore[arg-type]
    if place is Place.PLAIN or directive:
        written = text if as_list else shlex.quote(text)
        return written.replace("\n", "\\n") if directive else written
    if place is Place.DOUBLE:
        return re.sub(r'([\\"$`])', r"\\\1", text)
    if place is Place.SINGLE:
        return text.replace("'", "'\\''")
    return text.replace("\n", "\\n").replace("\r", "\\r")


def in_double_quotes(text: str) -> str:
    """A text as one double-quoted word of a shell."""
    return f'"{quoted(text, Place.DOUBLE)}"'


class Reader:
    """Takes a shell text apart; `pieces` in order, `problems` as messages with line numbers."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.line = text, 0, 1
        self.pieces: list[Piece] = []
        self.problems: list[str] = []
        self.places = [Place.PLAIN]
        self.depths = [0]  # of parentheses, of each plain place
        self.here: list[str] = []
        while self.at < len(text):
            self._step()

    def _step(self) -> None:
        place, character = self.places[-1], self.text[self.at]
        if character == "\n":
            self._end_line(place)
        elif character == "\\" and place not in (Place.SINGLE, Place.COMMENT):
            self._take(2)
        elif character in "{}":
            self._brace(place)
        elif self.text.startswith("${", self.at):
            self._variable()
        elif not self._changes_place(place, character):
            self._take(1)

    def _take(self, count: int) -> None:
        """Literal text, line by line."""
        for character in self.text[self.at : self.at + count]:
            self.pieces.append(Piece(self.line, self.places[-1], character))
            self.line += character == "\n"
        self.at += count

    def _brace(self, place: Place) -> None:
        if (found := FIELD.match(self.text, self.at)) is not None:
            if place in CLOSED:
                self._problem(
                    f"{found[0]} stands {place.value}, where no value can be quoted: give it to a variable before"
                )
            self.pieces.append(Piece(self.line, place, field=found[1], is_optional=bool(found[2])))
            self.at = found.end()
        elif self.text[self.at : self.at + 2] in ("{{", "}}"):
            self.at += 1
            self._take(1)
        else:
            shown = self.text[self.at : self.at + 20].split("\n")[0]
            self._problem(f"{shown!r}: a field is a plain name such as {{job_name}}; a brace is written {{{{ or }}}}")
            self._take(1)

    def _variable(self) -> None:
        """`${...}`, with those inside it."""
        depth, end = 0, self.at + 1
        while end < len(self.text):
            depth += {"{": 1, "}": -1}.get(self.text[end], 0)
            end += 1
            if depth == 0:
                break
        else:
            self._problem("'${' is never closed")
        self._take(end - self.at)

    def _changes_place(self, place: Place, character: str) -> bool:
        """Whether a quote, a comment or a substitution began or ended here (and was taken)."""
        ends = {Place.DOUBLE: '"', Place.SINGLE: "'", Place.ANSI: "'", Place.BACKTICK: "`"}
        if ends.get(place) == character:
            self._take(1)
            self.places.pop()
            return True
        if place not in (Place.PLAIN, Place.DOUBLE):
            return False
        for opening, inner in (("$(", Place.PLAIN), ("`", Place.BACKTICK)):
            if self.text.startswith(opening, self.at):
                return self._enter(inner, len(opening))
        return place is Place.PLAIN and self._in_plain(character)

    def _in_plain(self, character: str) -> bool:
        for opening, inner in (("$'", Place.ANSI), ("'", Place.SINGLE), ('"', Place.DOUBLE)):
            if self.text.startswith(opening, self.at):
                return self._enter(inner, len(opening))
        if character == "#" and (self.at == 0 or self.text[self.at - 1] in " \t\n;&|()"):
            return self._enter(Place.COMMENT, 1)
        if character == "(":
            self.depths[-1] += 1
        elif character == ")" and self.depths[-1] == 0 and len(self.depths) > 1:
            self._take(1)
            self.depths.pop()
            self.places.pop()
            return True
        elif character == ")":
            self.depths[-1] -= 1
        elif self.text.startswith("<<<", self.at):
            self._take(3)
            return True
        elif (found := HERE_DOCUMENT.match(self.text, self.at)) is not None:
            self.here.append(found[2])
            self._take(len(found[0]))
            return True
        return False

    def _enter(self, place: Place, count: int) -> bool:
        self._take(count)
        self.places.append(place)
        if place is Place.PLAIN:
            self.depths.append(0)
        return True

    def _end_line(self, place: Place) -> None:
        self._take(1)
        if place is Place.COMMENT:
            self.places.pop()
        while self.here and self.places[-1] is Place.PLAIN:
            self._here_document(self.here.pop(0))

    def _here_document(self, word: str) -> None:
        """Its lines are read for braces as all others are, up to the one that is the word."""
        self.places.append(Place.HERE)
        while self.at < len(self.text):
            end = self.text.find("\n", self.at)
            end = len(self.text) if end < 0 else end
            if self.text[self.at : end].strip("\t") == word:
                break
            while self.at < end:
                if self.text.startswith("${", self.at):
                    self._variable()
                elif self.text[self.at] in "{}":
                    self._brace(Place.HERE)
                else:
                    self._take(1)
            self._take(1)
        self.places.pop()

    def _problem(self, text: str) -> None:
        self.problems.append(f"line {self.line}: {text}")
