"""Runs commands of the product in forked children of a process that has everything imported and has computed nothing.

A line of JSON a command comes in ({"words": [...], "place": DIR}), its exit code goes out. Exit codes and working directories
are real; what a command prints stands in DIR/log.txt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Commands:
    """The process, for one test."""

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked_commands"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def run(self, words: list[str], place: Path) -> tuple[int, str]:
        """(exit code, what it printed)."""
        self.process.stdin.write(json.dumps({"words": words, "place": str(place)}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()), (place / "log.txt").read_text()

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)


def serve() -> None:
    import deepspeed  # noqa: F401  (once, for all children)
    import transformers  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            run(asked["words"], Path(asked["place"]))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(words: list[str], place: Path) -> None:
    from workflow.cli import workflow
    from workflow.exits import run_main

    code: object = 99
    try:
        os.chdir(place)
        with Path("log.txt").open("w") as file:
            for number, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, file.fileno()), (2, file.fileno())):
                os.dup2(target, number)
        run_main(workflow, words[1:] if words[0] == "workflow" else [words[1].removesuffix(".py"), *words[2:]])
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(str(code)))


if __name__ == "__main__":
    serve()
