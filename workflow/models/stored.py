"""What a checkpoint's weight files hold, read from their headers: names, shapes and number formats.

Knows nothing of models. `config.json` names a type too, but what it says need not be what the files hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workflow.errors import ModelError

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
HALVES = (torch.float16, torch.bfloat16)
HEADER_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a weight file. `format` is safetensors' name of its numbers; `dtype` is None unless they are plain floats."""

    shape: tuple[int, ...]
    format: str

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of its numbers, if weights can be of it."""
        return FLOATS.get(self.format)


Stored = Mapping[str, StoredTensor]


def stored_tensors(name: str) -> dict[str, StoredTensor]:
    """All tensors that the folder or hub model `name` holds, by their names in its files.

    Files are fetched from the hub, if need be, as transformers would. Raises what reading them raises.
    """
    found: dict[str, StoredTensor] = {}
    for file in _weight_files(name):
        found |= _in_safetensors(Path(file)) if file.endswith(".safetensors") else _in_pickled(file)
    return found


def stored_dtype(stored: Stored) -> torch.dtype:
    """bf16 or fp16 where every weight is of that type; fp32, which holds all, elsewhere."""
    dtypes = {tensor.dtype if tensor.dtype in HALVES else torch.float32 for tensor in stored.values()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def check_numbers(name: str, stored: Stored, weights: Iterable[str]) -> None:
    """Raises ModelError where a weight of the model is stored as integers or in 8 bits, which would be read as if they were it.

    Integers beside the weights (positions, masks) do not count.
    """
    odd = {key: tensor for key, tensor in stored.items() if tensor.dtype is None}
    names = [*weights] if odd else []
    for key, tensor in odd.items():
        if any(weight == key or weight.endswith(f".{key}") or key.endswith(f".{weight}") for weight in names):
            raise ModelError(
                f"{name}: {key} is stored as {tensor.format}, so its scales are lost or elsewhere: a quantised checkpoint; "
                "name the one that it was made from, in fp32, bf16 or fp16"
            )


def safetensors_header(file: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header, and where it ends. Raises OSError or ValueError.

    The file is read, not mapped: one that is cut short meanwhile would end a process that has mapped it.
    """
    with file.open("rb") as content:
        length = int.from_bytes(content.read(HEADER_LENGTH_BYTES), "little")
        if not 0 < length <= min(file.stat().st_size, MAX_HEADER_BYTES):
            raise ValueError(f"{file.name}: no safetensors file")
        header: dict[str, Any] = json.loads(content.read(length))
    return header, HEADER_LENGTH_BYTES + length


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


def _in_safetensors(file: Path) -> dict[str, StoredTensor]:
    header, _ = safetensors_header(file)
    return {
        key: StoredTensor(tuple(entry["shape"]), entry["dtype"])
        for key, entry in header.items()
        if key != "__metadata__"
    }


def _in_pickled(file: str) -> dict[str, StoredTensor]:
    tensors: dict[str, Any] = torch.load(file, map_location="meta", weights_only=True)
    formats = {dtype: text for text, dtype in FLOATS.items()}
    return {
        key: StoredTensor(tuple(tensor.shape), formats.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.")))
        for key, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor)
    }
