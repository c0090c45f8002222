"""Turns rows into token ids: prompts and completions, or the text (or pair of texts) of a row to be scored.

Knows nothing of files or batches; the tokenizer is a function from texts to ids. What is cut is counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from workflow.data.features import Encoded, FloatArray
from workflow.data.sources import Row
from workflow.data.targets import Targets
from workflow.data.texts import Texts

SEQ2SEQ_FIELDS = ("prompt", "completion")
INPUT = "input"
TOKEN_TYPES = "token_types"


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that encoders need."""

    eos_token_id: int

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Encodes texts."""


@dataclass(frozen=True)
class LengthLimits:
    """Most tokens of a prompt and of a completion, and which part of a long prompt stays."""

    source: int
    target: int
    keep_source: str = "end"

    def cut(self, ids: list[int], field: str) -> list[int]:
        """`ids` within the limit; the last id (end of sequence) always stays.

        A prompt keeps its end (or its start), because its cue to answer stands there; a completion keeps its start.
        """
        if field == "completion":
            return _cut(ids, self.target, keep="start")
        return _cut(ids, self.source, keep=self.keep_source)


def _cut(ids: list[int], limit: int, *, keep: str) -> list[int]:
    if len(ids) <= limit:
        return ids
    return ids[-limit:] if keep == "end" else [*ids[: limit - 1], ids[-1]]


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of each text, ending in the tokenizer's end of sequence."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    return [row if row and row[-1] == end else [*row, end] for row in ids]


def _with_one_end(ids: list[int], end: int) -> list[int]:
    """Without the ends that a text itself was written with."""
    last = len(ids)
    while last > 1 and ids[last - 2] == end:
        last -= 1
    return ids[:last]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash that changes with anything that changes ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = (
        backend.to_str()
        if backend is not None
        else json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    )
    return hashlib.sha256(state.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Seq2SeqEncoder:
    """Prompts and completions. Implements `features.RowEncoder`."""

    tokenizer: Any
    limits: LengthLimits
    fields: tuple[str, ...] = SEQ2SEQ_FIELDS

    @property
    def key(self) -> Any:
        """Tokenizer and limits."""
        return [tokenizer_fingerprint(self.tokenizer), asdict(self.limits)]

    def encode(self, rows: Sequence[Row]) -> dict[str, Encoded]:
        """Both fields."""
        found = {}
        for field in self.fields:
            ids = encode(self.tokenizer, [row[field] for row in rows])
            if field == "completion":
                ids = [_with_one_end(row, self.tokenizer.eos_token_id) for row in ids]
            found[field] = Encoded([self.limits.cut(row, field) for row in ids], [len(row) for row in ids])
        return found

    def targets(self, rows: Sequence[Row]) -> FloatArray | None:  # noqa: ARG002
        """The completion's ids are the target."""
        return None


@dataclass(frozen=True)
class ScoreEncoder:
    """Inputs to be scored, as one sequence a row. Implements `features.RowEncoder`.

    `ends_in_eos`: T5's way (ids, end of sequence), where a pair becomes one text; else the tokenizer's own special
    tokens around one text or two. `has_types`: also make `token_types`, 0 for the first text and 1 for the second.
    """

    tokenizer: Any
    texts: Texts
    max_length: int
    keep: str
    ends_in_eos: bool
    has_types: bool = False
    target_reader: Targets | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """One field, or two for models that take token types."""
        return (INPUT, TOKEN_TYPES) if self.has_types else (INPUT,)

    @property
    def key(self) -> Any:
        """Everything but the rows."""
        return [
            tokenizer_fingerprint(self.tokenizer),
            *(self.texts.template, self.max_length, self.keep, self.ends_in_eos),
            asdict(self.target_reader) if self.target_reader is not None else None,
        ]

    def encode(self, rows: Sequence[Row]) -> dict[str, Encoded]:
        """The ids and, for models that take them, the token types."""
        pairs = [self.texts.of(row) for row in rows]
        ids, types, full = self._sequences(pairs) if self.ends_in_eos else self._framed(pairs)
        return {field: Encoded(ids if field == INPUT else types, full) for field in self.fields}

    def targets(self, rows: Sequence[Row]) -> FloatArray | None:
        """The targets' vectors, float32 [rows, width]."""
        if self.target_reader is None:
            return None
        return np.array([self.target_reader.of(row) for row in rows], dtype=np.float32)

    def _sequences(self, pairs: list[tuple[str, str | None]]) -> tuple[list[list[int]], list[list[int]], list[int]]:
        ids = encode(self.tokenizer, [joined(first, second) for first, second in pairs])
        kept = [_cut(row, self.max_length, keep=self.keep) for row in ids]
        return kept, [[0] * len(row) for row in kept], [len(row) for row in ids]

    def _framed(self, pairs: list[tuple[str, str | None]]) -> tuple[list[list[int]], list[list[int]], list[int]]:
        backend = self.tokenizer.backend_tokenizer
        firsts = backend.encode_batch([first for first, _ in pairs], add_special_tokens=False)
        seconds = iter(
            backend.encode_batch([second for _, second in pairs if second is not None], add_special_tokens=False)
        )
        ids: list[list[int]] = []
        types: list[list[int]] = []
        full: list[int] = []
        for first, (_, text) in zip(firsts, pairs, strict=True):
            second = next(seconds) if text is not None else None
            frame = self.tokenizer.num_special_tokens_to_add(pair=second is not None)
            room = max(0, self.max_length - frame)  # what frames a text is never cut
            before = len(first.ids) + (len(second.ids) if second is not None else 0)
            kept_first, kept_second = shares(len(first.ids), len(second.ids) if second is not None else 0, room)
            direction = "left" if self.keep == "end" else "right"
            first.truncate(kept_first, direction=direction)
            if second is not None:
                second.truncate(kept_second, direction=direction)
            framed = backend.post_process(first, second, True)
            # GPT-2's tokenizer adds nothing, but a model needs at least one token.
            ids.append(list(framed.ids) or [self.tokenizer.pad_token_id])
            types.append(list(framed.type_ids) or [0])
            full.append(max(1, before + frame) if framed.ids else 1)
        return ids, types, full


def joined(first: str, second: str | None) -> str:
    """A pair as one text, in the words of T5's own training on sentence pairs (Raffel et al. 2020, appendix D)."""
    return first if second is None else f"sentence1: {first} sentence2: {second}"


def shares(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of a pair's two texts to keep: the longer one is cut until both fit."""
    if first + second <= room:
        return first, second
    half = room // 2
    if min(first, second) <= half:
        return (first, room - first) if first <= second else (room - second, second)
    return room - half, half
