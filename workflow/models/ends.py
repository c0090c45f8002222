"""Reconciles the tokens that start, end and pad an answer: what configuration, generation settings and tokenizer say.

Completions are trained to end in the tokenizer's end of sequence, so that generation must stop there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workflow.errors import ModelError

EOS, START, PAD = "eos_token_id", "decoder_start_token_id", "pad_token_id"


def end_tokens(model: Any) -> tuple[int, ...]:
    """The tokens that end a model's answers, by its generation settings."""
    settings = getattr(model, "generation_config", None)
    said = getattr(settings, EOS, None)
    return tuple(_listed(said if said is not None else model.config.eos_token_id))


def settle_ends(name: str, config: Any, generation: Mapping[str, Any], tokenizer: Any) -> tuple[list[int], list[str]]:
    """Sets a configuration's start, end and padding; what ends answers, and notes of what was contradictory or missing.

    `generation` is what generation_config.json says. Raises ModelError for a start that is no token of the model.
    """
    notes = [
        *_settle_padding(config, tokenizer),
        *_settle_start(name, config, generation),
    ]
    ends, more = _ends(config, generation, tokenizer)
    config.eos_token_id = tokenizer.eos_token_id
    return ends, notes + more


def _settle_padding(config: Any, tokenizer: Any) -> list[str]:
    said, own = config.pad_token_id, tokenizer.pad_token_id
    config.pad_token_id = own
    if said is None or said == own:
        return []
    return [
        f"config.json pads with {_shown(tokenizer, said)}, the tokenizer with {_shown(tokenizer, own)}, which is used"
    ]


def _settle_start(name: str, config: Any, generation: Mapping[str, Any]) -> list[str]:
    said, other = getattr(config, START, None), generation.get(START)
    start = next((value for value in (said, other) if value is not None), config.pad_token_id)
    if not isinstance(start, int) or not 0 <= start < config.vocab_size:
        raise ModelError(
            f"{name}: {START} is {start}, which is none of the model's {config.vocab_size} tokens; write the first token of "
            f"the decoder into config.json (T5's is the padding token, {config.pad_token_id})"
        )
    config.decoder_start_token_id = start
    if said is None:
        where = "is missing in config.json" if other is None else "is only in generation_config.json"
        kind = ", T5's padding token" if other is None else ""
        return [f"{START} {where}: the decoder starts with {start}{kind}"]
    if other not in (None, said):
        return [
            f"{START} is {said} in config.json and {other} in generation_config.json: the decoder starts with {said}"
        ]
    return []


def _ends(config: Any, generation: Mapping[str, Any], tokenizer: Any) -> tuple[list[int], list[str]]:
    """A list is meant, so that all of it ends answers beside the tokenizer's; a single other number contradicts."""
    own = tokenizer.eos_token_id
    said = {"config.json": config.eos_token_id, "generation_config.json": generation.get(EOS, config.eos_token_id)}
    listed = [token for value in said.values() if isinstance(value, list) and len(value) > 1 for token in value]
    known = [token for token in listed if type(token) is int and 0 <= token < config.vocab_size]
    ends = [own, *sorted({*known} - {own})]
    strange = ", ".join(dict.fromkeys(_as_json(token) for token in listed if token not in known))
    left_out = [f"{EOS} lists {strange}, which the model has no token for: left out"] if strange else []
    wrong = {file: value for file, value in said.items() if value is None or own not in _listed(value)}
    shown = " or ".join(_shown(tokenizer, token) for token in ends)
    if wrong:
        told = ", ".join(f"{_as_json(value)} in {file}" for file, value in wrong.items())
        note = f"{EOS} is {told}; completions are trained to end in the tokenizer's: answers end with {shown}"
        return ends, [note, *left_out]
    return ends, [*([f"answers end with {shown}, as the model's files say"] if len(ends) > 1 else []), *left_out]


def _as_json(value: Any) -> str:
    """A value as JSON files write it."""
    return "null" if value is None else str(value)


def _listed(value: Any) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _shown(tokenizer: Any, token: int) -> str:
    """`1 (</s>)`."""
    known = 0 <= token < len(tokenizer)
    return f"{token} ({tokenizer.convert_ids_to_tokens(token)})" if known else f"{token} (unknown to the tokenizer)"
