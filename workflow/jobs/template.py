"""Fills a template with a job's fields; every problem of a template and its fields is told at once.

Knows nothing of where values come from. Shell text is quoted by where a value stands (`shell_text`), YAML is filled after
it was read, so that no value can change its structure.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow.errors import TemplateError, did_you_mean
from workflow.jobs.shell_text import FIELD, Place, Reader, Value, quoted

HERE = Path(__file__).parent / "templates"
"""What stands in several of these stands in each, so that a user can copy one and change it."""
Fields = Mapping[str, Value | None]


@dataclass(frozen=True)
class Template:
    """A template's text and name; `.yaml` and `.yml` are YAML, `.txt` lines of one command, all else is a shell script."""

    name: str
    text: str

    @staticmethod
    def named(name: str) -> Template:
        """One of the package's."""
        return Template(name, (HERE / name).read_text(encoding="utf-8"))

    @staticmethod
    def read(file: Path) -> Template:
        """A user's. Raises TemplateError."""
        try:
            return Template(str(file), file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"{file}: cannot read this template: {error}") from None

    @property
    def is_yaml(self) -> bool:
        """Whether the text is filled as YAML."""
        return self.name.endswith((".yaml", ".yml"))

    def fields(self) -> set[str]:
        """Names that the template mentions."""
        return {found[1] for found in re.finditer(r"(?<![${])" + FIELD.pattern, self.text)}

    def fill(self, fields: Fields, *, given: Iterable[str] = ()) -> str:
        """The text with values in it.

        Raises TemplateError for fields without value and for values that were `given` explicitly and have no field.
        """
        return _fill_yaml(self, fields, given) if self.is_yaml else _fill_shell(self, fields, given)


def _fill_shell(template: Template, fields: Fields, given: Iterable[str]) -> str:
    reader = Reader(template.text)
    lines: dict[int, str] = {}
    dropped: set[int] = set()
    used: dict[str, str] = {}
    for piece in reader.pieces:
        written = piece.text
        if piece.field is not None:
            value = fields.get(piece.field)
            if value is None and piece.is_optional and piece.field in fields:
                dropped.add(piece.line)
                used[piece.field] = ""
                continue
            used[piece.field] = "" if value is not None else f"line {piece.line}"
            is_directive = piece.place is Place.COMMENT and lines.get(piece.line, "").startswith("#SBATCH")
            written = quoted(value, piece.place, directive=is_directive) if value is not None else ""
        lines[piece.line] = lines.get(piece.line, "") + written
    _refuse(template.name, reader.problems, used, fields, given)
    kept = [line for number, line in lines.items() if number not in dropped]
    if template.name.endswith(".txt"):  # one command, an option a line
        return " ".join(line.strip() for line in kept if line.strip()) + "\n"
    return "".join(kept)


def _refuse(name: str, problems: list[str], used: Mapping[str, str], fields: Fields, given: Iterable[str]) -> None:
    found = list(problems)
    for field, where in used.items():
        if field not in fields:
            hint = did_you_mean(field, fields) or f"; pass --field {field}=VALUE"
            found.append(f"{where}: {{{field}}} has no value{hint}")
        elif where:
            found.append(
                f"{where}: {{{field}}} has no value here; pass --{field}, or write {{{field}?}} to leave its line out"
            )
    found += [
        f"{field} was given, and the template has no {{{field}}}{did_you_mean(field, used)}"
        for field in given
        if field not in used
    ]
    if found:
        raise TemplateError(
            f"{name}: {found[0]}" if len(found) == 1 else f"{name}: {len(found)} problems:\n  " + "\n  ".join(found)
        )


class _Absent:
    """Stands for an entry that is left out."""


def _fill_yaml(template: Template, fields: Fields, given: Iterable[str]) -> str:
    import yaml

    from workflow.config.yaml_text import documents

    try:
        read = [*documents(template.text)]
    except yaml.YAMLError as error:
        raise TemplateError(
            f"{template.name}: not valid YAML before it is filled (quote a field within text: "
            f'"{{job_name}}-x"): {" ".join(str(error).split())}'
        ) from None
    tree = _Tree(fields)
    filled = [tree.fill(document, "") for document in read if document is not None]
    _refuse(template.name, tree.problems, tree.used, fields, given)
    return yaml.safe_dump_all(filled, sort_keys=False, allow_unicode=True, width=100)


class _Tree:
    """Fills the texts of a YAML document; a text that is one field takes the value's type, and a list becomes items."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self.used: dict[str, str] = {}
        self.problems: list[str] = []

    def fill(self, node: Any, path: str) -> Any:
        if isinstance(node, dict):
            if len(node) == 1 and [*node.values()] == [None] and FIELD.fullmatch(f"{{{next(iter(node))}}}"):
                return self._text(f"{{{next(iter(node))}}}", path)  # {gpus} without quotes is such a mapping to YAML
            entries = {
                str(self.fill(key, path)): self.fill(value, f"{path}.{key}".strip(".")) for key, value in node.items()
            }
            left = {key: value for key, value in entries.items() if value is not _Absent}
            return left if left or not node else _Absent
        if isinstance(node, list):
            items: list[Any] = []
            for number, one in enumerate(node):
                filled = self.fill(one, f"{path}[{number}]")
                is_spliced = isinstance(filled, list) and not isinstance(one, list)
                items += filled if is_spliced else [] if filled is _Absent else [filled]
            return items
        return self._text(node, path) if isinstance(node, str) else node

    def _text(self, text: str, path: str) -> Any:
        if (only := FIELD.fullmatch(text)) is not None:
            value = self._value(only[1], path, is_optional=bool(only[2]))
            if value is _Absent or isinstance(value, int | dict):
                return value
            return _kept(value) if isinstance(value, str) else [_kept(one) for one in value]
        pieces, at = [], 0
        for found in re.finditer(r"\$\{[^{}]*\}|\{\{|\}\}|" + FIELD.pattern + r"|[{}]", text):
            pieces.append(text[at : found.start()])
            at = found.end()
            if found[1]:
                value = self._value(found[1], path, is_optional=bool(found[2]))
                if value is _Absent:
                    return _Absent
                pieces.append(_kept(str(value) if isinstance(value, str | int) else shlex.join(value)))
            elif found[0] in ("{", "}"):
                self.problems.append(f"{path}: {found[0]!r}: a field is a plain name; a brace is written {{{{ or }}}}")
            else:
                pieces.append({"{{": "{", "}}": "}"}.get(found[0], found[0]))
        return "".join([*pieces, text[at:]])

    def _value(self, name: str, path: str, *, is_optional: bool) -> Any:
        value = self.fields.get(name)
        if value is None and is_optional and name in self.fields:
            self.used.setdefault(name, "")
            return _Absent
        if value is None:
            self.used[name] = path
            return ""
        self.used.setdefault(name, "")
        return value


def _kept(text: str) -> str:
    """Kubernetes replaces $(NAME) in commands, arguments and variables, and reads $$ as one $."""
    return text.replace("$", "$$") if "$(" in text or "$$" in text else text


def check_shell(script: str, *, name: str) -> None:
    """Raises TemplateError where bash, if there is one, cannot read the script."""
    bash = shutil.which("bash")
    if bash is None:
        return
    done = subprocess.run([bash, "-n"], input=script, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise TemplateError(f"{name}: bash cannot read the filled script: {done.stderr.strip()}")
