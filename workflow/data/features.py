"""Token ids of a split, cut to length and counted, and its targets, in memory-mapped arrays.

Knows nothing of batches or models; an encoder (`encoders`) turns rows into ids. Ids are kept in the cache, keyed by
data, encoder and lengths, and never copied as a whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from workflow.data.examples import Examples, cache_folder
from workflow.data.sources import Row

FORMAT = 4
ROWS_PER_CALL = 1000
TARGETS_FILE = "targets.npy"

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Truncation:
    """How much the limits cut off one field of some rows."""

    rows: int
    tokens: int


@dataclass(frozen=True)
class Encoded:
    """One field of some rows: ids within the limit, and the lengths before cutting."""

    ids: list[list[int]]
    full_lengths: list[int]

    @property
    def truncation(self) -> Truncation:
        """How many rows and tokens the limits cut off."""
        lost = [full - len(ids) for full, ids in zip(self.full_lengths, self.ids, strict=True)]
        return Truncation(rows=sum(number > 0 for number in lost), tokens=sum(lost))


class RowEncoder(Protocol):
    """Turns rows into token ids."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the ragged id arrays it makes."""

    @property
    def key(self) -> Any:
        """A JSON value that changes with anything that changes what it makes."""

    def encode(self, rows: Sequence[Row]) -> dict[str, Encoded]:
        """Each field of these rows."""

    def targets(self, rows: Sequence[Row]) -> FloatArray | None:
        """float32 [rows, width], or None where targets are token ids themselves."""


class Features:
    """Token ids of one split by field and row, their lengths as arrays, and `targets`, float32 [rows, width]."""

    def __init__(self, folder: Path, fields: Sequence[str]) -> None:
        self.fields = tuple(fields)
        self._ids = {field: _map(folder / f"{field}.ids.npy") for field in fields}
        self._starts = {field: np.load(folder / f"{field}.starts.npy", mmap_mode="r") for field in fields}
        self.full_lengths: dict[str, IntArray] = {
            field: np.load(folder / f"{field}.full_lengths.npy", mmap_mode="r") for field in fields
        }
        file = folder / TARGETS_FILE
        self.targets: FloatArray = np.load(file, mmap_mode="r") if file.is_file() else np.zeros((0, 0), np.float32)

    def __len__(self) -> int:
        return len(self._starts[self.fields[0]]) - 1

    def row(self, field: str, index: int) -> IntArray:
        """Ids of one row's field, special tokens included."""
        starts = self._starts[field]
        row: IntArray = self._ids[field][starts[index] : starts[index + 1]]
        return row

    def block(self, field: str, first: int, last: int) -> tuple[IntArray, npt.NDArray[np.int64]]:
        """Ids of rows `first` to `last` of a field, one row after another, and where each row starts and the last one ends."""
        starts = np.asarray(self._starts[field][first : last + 1])
        return np.asarray(self._ids[field][starts[0] : starts[-1]]), starts - starts[0]

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


def load_features(examples: Examples, split: str, encoder: RowEncoder, cache: Path) -> Features:
    """Encodes a split into the cache, unless it is there, and maps it."""
    rows = examples.split(split)
    parts = [FORMAT, examples.fingerprint, split, len(rows), encoder.fields, encoder.key]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    folder = cache / f"tokens-{key}"
    if not folder.is_dir():
        with cache_folder(folder) as temporary:
            _encode_split(rows, encoder, temporary)
    return Features(folder, encoder.fields)


def _encode_split(rows: Sequence[Row], encoder: RowEncoder, folder: Path) -> None:
    lengths: dict[str, list[IntArray]] = {field: [] for field in encoder.fields}
    full: dict[str, list[IntArray]] = {field: [] for field in encoder.fields}
    targets: list[FloatArray] = []
    raw = {field: (folder / f"{field}.raw").open("wb") for field in encoder.fields}
    for batch in batched(iter(rows), ROWS_PER_CALL):
        for field, encoded in encoder.encode(batch).items():
            full[field].append(np.array(encoded.full_lengths, dtype=np.int32))
            lengths[field].append(np.array([len(row) for row in encoded.ids], dtype=np.int32))
            raw[field].write(np.array([token for row in encoded.ids for token in row], dtype=np.int32).tobytes())
        if (values := encoder.targets(batch)) is not None:
            targets.append(values)
    for field in encoder.fields:
        raw[field].close()
        sizes = np.concatenate([np.zeros(1, np.int64), *lengths[field]]).astype(np.int64)
        np.save(folder / f"{field}.starts.npy", np.cumsum(sizes))
        np.save(
            folder / f"{field}.full_lengths.npy", np.concatenate([np.zeros(0, np.int32), *full[field]]).astype(np.int32)
        )
        _as_npy(folder / f"{field}.raw", folder / f"{field}.ids.npy", total=int(sizes.sum()))
    if targets:
        np.save(folder / TARGETS_FILE, np.concatenate(targets))


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
