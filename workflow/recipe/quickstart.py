"""`workflow quickstart`: the three commands that a new user would type, shown and run.

Knows nothing that a user does not: it only runs commands.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from workflow.errors import ConfigError
from workflow.paths import find_mount

RUN = "quickstart"


def commands(mount: Path, prompt: str) -> list[list[str]]:
    """Make a tiny model, train it, ask it."""
    models = mount / "models"
    return [
        [
            "workflow",
            "init-model",
            "--like",
            "tiny",
            "--data_name",
            "data",
            "--mount",
            str(mount),
            "--out",
            str(models / "tiny"),
        ],
        ["seq2seq.py", "--config", "configs/quickstart.json", "--mount", str(mount), "--training_run_name", RUN],
        ["workflow", "generate", RUN, prompt, "--mount", str(mount)],
    ]


def quickstart(prompt: str) -> int:
    """Runs the commands in a checkout; stops at the first that fails, with its exit code."""
    if not (Path("seq2seq.py").is_file() and Path("configs/quickstart.json").is_file()):
        raise ConfigError(
            "workflow quickstart: run it from the checkout's folder (it needs seq2seq.py, configs/ and mount/data/)"
        )
    for command in commands(find_mount(), prompt):
        program = ["-m", "workflow"] if command[0] == "workflow" else [command[0]]
        print(f"$ {shlex.join(command if command[0] == 'workflow' else ['python3', *command])}", flush=True)
        code = subprocess.run([sys.executable, *program, *command[1:]], check=False).returncode
        if code:
            return code
    return 0
