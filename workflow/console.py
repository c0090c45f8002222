"""The console that commands print to: silent on all ranks but the first, wide enough for tables in log files.

Knows nothing of what is printed.
"""

from __future__ import annotations

from rich.console import Console

LOG_WIDTH = 140


def make_console(*, quiet: bool = False) -> Console:
    """A console on standard output; lines are never wrapped, and a log file gets plain text."""
    console = Console(quiet=quiet, highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(quiet=quiet, highlight=False, soft_wrap=True, width=LOG_WIDTH)
