"""What the parsers of all commands share.

Knows nothing of any command.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from workflow.errors import ConfigError, did_you_mean


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
    return CommandParser(
        prog=f"workflow {command}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_mount(parser: CommandParser) -> None:
    """`--mount`, which most commands have."""
    parser.add_argument("--mount", type=Path, help="folder that holds data/ and models/")


def add_meaning(parser: CommandParser) -> None:
    """`--problem`, `--labels` and `--target_range` of commands that read prediction files."""
    group = parser.add_argument_group("what the scores are, by default as the files' runs say, which must agree")
    group.add_argument("--problem", choices=("binary", "multiclass", "multilabel", "regression"))
    group.add_argument("--labels", nargs="+", help="names of the classes")
    group.add_argument("--target_range", nargs=2, type=float, metavar=("LOW", "HIGH"))
