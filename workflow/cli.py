"""`workflow COMMAND ...`: the table of commands; a command's module is imported when it is called.

Knows nothing of how a command does its work.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workflow import __version__
from workflow.errors import ConfigError, did_you_mean
from workflow.exits import run_main


@dataclass(frozen=True)
class Command:
    """A command's place in the overview, and `package.module:function` that runs it."""

    group: str
    text: str
    function: str


COMMANDS = {
    "seq2seq": Command("Training", "fine-tune a T5-family model on prompts and completions", "seq2seq:seq2seq"),
    "clf": Command("Training", "fine-tune a T5, BERT or GPT-2 that scores or classifies inputs", "clf:clf"),
    "plan": Command("Training", "what a run needs: memory under every ZeRO stage, hours", "commands.planning:plan"),
    "lr-find": Command(
        "Training",
        "a range test of the learning rate: a suggestion for --lr, and a plot",
        "commands.rate_finding:lr_find",
    ),
    "distill": Command(
        "Training", "train a student on a teacher's scores of unlabelled rows", "commands.scoring:distill"
    ),
    "sweep": Command("Many runs", "runs over a grid of settings, or a search among them", "commands.sweeping:sweep"),
    "suite": Command(
        "Many runs", "`suite run`: many tasks and seeds; `suite transfer`: languages", "commands.sweeping:suite"
    ),
    "ablate": Command("Many runs", "variants x seeds, compared with a baseline", "commands.sweeping:ablate"),
    "generate": Command("Using a model", "answer prompts with a run or a checkpoint", "commands.answering:generate"),
    "serve": Command("Using a model", "serve runs over HTTP, with a page to try them on", "commands.serving:serve"),
    "score": Command("Using a model", "score a file of any size with a run or a checkpoint", "commands.scoring:score"),
    "evaluate": Command(
        "Using a model", "measure prediction files, ensemble them, compare two of them", "commands.scoring:evaluate"
    ),
    "report": Command(
        "Using a model", "one HTML page about a run, or several side by side", "commands.reporting:report"
    ),
    "export": Command("Using a model", "write a run's model for other programs", "commands.exporting:export"),
    "init-model": Command(
        "Models and data", "make a T5, BERT or GPT-2 from scratch in a published shape", "commands.preparing:init_model"
    ),
    "prune": Command(
        "Models and data",
        "set a model's smallest weights to zero, to be kept by --static_sparsity",
        "commands.preparing:prune",
    ),
    "data": Command(
        "Models and data", "check a data set; list, show and make registered ones (GLUE too)", "commands.preparing:data"
    ),
    "config": Command(
        "Models and data",
        "`config show ...`: every setting and its origin; `config schema`: JSON schema of settings files",
        "commands.configuring:config",
    ),
    "jobs": Command(
        "Clusters",
        "`jobs render ...`: a run's flags as a job of Slurm, Kubernetes or ctl; `jobs status|cancel|logs DIR` of a study",
        "commands.jobs:jobs",
    ),
    "results": Command("Results", "tables of runs and studies; export and merge them", "commands.resulting:results"),
    "compare": Command("Results", "whether runs differ by more than chance", "commands.comparing:compare"),
    "leaderboard": Command("Results", "GLUE's test predictions, as the zip it takes", "commands.leading:leaderboard"),
    "doctor": Command("Getting started", "what is wrong with this machine, and what to do", "commands.checking:doctor"),
    "quickstart": Command(
        "Getting started", "train and try the embedded tiny model in a few minutes", "commands.preparing:quickstart"
    ),
}


def main() -> None:
    """The `workflow` command."""
    run_main(workflow, sys.argv[1:])


def workflow(argv: Sequence[str]) -> int:
    """Runs one command and gives its exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"workflow {__version__}")
        return 0
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        raise ConfigError(
            f"unknown command {command!r}{did_you_mean(command, COMMANDS)}; the commands are {', '.join(COMMANDS)}"
        )
    module, function = COMMANDS[command].function.split(":")
    run: Callable[[Sequence[str]], int] = getattr(importlib.import_module(f"workflow.{module}"), function)
    return run(rest)


def _overview() -> str:
    lines = ["usage: workflow COMMAND ...   (workflow COMMAND -h for help)", ""]
    for group in dict.fromkeys(command.group for command in COMMANDS.values()):
        lines += [
            f"{group}:",
            *(f"  {name:<11} {command.text}" for name, command in COMMANDS.items() if command.group == group),
            "",
        ]
    return (
        "\n".join(lines)
        + "\nexample:\n  workflow seq2seq --model_init_path google/flan-t5-small --data_name data --max_steps 1000"
    )
