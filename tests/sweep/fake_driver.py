"""The `workflow` command whose local jobs run the made-up program instead of a training."""

from __future__ import annotations

import sys

from workflow import cli
from workflow.jobs.local import LocalExecutor


def made_up(job):
    return [sys.executable, "-m", "tests.sweep.fake", *job.flags]


def use_made_up_program() -> None:
    LocalExecutor.__init__.__kwdefaults__["command"] = made_up


if __name__ == "__main__":
    use_made_up_program()
    cli.main()
