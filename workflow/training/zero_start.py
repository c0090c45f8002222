"""Starts DeepSpeed: gives a loaded model's weights their places one after the other, then makes the engine.

Knows nothing of what the engine is used for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from workflow.training.ds_config import BackendPlan


def settle(model: Any, plan: BackendPlan, device: torch.device) -> None:
    """Gives the parameters memory of their own, in the type of training and on the device, one after the other.

    A loaded model's are pages of its files, shared by the ranks of a machine. DeepSpeed would convert all of them
    before it shards the first, and write into the pages, which makes copies; here ZeRO-3 keeps of each what is this
    rank's before the next is read. The other stages need them whole, but apart from files that may be removed.
    """
    dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
    first: Any = None
    with _quiet_deepspeed() as deepspeed:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(device, dtype, copy=True)
            if plan.stage < 3:
                continue
            if first is None:
                first = parameter
                deepspeed.zero.Init(torch.nn.ParameterList([first]), config_dict_or_path=plan.config, dtype=dtype)
            else:
                first.convert_to_zero_parameters(param_list=[parameter])
    for buffer in model.buffers():  # DeepSpeed leaves those of a sharded model where they are
        buffer.data = buffer.data.to(device)


def initialize(model: Any, optimizer: torch.optim.Optimizer, plan: BackendPlan) -> Any:
    """DeepSpeed's engine around a model that has been settled."""
    with _quiet_deepspeed() as deepspeed:
        wrapped, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=plan.config)
    return wrapped


@contextlib.contextmanager
def _quiet_deepspeed() -> Iterator[Any]:
    """The package, silent, and without compiling anything."""
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # Its shared-memory operator for CPU ranks needs a compiler; gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield deepspeed
