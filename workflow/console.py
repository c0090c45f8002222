"""The console that commands print to: silent on all ranks but the first, wide enough for tables in log files.

Texts are printed as they are: a name such as `run[1]` is no markup. A style is asked for, by `styled` or a table's own.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from workflow.files import is_stdout

LOG_WIDTH = 140
_stdout_is_output = False


def make_console(*, quiet: bool = False) -> Console:
    """Makes a console on standard output, or on standard error where the other holds a command's output.

    Lines are never wrapped, and a log file gets plain text.
    """

    def made(width: int | None = None) -> Console:
        return Console(
            quiet=quiet,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
            width=width,
            stderr=_stdout_is_output,
        )

    console = made()
    return console if console.is_terminal else made(LOG_WIDTH)


def styled(word: str, style: str, text: str = "") -> Text:
    """A word in a style, and plain text behind it."""
    return Text.assemble((word, style), text)


def leave_stdout_to(out: Path | None) -> None:
    """Has consoles made from now on print to standard error, where `out` is standard output."""
    global _stdout_is_output  # standard output is the process's, too
    _stdout_is_output = out is not None and is_stdout(out)
