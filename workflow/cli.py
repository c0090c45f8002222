"""`workflow COMMAND ...`: one function a command, heavy imports inside it, so that help and misspellings answer at once.

Knows nothing of how a command does its work.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from workflow import __version__
from workflow.errors import ConfigError, did_you_mean
from workflow.exits import run_main

COMMANDS: dict[str, tuple[str, str]] = {
    "seq2seq": ("Training", "fine-tune a T5-family model on prompts and completions"),
    "clf": ("Training", "fine-tune a T5, BERT or GPT-2 that scores or classifies inputs"),
    "generate": ("Using a model", "answer prompts with a run or a checkpoint"),
    "init-model": ("Models and data", "make a T5, BERT or GPT-2 from scratch in a published shape"),
    "data": ("Models and data", "`data check NAME`: what is odd about a data set"),
    "config": (
        "Models and data",
        "`config show ...`: every setting and its origin; `config schema`: JSON schema of settings files",
    ),
    "quickstart": ("Getting started", "train and try the embedded tiny model in a few minutes"),
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
    run: Callable[[Sequence[str]], int] = globals()[f"_{command.replace('-', '_')}"]
    return run(rest)


def _overview() -> str:
    lines = ["usage: workflow COMMAND ...   (workflow COMMAND -h for help)", ""]
    for group in dict.fromkeys(group for group, _ in COMMANDS.values()):
        lines += [
            f"{group}:",
            *(f"  {name:<11} {text}" for name, (where, text) in COMMANDS.items() if where == group),
            "",
        ]
    return (
        "\n".join(lines)
        + "example:\n  workflow seq2seq --model_init_path google/flan-t5-small --data_name data --max_steps 1000"
    )


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ConfigErrors, and which suggests near flags."""

    def error(self, message: str) -> NoReturn:
        unknown = (
            message.removeprefix("unrecognized arguments: ").split()[0] if message.startswith("unrecognized") else ""
        )
        known = [spelling for action in self._actions for spelling in action.option_strings]
        raise ConfigError(f"{self.prog}: {message}{did_you_mean(unknown, known) if unknown else ''}")


def _parser(command: str, example: str) -> _Parser:
    return _Parser(
        prog=f"workflow {command}",
        description=COMMANDS[command.split()[0]][1],
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _seq2seq(argv: Sequence[str]) -> int:
    from workflow.seq2seq import seq2seq

    return seq2seq(argv)


def _clf(argv: Sequence[str]) -> int:
    from workflow.clf import clf

    return clf(argv)


# ---- generate


def _generate(argv: Sequence[str]) -> int:
    parser = _parser("generate", 'workflow generate quickstart "Normalise the date: March 3rd, 2021"')
    parser.add_argument("model", metavar="RUN", help="a run's name under mount/models, a folder, or a hub name")
    parser.add_argument("prompt", nargs="*", help="prompts to answer, one line each on standard output")
    parser.add_argument(
        "--data", metavar="FILE", help='a file of rows with "prompt" (.json, .jsonl, .csv, .tsv, .parquet); needs --out'
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="prediction file to write, in the format of training-time evaluations"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="below 0.01 decoding is greedy (default: 0)")
    parser.add_argument("--n_samples", type=int, default=1, help="answers per prompt (default: 1)")
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--top_k", type=int, default=0)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--max_new_tokens", type=int, help="by default what the checkpoint was saved with")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--mount", type=Path, help="folder that holds data/ and models/")
    given = parser.parse_args(argv)
    _check_generate(given)
    from workflow.recipe.predict import generate

    return generate(given)


def _check_generate(given: argparse.Namespace) -> None:
    from workflow.config.settings import GREEDY_BELOW

    if bool(given.prompt) == bool(given.data):
        raise ConfigError("workflow generate: pass either prompts or --data FILE")
    if given.data and not given.out:
        raise ConfigError("workflow generate: --data needs --out FILE")
    if given.num_beams > 1 and (given.temperature >= GREEDY_BELOW or given.n_samples > 1):
        raise ConfigError("workflow generate: --num_beams needs greedy decoding (--temperature 0) and --n_samples 1")
    for name in ("n_samples", "num_beams", "batch_size"):
        if getattr(given, name) < 1:
            raise ConfigError(f"workflow generate: --{name} must be at least 1")
    if given.temperature < 0 or not 0 < given.top_p <= 1 or given.top_k < 0 or (given.max_new_tokens or 1) < 1:
        raise ConfigError(
            "workflow generate: --temperature and --top_k must not be negative, --top_p lies in (0, 1], --max_new_tokens is at least 1"
        )


# ---- init-model


def _init_model(argv: Sequence[str]) -> int:
    from workflow.models.shapes import SHAPES_BY_ARCH

    shapes = "; ".join(f"{arch}: {', '.join(shapes)}" for arch, shapes in SHAPES_BY_ARCH.items())
    parser = _parser(
        "init-model",
        "workflow init-model --like tiny --data_name data --out mount/models/tiny\n"
        "  workflow init-model --arch bert --like tiny --data_name 1226verifier_ft_all --out mount/models/tiny-bert\n"
        "  workflow init-model --arch gpt2 --like gpt2 --tokenizer mount/models/my-gpt2 --out mount/models/new-gpt2",
    )
    parser.add_argument("--arch", default="t5", choices=list(SHAPES_BY_ARCH), help="the architecture (default: t5)")
    parser.add_argument(
        "--like",
        required=True,
        metavar="SHAPE",
        help=f"the shape; tiny has at most about a million parameters ({shapes})",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder to write; a model already made there by the same command is kept",
    )
    parser.add_argument("--data_name", "--data", help="train a vocabulary on the texts of this data set, of any task")
    parser.add_argument(
        "--tokenizer", metavar="DIR|byt5", help="use this tokenizer instead (a folder, or byt5 for bytes, t5 alone)"
    )
    parser.add_argument(
        "--vocab_size",
        type=int,
        help="most pieces of a trained vocabulary (default: 32000 for t5, 30522 for bert, 50257 for gpt2; for their tiny shapes 1000, 2000, 2000)",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        default=[],
        metavar="WORD",
        help="t5 alone: label words that become single pieces of the trained vocabulary, as yes and no always are",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mount", type=Path, help="folder that holds data/ and models/")
    given = parser.parse_args(argv)
    if bool(given.data_name) == bool(given.tokenizer):
        raise ConfigError(
            "workflow init-model: pass either --data_name NAME (a vocabulary is trained on it) or --tokenizer DIR|byt5"
        )
    from workflow.recipe.init_model import init_model

    return init_model(given)


# ---- data


def _data(argv: Sequence[str]) -> int:
    usage = "usage: workflow data check NAME [--model_init_path PATH] [--json]   (workflow data check -h for all)"
    if argv[:1] in (["-h"], ["--help"]):
        print(usage)
        return 0
    if argv[:1] != ["check"]:
        raise ConfigError(usage)
    parser = _parser("data check", "workflow data check data --model_init_path google/flan-t5-small")
    parser.add_argument("data_name", metavar="NAME", help="a name under mount/data, a path, or hf:NAME")
    parser.add_argument(
        "--model_init_name", help="check lengths and round trips with the tokenizer of this folder under mount/models"
    )
    parser.add_argument("--model_init_path", help="the same, by path or hub name")
    parser.add_argument("--max_source_length", type=int, default=1024)
    parser.add_argument("--max_target_length", type=int, default=512)
    parser.add_argument(
        "--task", choices=("seq2seq", "clf"), help="what the data is for; by default its first row tells"
    )
    parser.add_argument("--labels", nargs="+", default=["no", "yes"], help="clf: names of the classes")
    parser.add_argument(
        "--target_range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="clf: bounds of the targets"
    )
    parser.add_argument("--template", metavar="FILE|TEXT", help="clf: wraps each row, with {field} for its keys")
    parser.add_argument("--max_length", type=int, default=1024, help="clf: tokens of an input")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--mount", type=Path, help="folder that holds data/ and models/")
    given = parser.parse_args(argv[1:])
    from workflow.recipe.check_data import check_data

    return check_data(given)


# ---- config


def _config(argv: Sequence[str]) -> int:
    from workflow.config.settings import Seq2SeqSettings

    if argv[:1] == ["schema"]:
        print(json.dumps(_flat_schema(Seq2SeqSettings), indent=1))
        return 0
    usage = "usage: workflow config show [seq2seq] [--config FILE...] [--setting value ...], or workflow config schema"
    if argv[:1] in (["-h"], ["--help"]):
        print(usage)
        return 0
    if argv[:1] != ["show"]:
        raise ConfigError(usage)
    from workflow.config.flags import parse

    rest = list(argv[1:])
    if rest[:1] == ["seq2seq"]:
        rest.pop(0)
    resolved = parse(
        Seq2SeqSettings,
        rest,
        prog="workflow config show",
        example="workflow config show --config configs/quickstart.json --lr 1e-3",
        complete=False,
    )
    for name, value in resolved.flat().items():
        print(f"{name:<28} {json.dumps(value):<24} {resolved.origin(name)}")
    return 0


def _flat_schema(settings: Any) -> dict[str, Any]:
    """JSON schema of a settings file: sections, or their settings flat at the top, by any of their names."""
    from workflow.config.sections import field_aliases, section_fields

    schema: dict[str, Any] = settings.model_json_schema()
    sections = {
        name: schema["$defs"][part["$ref"].rsplit("/", 1)[-1]]
        for name, part in ((key, _reference(value)) for key, value in schema["properties"].items())
    }
    for name, (section, field) in section_fields(settings).items():
        for spelling in (name, *field_aliases(field)):
            schema["properties"][spelling] = sections[section]["properties"][name]
    return schema


def _reference(value: dict[str, Any]) -> dict[str, Any]:
    return value if "$ref" in value else next(part for part in value["allOf"] if "$ref" in part)


# ---- quickstart


def _quickstart(argv: Sequence[str]) -> int:
    parser = _parser("quickstart", 'workflow quickstart "Normalise the date: the 3rd of March 2021"')
    parser.add_argument("prompt", nargs="?", default="Normalise the date: the 3rd of March 2021")
    given = parser.parse_args(argv)
    from workflow.recipe.quickstart import quickstart

    return quickstart(given.prompt)
