"""Streams the rows of one large JSON file, `{"train": [...], "eval": [...]}` or `[...]` or JSON Lines, in bounded memory.

Knows nothing of what a row must hold. Only one row at a time is decoded (by the standard library's decoder), so
that a file of any size needs memory for its largest row alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from workflow.data.splits import SPLIT_OF
from workflow.errors import DataError, did_you_mean, doubled

CHUNK = 1 << 20
FIRST_KEY = re.compile(r'\{\s*("(?:[^"\\]|\\.)*")\s*:')
LONGEST_KEY = 1 << 16
SPACE = re.compile(r"[ \t\n\r]*")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value; use null or, for a target, write a number or take the row out")


def one_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises ValueError for a key that stands twice: one value would hide the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f'the key "{doubled(key for key, _ in pairs)}" stands twice in one object')
    return found


class _Reader:
    """A window over a text file, which tokens are taken off one by one."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self.file = file
        self.text = ""
        self.position = 0
        self.lines_before = 0
        self.columns_before = 0
        self.ended = False
        self.decoder = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=one_object)

    def _read_more(self) -> None:
        dropped = self.text[: self.position]
        self.lines_before += dropped.count("\n")
        self.columns_before = len(dropped) - dropped.rfind("\n") - 1 + (0 if "\n" in dropped else self.columns_before)
        self.text = self.text[self.position :]
        self.position = 0
        # At least doubling keeps the work linear when one row is larger than many chunks.
        more = self.file.read(max(CHUNK, len(self.text)))
        self.ended = not more
        self.text += more

    def peek(self) -> str:
        """The next character that is not space; empty at the end of the file."""
        while True:
            match = SPACE.match(self.text, self.position)
            assert match is not None
            self.position = match.end()
            if self.position < len(self.text) or self.ended:
                return self.text[self.position : self.position + 1]
            self._read_more()

    def take(self, expected: str, what: str) -> str:
        """Takes one of the expected characters."""
        found = self.peek()
        if not found or found not in expected:
            self.fail(f"expected {what}, found {found!r}" if found else f"the file ends where {what} should stand")
        self.position += 1
        return found

    def value(self, where: str) -> Any:
        """Takes one whole JSON value."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.position)
                # A number or word at the window's edge may go on in the next chunk.
                if end < len(self.text) or self.ended:
                    self.position = end
                    return value
            except RecursionError:
                self.fail(f"{where}: nested too deeply")
            except ValueError as error:
                # What is whole and wrong stays wrong; what is not valid JSON may only be cut by the window.
                if self.ended or not isinstance(error, json.JSONDecodeError):
                    self._fail_in_value(where, error)
            self._read_more()

    def _fail_in_value(self, where: str, error: ValueError) -> NoReturn:
        if isinstance(error, json.JSONDecodeError):
            self.position = min(error.pos, len(self.text))
            self.fail(f"{where}: {error.msg}")
        self.fail(f"{where}: {error}")

    def first_key(self) -> str | None:
        """The first key of the object that comes next, which is not taken."""
        self.peek()
        while (match := FIRST_KEY.match(self.text, self.position)) is None and not self.ended:
            if len(self.text) - self.position > LONGEST_KEY:
                return None
            self._read_more()
        key = json.loads(match[1]) if match else None
        return key if isinstance(key, str) else None

    def fail(self, problem: str) -> NoReturn:
        """Raises DataError with file, line and column."""
        line = self.lines_before + self.text.count("\n", 0, self.position) + 1
        start = self.text.rfind("\n", 0, self.position)
        column = self.position - start + (self.columns_before if start < 0 else 0)
        raise DataError(f"{self.path}: line {line} column {column}: not valid JSON: {problem}") from None


def stream_splits(path: Path) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """(split, row) of every row, in the order of the file; None in a bare list. Raises DataError naming line, column and row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = _Reader(path, file)
            if reader.peek() == "[":
                yield from _rows(reader, None)
            elif (key := reader.first_key()) is None or key in SPLIT_OF:
                yield from _splits(reader)
            else:
                yield from _lines(reader, key)
            if reader.peek():
                reader.fail("text after the end of the data")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start} of a block); save the file as UTF-8"
        ) from None


def _splits(reader: _Reader) -> Iterator[tuple[str | None, dict[str, Any]]]:
    reader.take("{", 'an object {"train": [...], "eval": [...]}')
    if reader.peek() == "}":
        reader.take("}", "}")
        return
    seen: set[str] = set()
    while True:
        key = reader.value("a split's name")
        if not isinstance(key, str):
            reader.fail(f"a split's name is a text, not {key!r}")
        if key in seen:
            reader.fail(f"split {key!r} stands twice")
        if key not in SPLIT_OF:
            raise DataError(f"{reader.path}: {_unknown(key)}")
        seen.add(key)
        reader.take(":", "a colon")
        yield from _rows(reader, key)
        if reader.take(",}", "a comma or }") == "}":
            return


def _unknown(key: str) -> str:
    return f'unknown split "{key}"{did_you_mean(key, SPLIT_OF)}; a data file has "train" and "eval" (and may have "calibration")'


def _lines(reader: _Reader, key: str) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """The rows of JSON Lines that a file named .json holds. What is one object alone, and no row, is refused."""
    row = reader.value("row[0]")
    if reader.peek() != "{":
        if not reader.peek() and any(isinstance(value, dict | list) for value in row.values()):
            raise DataError(f"{reader.path}: {_why_no_rows(row, key)}")
        if reader.peek():
            reader.fail(
                f"row[0]: {reader.peek()!r} after the object; JSON Lines have one object a line, and nothing between them"
            )
    yield None, row
    index = 1
    while reader.peek():
        row = reader.value(f"row[{index}]")
        if not isinstance(row, dict):
            reader.fail(f"row[{index}]: a row is an object with named values, not {json.dumps(row)[:60]}")
        yield None, row
        index += 1


def _why_no_rows(value: dict[str, Any], key: str) -> str:
    if all(isinstance(column, dict) for column in value.values()):
        return f'holds columns ("{key}", ...), as data frames write them; write rows: to_json(orient="records", lines=True)'
    lists = [name for name, part in value.items() if isinstance(part, list) and part and isinstance(part[0], dict)]
    if lists:
        return (
            f'unknown split "{key}"; the rows seem to stand in "{lists[0]}": write that list alone, or call it "train"'
        )
    return _unknown(key)


def _rows(reader: _Reader, split: str | None) -> Iterator[tuple[str | None, dict[str, Any]]]:
    if reader.peek() != "[":
        raise DataError(f'{reader.path}: "{split}" must be a list of rows [...]')
    reader.take("[", "[")
    if reader.peek() == "]":
        reader.take("]", "]")
        return
    index = 0
    while True:
        row = reader.value(f"{split or 'row'}[{index}]")
        if not isinstance(row, dict):
            raise DataError(
                f"{reader.path}: {split or 'row'}[{index}]: a row is an object with named values, not {json.dumps(row)[:60]}"
            )
        yield split, row
        index += 1
        if reader.take(",]", "a comma or ]") == "]":
            return
