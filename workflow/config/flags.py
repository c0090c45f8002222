"""Command-line flags made from settings: `--name value` for every field, `--config FILE...`, and the help page.

Only splits argv into raw texts; `cascade` merges and validates them, so that one error message can hold every
problem of flags and files. (That is why a parser that validates as it goes does not serve: docs/decisions/0002.)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from workflow.config.cascade import NULL, OF_OTHER_PROGRAMS, Layer, Resolved, is_off, read_layers, resolve
from workflow.config.sections import CommandSettings, field_aliases, section_fields, settings_within
from workflow.errors import ConfigError, did_you_mean

S = TypeVar("S", bound=CommandSettings)


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ConfigErrors."""

    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(message)


class _Items(argparse.Action):
    """Several values, as words or as one JSON text: `["-x", "y"]` where a value would look like a flag, `[]`, `null`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:  # noqa: ARG002
        if len(values) == 1 and (values[0] == NULL or values[0].startswith("[")):
            with contextlib.suppress(ValueError):
                values = json.loads(values[0])
        setattr(namespace, self.dest, values)


def parse(
    settings_type: type[S],
    argv: Sequence[str],
    *,
    prog: str,
    example: str,
    complete: bool = True,
    layers: Callable[[Sequence[Path], dict[str, Any]], list[Layer]] = read_layers,
) -> Resolved[S]:
    """The settings that argv and the files it names give. Prints help and exits 0 for -h. Raises ConfigError.

    Unless `complete`, required settings may be missing (to show what a file says). `layers` orders files and flags.
    """
    raw = raw_flags(settings_type, argv, prog=prog, example=example)
    problems = list(raw.problems)
    if raw.others and not problems:
        problems = [f"unexpected argument {raw.others[0]!r}: every setting is given as --name value"]
    return resolve(settings_type, layers(raw.files, raw.flags), problems=problems, complete=complete)


@dataclass(frozen=True)
class RawFlags:
    """argv taken apart: settings files, flags as texts by setting, what is wrong with flags' names, and what is no flag's."""

    files: list[Path]
    flags: dict[str, Any]
    problems: list[str]
    others: list[str]


def raw_flags(settings_type: type[BaseModel], argv: Sequence[str], *, prog: str, example: str) -> RawFlags:
    """Takes argv apart. Prints help and exits 0 for -h. Raises ConfigError."""
    parser = make_parser(settings_type, prog=prog, example=example)
    given, unknown = parser.parse_known_args([_underscored(argument) for argument in argv])
    flags = _nested({key: value for key, value in vars(given).items() if key not in ("config", "local_rank")})
    problems = [_unknown(argument, parser) for argument in unknown if argument.startswith("-")]
    files = [Path(path) for path in getattr(given, "config", [])]
    return RawFlags(files, flags, problems, [argument for argument in unknown if not argument.startswith("-")])


def named_settings(settings_type: type[BaseModel], argv: Sequence[str]) -> set[str]:
    """The settings that flags of argv name, in whatever spelling."""
    parser = make_parser(settings_type, prog="", example="")
    given = vars(parser.parse_known_args([_underscored(argument) for argument in argv])[0])
    return {name.partition(".")[0] for name in given}


def make_parser(settings_type: type[BaseModel], *, prog: str, example: str) -> argparse.ArgumentParser:
    """A parser with one group a section; values stay texts, absent flags stay absent."""
    parser = _Parser(
        prog=prog,
        description=settings_type.__doc__,
        epilog=f"example:\n  {example}",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"{prog} [--config FILE...] --setting value ...",
    )
    general = parser.add_argument_group("Settings files")
    general.add_argument(
        "--config",
        nargs="+",
        metavar="FILE",
        action="extend",
        help="JSON (// comments allowed) or YAML files; later files win, flags win over files; --NAME null unsets what a file sets",
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    groups: dict[str, Any] = {}
    for name, (section, field) in section_fields(settings_type).items():
        if section not in groups:
            annotation = settings_type.model_fields[section].annotation
            assert annotation is not None
            groups[section] = parser.add_argument_group((annotation.__doc__ or section).strip())
        _add_flag(groups[section], name, field, section)
    return parser


def _nested(flags: dict[str, Any]) -> dict[str, Any]:
    """`{"r_drop.alpha": "1"}` -> `{"r_drop": {"alpha": "1"}}`; beside its parts, `--r_drop` itself says nothing unless false."""
    found = {name: value for name, value in flags.items() if "." not in name}
    for name in (name for name in flags if "." in name):
        whole, _, part = name.partition(".")
        if not is_off(found.get(whole)):
            before = found.get(whole)
            found[whole] = {**(before if isinstance(before, dict) else {}), part: flags[name]}
    return found


def _add_flag(group: Any, name: str, field: Any, section: str) -> None:
    """A flag; of a setting made of settings, one that turns it on or off, and one for each of them, also by the section's name."""
    if (within := settings_within(field)) is None:
        _add_value(group, name, field, [f"--{spelling}" for spelling in (name, *field_aliases(field))])
        return
    switch = {"nargs": "?", "const": True, "metavar": "BOOL", "dest": name}
    group.add_argument(f"--{name}", **switch, help=_help(field))
    group.add_argument(f"--{section}.{name}", **switch, help=argparse.SUPPRESS)
    for part, inner in within.model_fields.items():
        _add_value(group, f"{name}.{part}", inner, [f"--{name}.{part}"])
        _add_value(group, f"{name}.{part}", inner, [f"--{section}.{name}.{part}"], is_shown=False)


def _add_value(group: Any, name: str, field: Any, spellings: Sequence[str], *, is_shown: bool = True) -> None:
    text = _help(field) if is_shown else argparse.SUPPRESS
    options: dict[str, Any] = {"dest": name, "help": text, "metavar": _metavar(field.annotation)}
    if field.annotation is bool:
        options |= {"nargs": "?", "const": True, "metavar": "BOOL"}
    elif _items(field.annotation) is not None:
        options |= {"nargs": "+", "action": _Items}
    elif type(None) in typing.get_args(field.annotation):
        options |= {"type": _or_none}
    group.add_argument(*spellings, **options)


def _or_none(text: str) -> str | None:
    """`null` undoes what a settings file says of a setting that need not be set."""
    return None if text == NULL else text


def _underscored(argument: str) -> str:
    """`--max-steps=5` -> `--max_steps=5`: both spellings are understood, one is shown."""
    flag, equals, value = argument.partition("=")
    return flag[:2] + flag[2:].replace("-", "_") + equals + value if flag.startswith("--") else argument


def _help(field: Any) -> str:
    text = str(field.description)
    if field.default not in (None, ()) and field.annotation is not bool:
        shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text += f" (default: {shown})"
    return text.replace("%", "%%")


def _items(annotation: Any) -> tuple[Any, ...] | None:
    """The item types of a setting that holds several values, or None."""
    annotation = _not_none(annotation)
    return typing.get_args(annotation) if typing.get_origin(annotation) is tuple else None


def _not_none(annotation: Any) -> Any:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def _metavar(annotation: Any) -> str:
    if (items := _items(annotation)) is not None:
        return _metavar(items[0])
    annotation = _not_none(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return "|".join(map(str, typing.get_args(annotation)))
    return {int: "N", float: "X", Path: "PATH", bool: "BOOL"}.get(annotation, "TEXT")


def _unknown(argument: str, parser: argparse.ArgumentParser) -> str:
    flag = argument.split("=")[0]
    known = [spelling for action in parser._actions for spelling in action.option_strings]
    theirs = OF_OTHER_PROGRAMS.get(flag.removeprefix("--"), ())
    ours = next((f"--{name}" for name in theirs if f"--{name}" in known), None)
    return f"unknown flag {flag}" + (f"; here it is {ours}" if ours else did_you_mean(flag, known))
