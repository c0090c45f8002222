"""DeepSpeed files: what one may say here, checked before anything is loaded and without DeepSpeed.

DeepSpeed leaves unknown keys out without a word, so that a misspelt `zero_optimization` trains with ZeRO 0. Keys inside
the blocks, and all values, are checked by DeepSpeed's own models (`zero_start.check_values`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workflow.config.sections import ZERO_STAGES as STAGES
from workflow.errors import ConfigError, did_you_mean, doubled

ZERO, AUTO = "zero_optimization", "auto"
FP16_ADVICE = "--precision bf16 (fp16 overflows in T5's feed-forward layers)"
OWNED = {
    "train_batch_size": "--train_batch_size",
    "train_micro_batch_size_per_gpu": "--micro_batch_size",
    "gradient_accumulation_steps": "--gradient_accumulation_steps",
    "gradient_clipping": "--max_grad_norm",
    "optimizer": "--optimizer and --lr",
    "scheduler": "--lr_scheduler",
    "bf16": "--precision bf16",
    "fp16": FP16_ADVICE,
    "amp": "--precision bf16",
    "torch_autocast": "--precision bf16",
    "data_types": "--precision",
    "activation_checkpointing": "--gradient_checkpointing",
    "zero_force_ds_cpu_optimizer": "--optimizer",
    "tensorboard": "every run, which writes its own",
    "wandb": "--trackers wandb",
}
"""What flags say, or the run itself; a file says it by `auto`, or not at all."""
TAKEN = (
    ZERO,
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "aio",
    "comms_logger",
    "memory_breakdown",
    "dump_state",
    "steps_per_print",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
)
"""What a file may say."""
KINDS: dict[str, tuple[type, ...]] = {
    "communication_data_type": (str,),
    "prescale_gradients": (bool,),
    "gradient_predivide_factor": (int, float),
    "aio": (dict,),
    "comms_logger": (dict,),
    "memory_breakdown": (bool,),
    "dump_state": (bool,),
}
"""What DeepSpeed takes without a look at its type, by JSON's types."""
OF_JSON = {str: "a text", bool: "true or false", int: "a number", dict: "an object"}
UNUSED = (
    "autotuning",
    "comet",
    "compile",
    "compression_training",
    "csv_monitor",
    "curriculum_learning",
    "data_efficiency",
    "elasticity",
    "flops_profiler",
    "hybrid_engine",
    "pipeline",
    "progressive_layer_drop",
    "tensor_parallel",
)
"""Features of DeepSpeed (some of earlier versions alone) that runs here make no use of; a block that turns one off is fine."""
ELSEWHERE = ("deepspeed_config", "zero_stage", "distributed_type", "compute_environment")
"""What Accelerate's files begin with."""
OFFLOADS = {"offload_optimizer": 1, "offload_param": 3}
"""What can be offloaded, from which stage on."""
HALF = ("fp16", "float16", "half", "torch.float16", "torch.half")


def read_ds_file(path: Path, *, precision: str = "") -> dict[str, Any]:
    """What a file says, without `auto` values and blocks that are off. Raises ConfigError with every problem.

    `precision` is the run's, where it is known.
    """
    given = _read(path)
    turns_off = [False, {"enabled": False}]
    if precision == "bf16" and given.get("bf16") in turns_off:
        raise ConfigError(
            f'--deepspeed {path}: "bf16" is off, but this run is in bf16: pass --precision fp32, or say "auto"'
        )
    if found := [key for key in ELSEWHERE if key in given]:
        raise ConfigError(
            f'--deepspeed {path}: "{found[0]}" is of an Accelerate file; DeepSpeed\'s own begins with '
            f'{{"{ZERO}": {{"stage": {_stage_of_accelerate(given)}}}}}'
        )
    given = {key: value for key, value in given.items() if not _is_off(key, value)}
    problems = [*_wrong_autos(given), *_key_problems(given)]
    given = {key: _without_autos(value) for key, value in given.items() if value != AUTO}
    problems += [
        f'"{where}" is {json.dumps(value)}: use {FP16_ADVICE}'
        for where, value in _leaves(given)
        if isinstance(value, str) and value.lower() in HALF and where.partition(".")[0] not in OWNED
    ]
    if not problems:
        problems += _stage_problems(given)
    if problems:
        raise ConfigError(*(f"--deepspeed {path}: {problem}" for problem in dict.fromkeys(problems)))
    return {key: value for key, value in given.items() if key in TAKEN}


def check_deepspeed(name: str, *, may_be_elsewhere: bool = False) -> None:
    """Raise ConfigError where --deepspeed names a file that cannot be used."""
    if name not in (AUTO, *STAGES) and not (may_be_elsewhere and not Path(name).is_file()):
        read_ds_file(Path(name))


def stage_text(name: str, zero: Mapping[str, Any]) -> str:
    """A stage by its name, or a file with the stage and the offloading in it: `zero2`, `ds.json (ZeRO-3, weights on cpu)`."""
    if name in STAGES:
        return name
    parts = [f"ZeRO-{zero.get('stage', 0)}"]
    for key, what in zip(OFFLOADS, ("optimizer", "weights"), strict=True):
        device = block.get("device", "none") if isinstance(block := zero.get(key), dict) else "none"
        parts += [f"{what} on {device}"] if device != "none" else []
    return f"{name} ({', '.join(parts)})"


def _read(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once_each)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--deepspeed {path}: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--deepspeed {path}: not valid JSON: {error}") from None
    if not isinstance(given, dict):
        raise ConfigError(f"--deepspeed {path}: a DeepSpeed file holds one object")
    return given


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f'"{doubled(name for name, _ in pairs)}" is given twice')
    return found


def _is_off(key: str, value: Any) -> bool:
    """Whether a block wishes nothing: by `false`, or without being enabled, whatever else it holds for when it is."""
    if value is None:
        return key in (*TAKEN, *OWNED, *UNUSED)
    if key not in (*OWNED, *UNUSED):
        return False
    if isinstance(value, dict) and (key in ("fp16", "bf16", "amp", "torch_autocast") or "enabled" in value):
        return value.get("enabled", False) in (False, AUTO, None)
    return value is False


def _key_problems(given: Mapping[str, Any]) -> Iterator[str]:
    for key, value in given.items():
        if key in OWNED and value != AUTO:
            yield f'"{key}" is set by {OWNED[key]}: take it out of the file'
        elif key in UNUSED:
            yield f'"{key}" is a feature of DeepSpeed that runs here make no use of: take it out of the file'
        elif key in KINDS and value != AUTO and type(value) not in KINDS[key]:
            yield f'"{key}" must be {OF_JSON[KINDS[key][0]]}, not {json.dumps(value)}'
        elif key not in OWNED and key not in TAKEN:
            yield f'unknown key "{key}"{did_you_mean(key, (*TAKEN, *OWNED))} (a file says {", ".join(TAKEN)})'


def _wrong_autos(given: Mapping[str, Any]) -> Iterator[str]:
    """`auto` where nobody else decides: left out, DeepSpeed's default would be ZeRO 0, or no offloading."""
    for where, value in _leaves(given):
        if value == AUTO and (where == ZERO or where.endswith((".stage", ".device", *OFFLOADS))):
            yield f'"{where}" is "auto", which decides nothing here: write the value, or leave --deepspeed to auto'


def _without_autos(value: Any) -> Any:
    """Left to DeepSpeed's own defaults, as files for other trainers say."""
    if isinstance(value, dict):
        return {key: _without_autos(inner) for key, inner in value.items() if inner != AUTO}
    return value


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{where}.{key}" if where else str(key))
    else:
        yield where, value


def _stage_problems(given: Mapping[str, Any]) -> Iterator[str]:
    zero = given.get(ZERO)
    if zero is None or (isinstance(zero, dict) and "stage" not in zero):
        yield f'says no ZeRO stage: add {{"{ZERO}": {{"stage": N}}}} with N 0, 1, 2 or 3'
    elif not isinstance(zero, dict) or type(zero["stage"]) is not int or zero["stage"] not in range(len(STAGES)):
        yield f"{ZERO}.stage must be 0, 1, 2 or 3, not {json.dumps(zero['stage'] if isinstance(zero, dict) else zero)}"
    else:
        for key, lowest in OFFLOADS.items():
            if (
                zero["stage"] < lowest
                and isinstance(block := zero.get(key), dict)
                and block.get("device") in ("cpu", "nvme")
            ):
                yield f'"{ZERO}.{key}" does nothing below stage {lowest}: raise the stage, or take it out of the file'


def _stage_of_accelerate(given: Mapping[str, Any]) -> Any:
    inner = given.get("deepspeed_config")
    stage = (inner if isinstance(inner, dict) else given).get("zero_stage")
    return stage if stage in range(len(STAGES)) else "N"
