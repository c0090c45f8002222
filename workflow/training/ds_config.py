"""The DeepSpeed configuration of a run: which ZeRO stage, and what a user's file may say.

Pure functions of settings; does not import deepspeed. A file says ZeRO and offload; batch size, accumulation,
clipping, learning rate and precision are settings of the run, said once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow.config.sections import ZERO_STAGES as STAGES
from workflow.errors import ConfigError
from workflow.training.ds_file import ZERO, read_ds_file, stage_text

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BackendPlan:
    """The decisions that DeepSpeed is started with."""

    stage: int
    precision: str
    config: dict[str, Any]
    name: str
    why: str = ""
    """For people, where the stage was chosen for them."""

    def __str__(self) -> str:
        return stage_text(self.name, self.config[ZERO])


def pick_precision(asked: str, device: str) -> str:
    """fp32 or bf16: `auto` is bf16 on GPU and fp32 on CPU."""
    return ("bf16" if device == "cuda" else "fp32") if asked == "auto" else asked


def torch_dtype(asked: str, device: str) -> torch.dtype:
    """The weights' type for inference."""
    import torch

    return torch.bfloat16 if pick_precision(asked, device) == "bf16" else torch.float32


def plan_backend(
    *,
    deepspeed: str,
    precision: str,
    optimizer: str,
    world_size: int,
    max_grad_norm: float,
    micro_batch_size: int,
    lora_base: str = "full",
) -> BackendPlan:
    """The DeepSpeed configuration. Raises ConfigError for combinations that would train wrongly, or in vain."""
    name = _auto_stage(precision, world_size) if deepspeed == "auto" else deepspeed
    given: dict[str, Any] = (
        {ZERO: {"stage": STAGES.index(name)}} if name in STAGES else read_ds_file(Path(name), precision=precision)
    )
    stage = int(given[ZERO]["stage"])
    if optimizer == "adafactor" and (stage > 0 or precision != "fp32"):
        raise ConfigError(
            f"--optimizer adafactor with {STAGES[stage]} and {precision}: the backend hands it flat one-dimensional partitions, so nothing is "
            "factored and results depend on the number of ranks; use adamw, or --deepspeed zero0 --precision fp32"
        )
    if stage == 3 and lora_base != "full":
        raise ConfigError(
            f"--lora_base {lora_base} with {name}: ZeRO-3 shares out parameters; quantised weights are none, and every rank would hold all of "
            "them; use --deepspeed zero2, or --lora_base full"
        )
    if stage == 0 and precision == "bf16":
        raise ConfigError(
            "--deepspeed zero0 with bf16: DeepSpeed's optimizer of this pair has taken a step before the first one, which spoils Adam's bias "
            "correction; use zero1 (the same memory on one rank) or --precision fp32"
        )
    # ZeRO 0 in fp32 reports no gradient norm, so the backend clips there itself.
    config = given | {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,  # boundaries are set by hand
        "gradient_clipping": max_grad_norm if stage > 0 else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's own AdamW needs no compiler
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        # Else sums over micro-batches, kept in fp32, are rounded to bf16 before they are summed over ranks.
        config.setdefault("communication_data_type", "fp32")
    return BackendPlan(stage=stage, precision=precision, config=config, name=name)


def _auto_stage(precision: str, world_size: int) -> str:
    if world_size > 1:
        return "zero2"
    return "zero0" if precision == "fp32" else "zero1"
