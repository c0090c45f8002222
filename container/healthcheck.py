"""Whether the server of this container lives, by its /health; a container that runs something else is healthy.

Knows nothing of the product but that route, `--port` and WORKFLOW_SERVE_PORT. Exit code 0 or 1, as `HEALTHCHECK` asks for.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from itertools import pairwise
from pathlib import Path


def main() -> int:
    """0 where nothing is served here, or the server says that it lives."""
    serving = [words for words in map(words_of, Path("/proc").glob("[0-9]*")) if is_server(words)]
    if not serving:
        return 0
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port(serving[0])}/health", timeout=5) as answer:
            return 0 if answer.status == 200 else 1
    except (urllib.error.URLError, OSError):
        return 1


def words_of(process: Path) -> list[str]:
    """A process' command line; nothing where it has gone."""
    try:
        return (process / "cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def is_server(words: list[str]) -> bool:
    """`workflow serve ...` or `python3 -m workflow serve ...`, and not the tini or shell around it."""
    return any(Path(first).name == "workflow" and second == "serve" for first, second in pairwise(words)) and Path(
        words[0]
    ).name.startswith("python")


def port(words: list[str]) -> str:
    """The port that the command line names, else the environment, else the server's default."""
    for first, second in zip(words, [*words[1:], ""], strict=True):
        if first.startswith("--port"):
            return first.partition("=")[2] or second
    return os.environ.get("WORKFLOW_SERVE_PORT", "8000")


if __name__ == "__main__":
    sys.exit(main())
