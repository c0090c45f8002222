"""Starts DeepSpeed: gives a loaded model's weights their places one after the other, then makes the engine.

Knows nothing of what the engine is used for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import BaseModel, ValidationError

from workflow.config.sections import ZERO_STAGES
from workflow.errors import ConfigError, did_you_mean
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


def check_values(plan: BackendPlan) -> None:
    """Have DeepSpeed's own models read a file's configuration, before anything is loaded. Raises ConfigError, one line each."""
    if plan.name in ZERO_STAGES:
        return
    with _quiet_deepspeed():
        from deepspeed.comm.config import CommsLoggerConfig
        from deepspeed.runtime.config import DeepSpeedConfig
        from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        problems = [*_aio_problems(plan.config.get("aio", {}), AIO_DEFAULT_DICT)]
        for block, model in {"zero_optimization": DeepSpeedZeroConfig, "comms_logger": CommsLoggerConfig}.items():
            try:
                model(**plan.config.get(block, {}))
            except ValidationError as error:
                problems += [_explained(problem, block, model) for problem in error.errors()]
            except Exception as error:  # of many kinds, assertions among them; all are about the file
                problems.append(" ".join(str(error).split()) or repr(error))
        if not problems:
            try:
                DeepSpeedConfig(plan.config)
            except Exception as error:  # the same
                problems.append(" ".join(str(error).split()) or repr(error))
    if problems:
        raise ConfigError(*(f"--deepspeed {plan.name}: {problem}" for problem in dict.fromkeys(problems)))


def _aio_problems(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    """Of a block that DeepSpeed reads without a look at keys and types."""
    for key, value in given.items():
        if key not in defaults:
            yield f'unknown key "aio.{key}"{did_you_mean(key, defaults)}'
        elif type(value) is not type(defaults[key]):
            yield f"aio.{key} = {value!r}: expected {type(defaults[key]).__name__}, as in {defaults[key]!r}"


def _explained(problem: Any, block: str, model: type[BaseModel]) -> str:
    """A line of a pydantic error about a block; the nearest known key for one that there is none of."""
    *path, key = map(str, problem["loc"]) if problem["loc"] else ("",)
    where = ".".join(part for part in (*path, key) if part)
    if problem["type"] == "extra_forbidden":
        inner = _fields_within(model, path)
        return f'unknown key "{block}.{where}"{did_you_mean(key, inner)}'
    return f"{block}.{where} = {problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}"


def _fields_within(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys of a block within a block, by any of their names."""
    for part in path:
        inner = getattr(model.model_fields.get(part), "annotation", None)
        parts = [
            found for found in (inner, *get_args(inner)) if isinstance(found, type) and issubclass(found, BaseModel)
        ]
        if not parts:
            return []
        model = parts[0]
    return [name for key, info in model.model_fields.items() for name in (key, info.alias) if name]


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
