"""Finds the files behind a data name and streams their rows, whatever the format, in bounded memory.

Knows nothing of what a row must hold (`examples`).
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow.data.json_stream import stream_splits
from workflow.errors import DataError, did_you_mean

Row = dict[str, Any]
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
SPLIT_FILES = {
    "train": ("train",),
    "eval": ("eval", "dev", "validation", "valid", "val", "test"),
    "calibration": ("calibration",),
}
HUB_PREFIX = "hf:"
PLAIN_NAME = re.compile(r"[^./\\\0][^/\\\0]*")


@dataclass(frozen=True)
class Source:
    """Where rows come from: one file with every split in it, a file a split, or a hub data set.

    `label` names it in messages, `fingerprint` changes with the content.
    """

    label: str
    fingerprint: str
    files: tuple[tuple[str | None, Path], ...] = ()
    hub_name: str | None = None

    @property
    def is_untyped(self) -> bool:
        """Whether numbers come as texts, as from CSV and TSV files."""
        return any(path.suffix in (".csv", ".tsv") for _, path in self.files)

    @property
    def data_hash(self) -> str:
        """A short hash of the content."""
        return hashlib.sha256(self.fingerprint.encode()).hexdigest()[:16]

    def rows(self) -> Iterator[tuple[str, int, Row]]:
        """(split, index in that split, row) of every row. Raises DataError on malformed input."""
        counts: dict[str, int] = {}
        for split, row in self._split_rows():
            yield split, counts.get(split, 0), row
            counts[split] = counts.get(split, 0) + 1

    def _split_rows(self) -> Iterator[tuple[str, Row]]:
        if self.hub_name is not None:
            yield from _hub_rows(self.hub_name)
        for split, path in self.files:
            for said, row in file_rows(path):
                if split is not None:
                    if said is not None and path.suffix == ".json" and said != split:
                        raise DataError(
                            f'{path}: holds "{said}" rows, but its name says {split}; use one file, or a list a file'
                        )
                    yield split, row
                else:
                    yield said or _split_of(row, path), row


def _split_of(row: Row, path: Path) -> str:
    """The split that a row's own `split` value names; train without one."""
    said = row.get("split")
    if said is None:
        return "train"
    for split, names in SPLIT_FILES.items():
        if said in names:
            return split
    known = [name for names in SPLIT_FILES.values() for name in names]
    raise DataError(f"{path}: unknown split {said!r}{did_you_mean(str(said), known)}; known are {', '.join(known)}")


def find_source(name: str, mount: Path) -> Source:
    """The source that `--data_name` means: hf:NAME, an existing path, or a name under mount/data.

    A hub data set is taken only when asked for by `hf:`, never because a file is missing.
    """
    if name.startswith(HUB_PREFIX):
        hub_name = name.removeprefix(HUB_PREFIX)
        return Source(label=name, fingerprint=f"{name}:{_hub_fingerprint(hub_name)}", hub_name=hub_name)
    path = _find_path(name, mount)
    files = _folder_files(path) if path.is_dir() else ((None, path),)
    return Source(label=str(path), fingerprint=_content_hash(files), files=files)


def _find_path(name: str, mount: Path) -> Path:
    given = Path(name)
    if ("/" in name or given.suffix in SUFFIXES) and given.exists():
        return given
    folder = mount / "data"
    if not PLAIN_NAME.fullmatch(name):
        raise DataError(f"{name}: no such file; a data NAME is looked up in {folder}, a path must exist")
    candidates = [folder / name, *(folder / f"{name}{suffix}" for suffix in SUFFIXES)]
    found = [path for path in candidates if path.is_file() or (path.is_dir() and _split_files(path))]
    if len(found) > 1:
        raise DataError(f"{name} is ambiguous: {', '.join(map(str, found))}; pass the path of the one you mean")
    if not found:
        known = sorted(
            {
                path.stem if path.suffix in SUFFIXES else path.name
                for path in folder.glob("*")
                if path.suffix in SUFFIXES or path.is_dir()
            }
        )
        listed = f"; there are: {', '.join(known[:20])}" if known else ""
        raise DataError(
            f"no data named {name!r} in {folder}{did_you_mean(name, known)}{listed} (a hub data set is asked for as {HUB_PREFIX}NAME)"
        )
    return found[0]


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """Split -> the files in the folder that could be it, best name first."""
    return {
        split: [path for stem in stems for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()]
        for split, stems in SPLIT_FILES.items()
        if any((folder / f"{stem}{suffix}").is_file() for stem in stems for suffix in SUFFIXES)
    }


def _folder_files(folder: Path) -> tuple[tuple[str | None, Path], ...]:
    found = _split_files(folder)
    if not found:
        raise DataError(
            f"{folder}: no train or eval file; a data folder holds train.jsonl and eval.jsonl (or .json, .csv, .tsv, .parquet)"
        )
    for split, paths in found.items():
        if len([path for path in paths if path.stem == paths[0].stem]) > 1:
            raise DataError(
                f"{folder}: two files for split {split}: {', '.join(path.name for path in paths)}; keep one"
            )
    return tuple((split, paths[0]) for split, paths in found.items())


def _content_hash(files: Iterable[tuple[str | None, Path]]) -> str:
    """Of names and contents, and of the split that a file is: alone, the same file may be another one."""
    digest = hashlib.sha256()
    for split, path in files:
        digest.update((path.name if split is None else f"{split}:{path.name}").encode())
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def file_rows(path: Path) -> Iterator[tuple[str | None, Row]]:
    """(split, row) of one file; only a JSON object of splits says which."""
    if path.suffix == ".json":
        yield from stream_splits(path)
        return
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".tsv": _csv_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix)
    if reader is None:
        raise DataError(f"{path}: unknown format {path.suffix!r}; known are {', '.join(SUFFIXES)}")
    for row in reader(path):
        yield None, row


def _jsonl_rows(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}: line {number}: not valid JSON: {error}") from None
                if not isinstance(row, dict):
                    raise DataError(f"{path}: line {number}: a row is an object, not {type(row).__name__}")
                yield row
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}") from None


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
            for row in reader:
                line = reader.line_num
                if None in row or None in row.values():
                    many = "too many" if None in row else "too few"
                    raise DataError(
                        f"{path}: line {line}: {many} columns; the header has {len(reader.fieldnames or ())}"
                    )
                yield dict(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: after line {line}: cannot be read as {path.suffix[1:]}: {error}") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        features = _features_of(file.schema_arrow.metadata)
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():  # data frames mark missing values with NaN
                plain = {
                    key: None if isinstance(value, float) and value != value else value for key, value in row.items()
                }
                yield with_class_name(plain, features)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet: {error}") from None


@functools.cache
def _load_hub(hub_name: str) -> dict[str, Any]:
    """The splits of a hub data set (or of a local folder that `datasets` can load), by our split names."""
    import datasets

    name, _, config = hub_name.partition("@")
    try:
        loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # `datasets` raises many kinds: network, missing, malformed
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{HUB_PREFIX}{hub_name}: cannot be loaded with `datasets` (NAME, or NAME@CONFIG): {reason}"
        ) from None
    by_split = {
        split: loaded[name]
        for split, names in reversed(SPLIT_FILES.items())
        for name in reversed(names)
        if name in loaded
    }
    if not by_split:
        raise DataError(f"{HUB_PREFIX}{hub_name}: no train or eval split among {', '.join(loaded)}")
    return by_split


def _hub_fingerprint(hub_name: str) -> str:
    """A hash of the rows (`datasets`' own fingerprint changes with file times)."""
    digest = hashlib.sha256()
    for split, row in _hub_rows(hub_name):
        digest.update(f"{split}:{json.dumps(row, default=str)}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _hub_rows(hub_name: str) -> Iterator[tuple[str, Row]]:
    for split, rows in _load_hub(hub_name).items():
        features = {key: getattr(feature, "names", None) for key, feature in (rows.features or {}).items()}
        for row in rows:
            yield split, with_class_name(dict(row), features)


def with_class_name(row: Row, features: Mapping[str, Sequence[str] | None]) -> Row:
    """A row with the name of its class, where the features of a `datasets` set name the numbers of its label."""
    key = next((key for key in ("target", "label") if key in row), None)
    names, number = features.get(key) if key is not None else None, row.get(key) if key is not None else None
    if not names or "target_name" in row or not isinstance(number, int) or not 0 <= number < len(names):
        return row
    return {**row, "target_name": names[number]}


def _features_of(metadata: Mapping[bytes, bytes] | None) -> dict[str, Sequence[str] | None]:
    """The names of the classes of each column, where `datasets` wrote a Parquet file."""
    try:
        said = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {key: feature.get("names") for key, feature in said.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
