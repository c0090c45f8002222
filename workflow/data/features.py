"""Token ids of a split, cut to length and counted, in memory-mapped arrays.

Knows nothing of batches or models; the tokenizer is a function from texts to ids. Ids are kept in the cache, keyed
by data, tokenizer and lengths, and never copied as a whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from workflow.data.examples import Examples, cache_folder
from workflow.data.sources import Row

FORMAT = 1
ROWS_PER_CALL = 1000
FIELDS = ("prompt", "completion")

IntArray = npt.NDArray[np.int32]


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that features need."""

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
        limit = self.source if field == "prompt" else self.target
        if len(ids) <= limit:
            return ids
        if field == "prompt" and self.keep_source == "end":
            return ids[-limit:]
        return [*ids[: limit - 1], ids[-1]]


@dataclass(frozen=True)
class Truncation:
    """How much the limits cut off one field of a split."""

    rows: int
    tokens: int


class Features:
    """Token ids of one split: `source(i)` and `target(i)`, and their lengths as arrays."""

    def __init__(self, folder: Path) -> None:
        self._ids = {field: _map(folder / f"{field}.ids.npy") for field in FIELDS}
        self._starts = {field: np.load(folder / f"{field}.starts.npy", mmap_mode="r") for field in FIELDS}
        self.full_lengths: dict[str, IntArray] = {
            field: np.load(folder / f"{field}.full_lengths.npy", mmap_mode="r") for field in FIELDS
        }

    def __len__(self) -> int:
        return len(self._starts["prompt"]) - 1

    def _row(self, field: str, index: int) -> IntArray:
        starts = self._starts[field]
        row: IntArray = self._ids[field][starts[index] : starts[index + 1]]
        return row

    def source(self, index: int) -> IntArray:
        """Ids of a prompt, end of sequence included."""
        return self._row("prompt", index)

    def target(self, index: int) -> IntArray:
        """Ids of a completion, end of sequence included."""
        return self._row("completion", index)

    def lengths(self, field: str) -> IntArray:
        """Tokens of each row after cutting, int32 of shape [rows]."""
        lengths: IntArray = np.diff(self._starts[field]).astype(np.int32)
        return lengths

    def truncation(self, field: str) -> Truncation:
        """How many rows and tokens the limits cut off."""
        lost = np.asarray(self.full_lengths[field]) - self.lengths(field)
        return Truncation(rows=int((lost > 0).sum()), tokens=int(lost.sum()))


def _map(file: Path) -> IntArray:
    array: IntArray = np.load(file, mmap_mode="r")
    return array


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of each text, ending in the tokenizer's end of sequence."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    return [row if row and row[-1] == end else [*row, end] for row in ids]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash that changes with anything that changes ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = (
        backend.to_str()
        if backend is not None
        else json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    )
    return hashlib.sha256(state.encode()).hexdigest()[:32]


def load_features(examples: Examples, split: str, tokenizer: Any, limits: LengthLimits, cache: Path) -> Features:
    """Tokenizes a split into the cache, unless it is there, and maps it."""
    rows = examples.split(split)
    parts = [FORMAT, examples.fingerprint, split, len(rows), tokenizer_fingerprint(tokenizer), asdict(limits)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    folder = cache / f"tokens-{key}"
    if not folder.is_dir():
        with cache_folder(folder) as temporary:
            _tokenize(rows, tokenizer, limits, temporary)
    return Features(folder)


def _tokenize(rows: Sequence[Row], tokenizer: Any, limits: LengthLimits, folder: Path) -> None:
    lengths: dict[str, list[IntArray]] = {field: [] for field in FIELDS}
    full: dict[str, list[IntArray]] = {field: [] for field in FIELDS}
    raw = {field: (folder / f"{field}.raw").open("wb") for field in FIELDS}
    for batch in batched(iter(rows), ROWS_PER_CALL):
        for field in FIELDS:
            ids = encode(tokenizer, [row[field] for row in batch])
            kept = [limits.cut(row, field) for row in ids]
            full[field].append(np.array([len(row) for row in ids], dtype=np.int32))
            lengths[field].append(np.array([len(row) for row in kept], dtype=np.int32))
            raw[field].write(np.array([token for row in kept for token in row], dtype=np.int32).tobytes())
    for field in FIELDS:
        raw[field].close()
        sizes = np.concatenate([np.zeros(1, np.int64), *lengths[field]]).astype(np.int64)
        np.save(folder / f"{field}.starts.npy", np.cumsum(sizes))
        np.save(
            folder / f"{field}.full_lengths.npy", np.concatenate([np.zeros(0, np.int32), *full[field]]).astype(np.int32)
        )
        _as_npy(folder / f"{field}.raw", folder / f"{field}.ids.npy", total=int(sizes.sum()))


def _as_npy(raw: Path, file: Path, *, total: int) -> None:
    """Turns raw int32 into an .npy file block by block."""
    with file.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, {"descr": "<i4", "fortran_order": False, "shape": (total,)})
        with raw.open("rb") as blocks:
            shutil.copyfileobj(blocks, out)
    raw.unlink()


def batched(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Lists of up to `size` rows."""
    while batch := list(islice(rows, size)):
        yield batch
