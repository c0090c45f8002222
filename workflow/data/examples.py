"""Rows of a data set, validated and kept in memory-mapped Arrow files.

Knows nothing of tokens. A data set is read once, into the cache, keyed by its content; after that any number of
ranks share the mapped pages, and a data set larger than memory works.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow
import pyarrow.ipc

from workflow.data.sources import Row, Source
from workflow.data.targets import Targets
from workflow.data.texts import Texts, not_a_text
from workflow.errors import DataError
from workflow.files import read_json, remove_old_leftovers, whole_folder, write_json

FORMAT = 5
LEFT_OUT_NAME = "left_out.json"
ROWS_PER_WRITE = 4096
MAX_PROBLEMS = 10
ABANDONED_S = 7 * 24 * 3600
SPLITS = ("train", "eval", "calibration")
"""Rows to learn from, to measure on, and (scores only) to fit a calibration on."""
_SCHEMA = pyarrow.schema([("row", pyarrow.large_string())])


class RowFormat(Protocol):
    """What every row must hold. `key` names the format in the cache."""

    @property
    def key(self) -> str:
        """Changes with anything that changes which rows are accepted."""

    def problem(self, row: Row) -> str | None:
        """What is wrong with a row, or None."""

    def leaves_out(self, row: Row) -> bool:
        """Whether a row is none to be kept, though nothing is wrong with it."""


@dataclass(frozen=True)
class TextRows:
    """Rows with a text at each of these keys."""

    texts: tuple[str, ...]

    @property
    def key(self) -> str:
        """The keys."""
        return str(self.texts)

    def problem(self, row: Row) -> str | None:
        """What is wrong with a row, or None."""
        for key in self.texts:
            if key not in row:
                return f'missing "{key}" (the row has {", ".join(map(json.dumps, row)) or "no keys"})'
            value = row[key]
            if not isinstance(value, str):
                return not_a_text(key, value)
            if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
                return f'"{key}" holds half a surrogate pair, which is no character'
        return None

    def leaves_out(self, row: Row) -> bool:  # noqa: ARG002
        """Every row is kept."""
        return False


def row_problem(row: Row) -> str | None:
    """Why a whole row, extra keys included, could not be written to a prediction file, or None."""
    try:
        encode_row(row)
    except UnicodeEncodeError:
        return "an extra key holds half a surrogate pair, which is no character"
    except (ValueError, RecursionError) as error:
        return f"cannot be written as JSON: {error}"
    return None


def without_nan(value: Any) -> Any:
    """A row as it is, but null where it holds NaN, by which tables mark what is missing."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and value != value else value


def encode_row(row: Row) -> bytes:
    """The row as JSON in UTF-8. ValueError for NaN, infinity and half surrogate pairs, which JSON has not."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False, default=str).encode()


@dataclass(frozen=True)
class ScoredRows:
    """Rows to be scored: a text or a pair and, for training and evaluation, a target."""

    texts: Texts
    targets: Targets | None

    @property
    def key(self) -> str:
        """The template and what a target may be."""
        return f"score:{self.texts}:{self.targets}"

    def problem(self, row: Row) -> str | None:
        """What is wrong with a row, or None."""
        return self.texts.problem_of(row) or (self.targets.problem_of(row) if self.targets is not None else None)

    def leaves_out(self, row: Row) -> bool:
        """Whether a row has no label, where one is needed."""
        return self.targets is not None and self.targets.leaves_out(row)


SEQ2SEQ = TextRows(texts=("prompt", "completion"))
PROMPTS = TextRows(texts=("prompt",))


class Rows(Sequence[Row]):
    """The rows of one split in the order of the file; each access decodes one row."""

    def __init__(self, file: Path, *, limit: int | None = None) -> None:
        with pyarrow.memory_map(str(file)) as source:
            self._table = pyarrow.ipc.open_file(source).read_all()
        self._column = self._table.column("row")
        self._length = min(self._table.num_rows, limit) if limit is not None else self._table.num_rows

    def __len__(self) -> int:
        return int(self._length)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(self._length))]
        if not 0 <= index < self._length:
            raise IndexError(index)
        return json.loads(self._column[index].as_py())

    def __iter__(self) -> Iterator[Row]:
        done = 0
        for chunk in self._column.chunks:
            for value in chunk:
                if done == self._length:
                    return
                yield json.loads(value.as_py())
                done += 1


@dataclass(frozen=True)
class Examples:
    """The splits of a data set. `fingerprint` is a hash of its content; `left_out` counts rows without a label."""

    label: str
    fingerprint: str
    train: Rows
    eval: Rows
    calibration: Rows
    notes: tuple[str, ...] = ()
    """What was decided in reading it."""
    left_out: Mapping[str, int] = field(default_factory=dict)

    def split(self, name: str) -> Rows:
        """The rows of one of SPLITS."""
        rows: Rows = getattr(self, name)
        return rows


def load_examples(
    source: Source, row_format: RowFormat, cache: Path, *, limits: Mapping[str, int] | None = None
) -> Examples:
    """Reads the source into the cache, unless it is there, and maps it.

    `limits` are the most rows of a split to show. Raises DataError that lists the first problems found.
    """
    key = hashlib.sha256(f"{FORMAT}:{row_format.key}:{source.fingerprint}".encode()).hexdigest()[:32]
    folder = cache / f"rows-{key}"
    if not (folder / "train.arrow").is_file():
        _ingest(source, row_format, folder)
    splits = {split: Rows(folder / f"{split}.arrow", limit=(limits or {}).get(split)) for split in SPLITS}
    return Examples(
        source.label,
        source.data_hash,
        **splits,
        notes=source.notes,
        left_out=read_json(folder / LEFT_OUT_NAME) or {},
    )


def _ingest(source: Source, row_format: RowFormat, folder: Path) -> None:
    """Writes one Arrow file a split under a temporary name, then renames the folder."""
    with cache_folder(folder) as temporary:
        problems: list[str] = []
        left_out: Counter[str] = Counter()
        writers = {split: _Writer(temporary / f"{split}.arrow") for split in SPLITS}
        for split, index, row in source.rows():
            if row_format.leaves_out(row):
                left_out[split] += 1
                continue
            # `write` encodes the row, and so finds what cannot be encoded: once a row, not twice.
            if problem := row_format.problem(row) or writers[split].write(row):
                problems.append(f"{split}[{index}]: {problem}")
                if len(problems) >= MAX_PROBLEMS:
                    break
        for writer in writers.values():
            writer.close()
        if problems:
            raise DataError(_listed(source.label, problems))
        write_json(temporary / LEFT_OUT_NAME, left_out)


def _listed(label: str, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"{label}: {problems[0]}"
    shown = f"the first {len(problems)} problems" if len(problems) >= MAX_PROBLEMS else f"{len(problems)} problems"
    return f"{label}: {shown}:\n" + "\n".join(f"  {problem}" for problem in problems)


@contextlib.contextmanager
def cache_folder(final: Path) -> Iterator[Path]:
    """A folder to fill for the cache; where another process put an equal one there first, that one stays."""
    remove_old_leftovers(final.parent, older_than_s=ABANDONED_S)
    try:
        with whole_folder(final) as temporary:
            yield temporary
    except OSError as error:
        if final.is_dir():
            return
        raise DataError(
            f"{final}: cannot write the cache: {error.strerror}; set WORKFLOW_CACHE to a folder with space"
        ) from None


class _Writer:
    """Appends rows to an Arrow file in batches."""

    def __init__(self, file: Path) -> None:
        self._writer = pyarrow.ipc.new_file(str(file), _SCHEMA)
        self._waiting: list[bytes] = []

    def write(self, row: Row) -> str | None:
        """Appends a row, or gives the reason why it cannot be kept."""
        try:
            self._waiting.append(encode_row(row))
        except (ValueError, RecursionError):
            return row_problem(row)
        if len(self._waiting) >= ROWS_PER_WRITE:
            self._flush()
        return None

    def _flush(self) -> None:
        self._writer.write_batch(
            pyarrow.record_batch([pyarrow.array(self._waiting, pyarrow.large_string())], schema=_SCHEMA)
        )
        self._waiting.clear()

    def close(self) -> None:
        if self._waiting:
            self._flush()
        self._writer.close()
