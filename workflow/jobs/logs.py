"""The last line of a log that says something.

Knows nothing of who wrote the log.
"""

from __future__ import annotations

import re
from pathlib import Path

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
TAIL_BYTES = 16_384
LONGEST = 400


def last_line(log: Path, *, since: int = 0) -> str | None:
    """The last error with the lines that belong to it, else the last line that is not empty; of what was written `since`.

    None where there is none. A carriage return starts a line, as progress bars have it.
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(since, size - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return None
    lines = [line for line in re.split(r"[\r\n]+", ESCAPES.sub("", text)) if line.strip()]
    found = [number for number, line in enumerate(lines) if line.startswith("error:")]
    if not found:
        return lines[-1].strip()[:LONGEST] if lines else None
    told = [lines[found[-1]].strip()]
    for line in lines[found[-1] + 1 :]:
        if not line.startswith(" "):
            break
        told.append(line.strip())
    return " ".join(told)[:LONGEST]
