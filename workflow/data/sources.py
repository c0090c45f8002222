"""Finds the files behind a data name and streams their rows, whatever the format, in bounded memory.

Knows nothing of what a row must hold (`examples`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow.data.feature_names import features_of_hub, with_class_name
from workflow.data.hub_dates import as_written
from workflow.data.json_stream import one_object, stream_splits
from workflow.data.splits import SPLIT_FILES, SPLIT_OF, TEST, LeftOut, left_out, split_of
from workflow.data.tables import AUTO, TABLES, parquet_rows, quoting_note, table_rows
from workflow.errors import DataError, did_you_mean
from workflow.files import LFS_ADVICE, is_lfs_pointer

Row = dict[str, Any]
Files = tuple[tuple[str | None, Path], ...]
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
HUB_PREFIX = "hf:"
PLAIN_NAME = re.compile(r"[^./\\\0][^/\\\0]*")


@dataclass(frozen=True)
class Source:
    """Where rows come from: one file with every split in it, a file a split, or a hub data set.

    `label` names it in messages, `fingerprint` changes with the content.
    """

    label: str
    fingerprint: str
    files: Files = ()
    hub_name: str | None = None
    quoting: str = AUTO
    left_out: LeftOut | None = None
    """Rows of one file that are not read, since others are the eval rows."""
    read_notes: tuple[str, ...] = ()

    @property
    def is_untyped(self) -> bool:
        """Whether numbers come as texts, as from CSV and TSV files."""
        return any(path.suffix in TABLES for _, path in self.files)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided in reading it, and is worth a line."""
        return (*self.read_notes, *([self.left_out.note(self.label)] if self.left_out else []))

    @property
    def data_hash(self) -> str:
        """A short hash of the content."""
        return hashlib.sha256(self.fingerprint.encode()).hexdigest()[:16]

    def rows(self, *, everything: bool = False) -> Iterator[tuple[str, int, Row]]:
        """(split, index in that split, row) of every row; with `everything` of those that are left out, too.

        Raises DataError on malformed input.
        """
        counts: dict[str, int] = {}
        for split, row in self._split_rows(everything=everything):
            yield split, counts.get(split, 0), row
            counts[split] = counts.get(split, 0) + 1

    def _split_rows(self, *, everything: bool) -> Iterator[tuple[str, Row]]:
        if self.hub_name is not None:
            yield from _hub_rows(self.hub_name)
        skipped = self.left_out.name if self.left_out and not everything else None
        said: set[str] = set()
        for split, path in self.files:
            for name, row in named_rows(path, self.quoting):
                if split is not None:
                    _check_named(path, split, name)
                    yield split, row
                elif name is None:
                    yield "train", row
                elif name != skipped:
                    if name not in said and not everything:
                        said.add(name)
                        left_out(said, str(path))
                    yield split_of(name, str(path)), row


def named_rows(path: Path, quoting: str = AUTO) -> Iterator[tuple[str | None, Row]]:
    """(name, row) of one file: the split that a list's key or the row's own `split` names, if any does."""
    for said, row in file_rows(path, quoting):
        own = row.get("split") if said is None else said
        yield (None if own is None else str(own)), row


def _check_named(path: Path, split: str, name: str | None) -> None:
    """Raises DataError where rows say that they are of another split than their file's name."""
    if name is not None and SPLIT_OF.get(name, split) != split:
        raise DataError(f'{path}: holds "{name}" rows, but its name says {split}; use one file, or a list a file')


def find_source(name: str, mount: Path, quoting: str = AUTO) -> Source:
    """The source that `--data_name` means: hf:NAME, an existing path, or a name under mount/data.

    `quoting` says how CSV and TSV files are read. A hub data set is taken only when asked for by `hf:`, never because a file is missing.
    """
    if name.startswith(HUB_PREFIX):
        hub_name = name.removeprefix(HUB_PREFIX)
        _, notes = _load_hub(hub_name)
        fingerprint = f"{name}:{_hub_fingerprint(hub_name)}"
        return Source(label=name, fingerprint=fingerprint, hub_name=hub_name, read_notes=notes)
    path = _find_path(name, mount)
    files, notes = _folder_files(path) if path.is_dir() else (((None, path),), ())
    fingerprint = _content_hash(files) + ("" if quoting == AUTO else f":{quoting}")
    left = None if path.is_dir() else _left_out_of(path, quoting)
    told = (quoting_note(file, quoting) for _, file in files)
    notes = (*notes, *(note for note in told if note is not None))
    return Source(str(path), fingerprint, files, quoting=quoting, left_out=left, read_notes=notes)


def _left_out_of(path: Path, quoting: str) -> LeftOut | None:
    """What of a file is not read, by a pass that is made only where it may hold such rows."""
    if not _may_say_test(path):
        return None
    return left_out({name for name, _ in named_rows(path, quoting) if name is not None}, str(path))


def _may_say_test(path: Path) -> bool:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            return "split" in pyarrow.parquet.ParquetFile(path).schema_arrow.names
        except (OSError, ValueError, pyarrow.ArrowException):
            return False  # told when its rows are read
    words = {TEST.encode(), *([] if path.suffix == ".json" else [b"split"])}
    with path.open("rb") as file:
        before = b""
        while words and (block := file.read(1 << 20)):
            words = {word for word in words if word not in before + block}
            before = block[-len(b"split") :]
    return not words


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


def _folder_files(folder: Path) -> tuple[Files, tuple[str, ...]]:
    """The file of each split, and a note of what is not read."""
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
    stems = {path.stem: path for path in found.get("eval", ())}
    left = left_out(stems, str(folder))
    notes = (LeftOut(stems[left.name].name, stems[left.kept].name).note(str(folder)),) if left else ()
    return tuple((split, paths[0]) for split, paths in found.items()), notes


def _content_hash(files: Iterable[tuple[str | None, Path]]) -> str:
    """Of names and contents, and of the split that a file is: alone, the same file may be another one."""
    digest = hashlib.sha256()
    for split, path in files:
        check_is_content(path)
        digest.update((path.name if split is None else f"{split}:{path.name}").encode())
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def file_rows(path: Path, quoting: str = AUTO) -> Iterator[tuple[str | None, Row]]:
    """(split, row) of one file; only a JSON object of splits says which."""
    check_is_content(path)
    if path.suffix == ".json":
        yield from stream_splits(path)
        return
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": _jsonl_rows,
        ".parquet": parquet_rows,
        **dict.fromkeys(TABLES, functools.partial(table_rows, quoting=quoting)),
    }
    reader = readers.get(path.suffix)
    if reader is None:
        raise DataError(f"{path}: unknown format {path.suffix!r}; known are {', '.join(SUFFIXES)}")
    for row in reader(path):
        yield None, row


def check_is_content(path: Path) -> None:
    """Raises DataError where Git LFS left a pointer in the place of a file."""
    if is_lfs_pointer(path):
        raise DataError(f"{path}: {LFS_ADVICE}")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line, object_pairs_hook=one_object)
                except (ValueError, RecursionError) as error:
                    advice = "; JSON Lines have no commas between rows" if line.rstrip().endswith("},") else ""
                    raise DataError(f"{path}: line {number}: not valid JSON: {error}{advice}") from None
                if not isinstance(row, dict):
                    raise DataError(f"{path}: line {number}: a row is an object, not {type(row).__name__}")
                yield row
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}") from None


@functools.cache
def _load_hub(hub_name: str) -> tuple[dict[str, Iterable[Row]], tuple[str, ...]]:
    """The splits of a hub data set (or of a local folder that `datasets` can load), by our split names, and notes."""
    import datasets

    name, _, config = hub_name.partition("@")
    try:
        loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # `datasets` raises many kinds: network, missing, malformed
        reason = " ".join(str(error).split())[:300]
        is_pattern = any(letter in name for letter in "[]*?") and Path(name).exists()
        advice = f"; it takes the path for a pattern: leave out {HUB_PREFIX}" if is_pattern else ""
        raise DataError(
            f"{HUB_PREFIX}{hub_name}: cannot be loaded with `datasets` (NAME, or NAME@CONFIG): {reason}{advice}"
        ) from None
    label = f"{HUB_PREFIX}{hub_name}"
    left = left_out(loaded, label)
    notes = [left.note(label)] if left else []
    by_split: dict[str, Iterable[Row]] = {}
    for split, rows in loaded.items():
        if split in SPLIT_OF and not (left and split == left.name):
            by_split[SPLIT_OF[split]], told = as_written(rows, name, config or None, split, file_rows)
            notes += [f"{label}: {split}: {note}" for note in told]
    if not by_split:
        raise DataError(f"{label}: no train or eval split among {', '.join(loaded)}")
    return by_split, tuple(notes)


def _hub_fingerprint(hub_name: str) -> str:
    """A hash of the rows (`datasets`' own fingerprint changes with file times)."""
    digest = hashlib.sha256()
    for split, row in _hub_rows(hub_name):
        digest.update(f"{split}:{json.dumps(row, default=str)}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _hub_rows(hub_name: str) -> Iterator[tuple[str, Row]]:
    for split, rows in _load_hub(hub_name)[0].items():
        features = features_of_hub(getattr(rows, "features", None))
        for row in rows:
            yield split, with_class_name(dict(row), features)
