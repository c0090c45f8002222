"""Writes a checkpoint folder that any version of transformers, and other readers, load right.

Knows nothing of runs; writes into the folder it is given, which its caller renames when all is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from workflow.files import write_json
from workflow.models.adapters import ADAPTER_FOLDER
from workflow.models.ends import end_tokens
from workflow.models.load import generation_settings
from workflow.models.quantised import num_weights

if TYPE_CHECKING:
    import torch

    from workflow.models.adapters import Adapters
    from workflow.models.answers import AnswerTexts

SHARD_BYTES = 4 << 30
FP32_BYTES = 4
INDEX_NAME = "model.safetensors.index.json"


class Weights(Protocol):
    """A dict of weights, or what gathers them one by one while it is gone through; it can be gone through once."""

    def items(self) -> Iterable[tuple[str, torch.Tensor]]:
        """(name, weight on the CPU)."""


def write_model(
    folder: Path,
    model: Any,
    tokenizer: Any,
    weights: Weights,
    *,
    max_new_tokens: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    adapters: Adapters | None = None,
    answers: AnswerTexts | None = None,
) -> None:
    """Writes weights (safetensors), configuration, tokenizer and, for models that generate, generation settings and `answers`.

    `weights` are named as in `model.named_parameters()`, so tied weights stand in them once: a state dict gathered
    under ZeRO would hold T5's embedding three times. A model beyond `shard_bytes` (in fp32) is written in files of about
    that size while it is gathered, so that the host never holds the whole of it besides.
    Those of a model with adapters are merged (and held whole), so that the folder is a plain model's; the adapters stand in
    `adapter/` besides. Raises OSError or SafetensorError.
    """
    if adapters is not None:
        held = dict(weights.items())
        adapters.write(folder / ADAPTER_FOLDER, held)
        weights = adapters.merged(held)
    if model.can_generate():
        # Without a length of its own, generate() stops after 20 tokens.
        length = max_new_tokens or model.generation_config.max_new_tokens
        model.generation_config = generation_settings(model.config, max_new_tokens=length, ends=end_tokens(model))
    if FP32_BYTES * num_weights(model) > shard_bytes and not _is_renamed(model):
        model.save_pretrained(folder, state_dict={}, save_original_format=False)  # all but the weights
        _write_shards(folder, weights, shard_bytes)
    else:
        model.save_pretrained(folder, state_dict=dict(weights.items()))
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise OSError(str(error)) from error  # how the tokenizers library tells of a full disk
    if answers is not None:
        answers.write(folder)


def in_shards(tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """Dicts of tensors of about that many bytes, at least one tensor in each."""
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        shard[name] = tensor
        size += tensor.numel() * tensor.element_size()
        del tensor  # so that a shard that was written is freed before the next tensor is gathered
        if size >= shard_bytes:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


def _write_shards(folder: Path, weights: Weights, shard_bytes: int) -> None:
    """Files and index as transformers names them; the files' names hold their number, which is known at the end only."""
    from safetensors.torch import save_file

    written: list[list[str]] = []
    total = 0
    for shard in in_shards(weights.items(), shard_bytes):
        save_file(shard, _shard_file(folder, len(written) + 1, 0), metadata={"format": "pt"})
        written.append(list(shard))
        total += sum(tensor.numel() * tensor.element_size() for tensor in shard.values())
        shard.clear()  # the generator's name for it lives on
    weight_map: dict[str, str] = {}
    for number, names in enumerate(written, start=1):
        file = _shard_file(folder, number, len(written))
        _shard_file(folder, number, 0).rename(file)
        weight_map |= dict.fromkeys(names, file.name)
    write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shard_file(folder: Path, number: int, count: int) -> Path:
    return folder / f"model-{number:05d}-of-{count:05d}.safetensors"


def _is_renamed(model: Any) -> bool:
    """Whether transformers gives weights back the names of the files they came from, for which it needs all of them."""
    return bool(getattr(model, "_weight_conversions", None))
