"""The type in which a checkpoint's files hold its weights, read from their headers.

Knows nothing of models. `config.json` names a type too, but what it says need not be what the files hold.
"""

from __future__ import annotations

from typing import Any

import torch

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}


def stored_dtype(name: str) -> torch.dtype:
    """bf16 or fp16 where every weight of the folder or hub model `name` is of that type; fp32, which holds all, elsewhere.

    Files are fetched from the hub, if need be, as transformers would. Raises what reading them raises.
    """
    dtypes: set[torch.dtype] = set()
    for file in _weight_files(name):
        dtypes |= _in_safetensors(file) if file.endswith(".safetensors") else _in_pickled(file)
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def _weight_files(name: str) -> list[str]:
    """The files that transformers reads, which prefers safetensors, and one file over its shards."""
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    for file in (SAFETENSORS, PICKLED):
        if found := cached_file(name, file, _raise_exceptions_for_missing_entries=False):
            return [found]
        if index := cached_file(name, f"{file}.index.json", _raise_exceptions_for_missing_entries=False):
            shards: list[str] = get_checkpoint_shard_files(name, index)[0]
            return shards
    return []


def _in_safetensors(file: str) -> set[torch.dtype]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return {HALVES.get(tensors.get_slice(key).get_dtype(), torch.float32) for key in tensors.keys()}  # noqa: SIM118


def _in_pickled(file: str) -> set[torch.dtype]:
    tensors: dict[str, Any] = torch.load(file, map_location="meta", weights_only=True)
    return {
        tensor.dtype if tensor.dtype in HALVES.values() else torch.float32
        for tensor in tensors.values()
        if isinstance(tensor, torch.Tensor)
    }
