"""What the parsers of all commands share.

Knows nothing of any command.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from workflow.console import leave_stdout_to
from workflow.data.tables import QUOTING
from workflow.errors import ConfigError, did_you_mean
from workflow.files import is_stream, why_not_writable


class CommandParser(argparse.ArgumentParser):
    """argparse whose errors are ConfigErrors, and which suggests near flags."""

    def error(self, message: str) -> NoReturn:
        """Raises the ConfigError."""
        unknown = (
            message.removeprefix("unrecognized arguments: ").split()[0] if message.startswith("unrecognized") else ""
        )
        known = [spelling for action in self._actions for spelling in action.option_strings]
        raise ConfigError(f"{self.prog}: {message}{did_you_mean(unknown, known) if unknown else ''}")


def command_parser(command: str, description: str, example: str) -> CommandParser:
    """A parser with the command's description and an example."""
    leave_stdout_to(None)
    return CommandParser(
        prog=f"workflow {command}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def output_file(text: str) -> Path:
    """The type of `--out FILE`: `-` is standard output, which messages then leave to it. Raises ConfigError."""
    out = Path(text)
    if reason := why_not_writable(out):
        raise ConfigError(f"--out {out}: {reason}; name a file that can be written")
    leave_stdout_to(out)
    return out


def output_folder(text: str) -> Path:
    """The type of `--out DIR`. Raises ConfigError for what can be no folder."""
    out = Path(text)
    if is_stream(out) or out.is_file():
        raise ConfigError(f"--out {out}: is no folder; name one to write into")
    return out


def add_mount(parser: CommandParser) -> None:
    """`--mount`, which most commands have."""
    parser.add_argument("--mount", type=Path, help="folder that holds data/ and models/")


def add_quoting(parser: CommandParser) -> None:
    """`--quoting`, of commands that read data files by themselves."""
    parser.add_argument(
        "--quoting",
        choices=QUOTING,
        default=QUOTING[0],
        help="of CSV and TSV files, as seq2seq.py has it (default: auto)",
    )


def add_meaning(parser: CommandParser) -> None:
    """`--problem`, `--labels` and `--target_range` of commands that read prediction files."""
    group = parser.add_argument_group("what the scores are, by default as the files' runs say, which must agree")
    group.add_argument("--problem", choices=("binary", "multiclass", "multilabel", "regression"))
    group.add_argument("--labels", nargs="+", help="names of the classes")
    group.add_argument("--target_range", nargs=2, type=float, metavar=("LOW", "HIGH"))
