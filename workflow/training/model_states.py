"""What weights, gradients and optimizer take on a GPU and on its machine under each ZeRO stage, in bytes.

Pure functions of numbers; does not import deepspeed. Counted after what DeepSpeed 0.19 allocates (tests compare), which
is more than the papers' figures where it keeps two copies of gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

FP32 = 4
MASTERS_AND_MOMENTS = 12
"""fp32 masters and Adam's two moments."""
BUCKET, LIVE, PREFETCH, SUB_GROUP = 500_000_000, 1_000_000_000, 50_000_000, 1_000_000_000
"""DeepSpeed's defaults, in elements: `reduce_bucket_size`, `stage3_max_live_parameters`, prefetching, `sub_group_size`."""
NF4_BYTES = (4 + (8 + 32 / 256) / 64) / 8
"""Of a number in NF4: a block of 64 has a scale of 8 bits, and 256 of these one of 32 (Dettmers et al. 2023)."""
PROCESS_BYTES = 3 * 10**9
"""Of a rank's process: Python, torch, CUDA's libraries."""


@dataclass(frozen=True)
class Zero:
    """How states are shared out, `name` being what --deepspeed takes; sizes of buffers in elements.

    `group`: ranks among which ZeRO-3 shares the weights out a second time, 1 for none (ZeRO++'s hpZ).
    """

    name: str
    stage: int
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    bucket: int = BUCKET
    live: int = LIVE
    group: int = 1

    @classmethod
    def of(cls, name: str, config: Mapping[str, Any]) -> Zero:
        """From the object of a DeepSpeed configuration."""
        zero = config.get("zero_optimization", {})

        def offloads(key: str) -> bool:
            return str((zero.get(key) or {}).get("device", "none")) != "none"

        return cls(
            name,
            zero.get("stage", 0),
            offloads("offload_optimizer"),
            offloads("offload_param"),
            int(zero.get("reduce_bucket_size", BUCKET)),
            int(zero.get("stage3_max_live_parameters", LIVE)),
            max(1, int(zero.get("zero_hpz_partition_size", 1))) if zero.get("stage") == 3 else 1,
        )

    @property
    def offloads(self) -> bool:
        """Whether anything waits in the machine's memory."""
        return self.offloads_optimizer or self.offloads_weights


STAGES = tuple(Zero(f"zero{stage}", stage) for stage in range(4))
OFFLOADS = (
    Zero("ds_configs/zero2_offload.json", 2, offloads_optimizer=True),
    Zero("ds_configs/zero3_offload.json", 3, offloads_optimizer=True, offloads_weights=True),
)


@dataclass(frozen=True)
class States:
    """Bytes on one GPU: held all the time, in each backward pass besides (`buffers`), and while an update is made (`update`).

    `host` is what a rank keeps in its machine's memory.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    update: int
    host: int

    @property
    def held(self) -> int:
        """While activations stand in memory."""
        return self.weights + self.gradients + self.optimizer + self.buffers

    @property
    def at_update(self) -> int:
        """Between the last backward pass and the next forward pass."""
        return self.weights + self.gradients + self.optimizer + self.update


def model_states(
    num_parameters: int,
    zero: Zero,
    *,
    precision: str,
    world_size: int,
    adafactor_numbers: int | None = None,
    num_frozen: int = 0,
    num_quantised: int = 0,
) -> States:
    """Of one rank. `adafactor_numbers`: what Adafactor keeps, in place of AdamW's two moments (ZeRO-0, fp32).

    `num_frozen` weights more do not train: they stand there, under ZeRO-3 a share on each rank, and are gathered with the others;
    `num_quantised` of them are held in NF4 (not under ZeRO-3).
    """
    if num_frozen:
        states = model_states(
            num_parameters, zero, precision=precision, world_size=world_size, adafactor_numbers=adafactor_numbers
        )
        states = _with_frozen(
            states, num_parameters, num_frozen - num_quantised, zero, precision=precision, world_size=world_size
        )
        return replace(states, weights=states.weights + math.ceil(NF4_BYTES * num_quantised))
    size = 2 if precision == "bf16" else FP32
    whole, share = num_parameters, math.ceil(num_parameters / world_size)
    bucket = min(zero.bucket, whole)
    if zero.stage == 0:
        moments = 2 * whole if adafactor_numbers is None else adafactor_numbers
        reduced = FP32 * min(BUCKET, whole) if world_size > 1 else 0  # one rank reduces nothing
        return States(FP32 * whole, FP32 * whole, FP32 * moments, 0, reduced, 0)
    if zero.stage == 3:
        return _sharded(whole, share, bucket, zero, size=size, world_size=world_size)
    optimizer = MASTERS_AND_MOMENTS * share
    if zero.offloads_optimizer:  # gradients leave as their bucket is full
        return States(size * whole, 0, 0, 2 * size * bucket, size * bucket, optimizer + (FP32 + size) * share)
    if zero.stage == 1:  # in bf16, sums in fp32 stand beside every gradient
        gradients = FP32 * whole + (size * whole if precision == "bf16" else 0)
        update = size * whole if precision == "bf16" else FP32 * share
        return States(size * whole, gradients, optimizer, size * bucket, update, 0)
    buffers = size * bucket + (size * share if precision == "bf16" else 0)
    update = buffers if precision == "bf16" else FP32 * share + size * bucket
    return States(size * whole, FP32 * share, optimizer, buffers, update, 0)


def _sharded(whole: int, share: int, bucket: int, zero: Zero, *, size: int, world_size: int) -> States:
    """ZeRO-3: shares alone, and the weights of the layers at work; one rank's share is all there is."""
    gathered = min(whole, zero.live + PREFETCH) if world_size > 1 or zero.offloads_weights else 0
    buffers = size * (bucket + gathered)
    states = (MASTERS_AND_MOMENTS + FP32) * share
    second = _second_shares(whole, zero, size=size)
    if zero.offloads_weights:
        return States(second, 0, 0, buffers, 0, states + size * share)
    if zero.offloads_optimizer:
        return States(size * share + second, 0, 0, buffers, 0, states)
    return States(
        size * share + second, FP32 * share, MASTERS_AND_MOMENTS * share, buffers, FP32 * min(share, SUB_GROUP), 0
    )


def _second_shares(numbers: int, zero: Zero, *, size: int) -> int:
    return size * math.ceil(numbers / zero.group) if zero.group > 1 else 0


def _with_frozen(
    states: States, num_trained: int, num_frozen: int, zero: Zero, *, precision: str, world_size: int
) -> States:
    size = 2 if precision == "bf16" else FP32
    if zero.stage < 3:
        return replace(states, weights=states.weights + size * num_frozen)
    share, live = math.ceil(num_frozen / world_size), zero.live + PREFETCH
    is_gathered = world_size > 1 or zero.offloads_weights
    more = min(num_trained + num_frozen, live) - min(num_trained, live) if is_gathered else 0
    second = _second_shares(num_frozen, zero, size=size)
    states = replace(states, buffers=states.buffers + size * more, weights=states.weights + second)
    if zero.offloads_weights:
        return replace(states, host=states.host + size * share)
    return replace(states, weights=states.weights + size * share)


def with_averages(states: States, numbers: int, zero: Zero, *, world_size: int) -> States:
    """With fp32 averages of `numbers` weights in all, which lie where the masters do."""
    size = FP32 * (numbers if zero.stage == 0 else math.ceil(numbers / world_size))
    if zero.offloads_optimizer:
        return replace(states, host=states.host + size)
    return replace(states, optimizer=states.optimizer + size)


def host_bytes(num_parameters: int, states: States, *, ranks_here: int) -> int:
    """Of a machine, at the most: as if every rank held a copy of the whole fp32 model while it loads, which mapped files spare it;
    later the first one gathers it for each checkpoint."""
    model = FP32 * num_parameters
    return PROCESS_BYTES * ranks_here + max(model * ranks_here, states.host * ranks_here + model)
