"""Runs the commands of schedulers.

Knows nothing of any of them.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from workflow.errors import JobError

PATIENCE_S = 120


def ask(command: Sequence[str], *, text: str | None = None) -> str:
    """What a command prints. Raises JobError where it is missing, fails or does not answer."""
    if shutil.which(command[0]) is None:
        raise JobError(f"{command[0]} is not installed here: run this where the scheduler's commands are")
    try:
        done = subprocess.run(
            list(command), input=text, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
    except subprocess.TimeoutExpired:
        raise JobError(f"{command[0]} did not answer within {PATIENCE_S} s") from None
    if done.returncode:
        told = " ".join((done.stderr or done.stdout).split())
        raise JobError(f"{' '.join(command[:2])} failed with {done.returncode}: {told[-600:]}")
    return done.stdout
