"""`workflow plan`.

Knows nothing of models or memory; imports nothing heavy before its arguments are known to be good.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from workflow.commands.parsing import command_parser
from workflow.errors import ConfigError

UNITS = {"": 10**9, "GB": 10**9, "GIB": 1 << 30, "MB": 10**6, "MIB": 1 << 20, "TB": 10**12}
TASKS = ("seq2seq", "clf")
DESCRIPTION = """Tells what a run would need before anything is loaded: memory of each GPU and machine under every ZeRO
stage, which stage, how many tokens a pass and whether to recompute activations, and how long it
would take. Beside the options below it takes every flag of seq2seq.py, or after `clf` of clf.py
(workflow seq2seq -h, workflow clf -h); flags that are given (--deepspeed, --micro_batch_tokens,
--gradient_checkpointing, --precision) are kept to. Exit code 2 where nothing fits."""
EXAMPLE = """workflow plan --model_init_path google/flan-t5-xxl --gpus 1 2 4 8 --gpu_memory 80GB --max_steps 6000
  workflow plan clf --model_pretrain_name google/flan-t5-xl --data_name 1226verifier_ft_all --gpus 1 --gpu_memory 24GB --json"""


def plan(argv: Sequence[str]) -> int:
    """Splits its own options from the settings of the task, then plans."""
    task = argv[0] if argv[:1] and argv[0] in TASKS else TASKS[0]
    rest = list(argv[1:] if argv[:1] == [task] else argv)
    given, flags = _parser().parse_known_args(rest)
    if given.gpus is not None and min(given.gpus) < 1:
        raise ConfigError("workflow plan: --gpus must be at least 1")
    if not 0 < given.mfu <= 1:
        raise ConfigError("workflow plan: --mfu lies above 0 and is at most 1")
    memory = _bytes(given.gpu_memory) if given.gpu_memory is not None else None
    from workflow.config.clf_settings import ClfSettings
    from workflow.config.flags import parse
    from workflow.config.sections import CommandSettings
    from workflow.config.settings import NO_DATA, Seq2SeqSettings

    settings_type: type[CommandSettings] = ClfSettings if task == "clf" else Seq2SeqSettings
    resolved = parse(settings_type, flags, prog="workflow plan", example=EXAMPLE, complete=False)
    if missing := [problem for problem in settings_type.missing(resolved.flat()) if problem != NO_DATA]:
        raise ConfigError(missing[0])
    from workflow.recipe.plan import plan as make
    from workflow.recipe.plan_inputs import find_machine, known_gpu

    gpu = known_gpu(given.gpu) if given.gpu is not None else None
    machine = find_machine(counts=tuple(given.gpus) if given.gpus else None, memory=memory, gpu=gpu)
    assert isinstance(resolved.settings, ClfSettings | Seq2SeqSettings)
    return make(resolved.settings, machine, mfu=given.mfu, in_json=given.json)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("plan [seq2seq|clf]", DESCRIPTION, EXAMPLE)
    parser.usage = "workflow plan [seq2seq|clf] [--gpus N...] [--gpu_memory SIZE] ... --setting value ..."
    parser.add_argument(
        "--gpus",
        nargs="+",
        type=int,
        metavar="N",
        help="how many GPUs, several numbers to compare (default: this machine's, else 1 2 4 8; 8 to a node)",
    )
    parser.add_argument(
        "--gpu_memory", metavar="SIZE", help="of each, e.g. 80GB or 24GiB (default: this machine's, else 80GB)"
    )
    parser.add_argument("--gpu", metavar="NAME", help="whose peak the time is of (default: this machine's, else A100)")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that is reached (default: 0.4)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, in bytes")
    return parser


def _bytes(text: str) -> int:
    """`80GB`, `80`, `24GiB`. Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS or not float(match[1]):
        raise ConfigError(f"workflow plan: --gpu_memory {text}: expected a size such as 80GB or 24GiB")
    return int(float(match[1]) * UNITS[match[2].upper()])
