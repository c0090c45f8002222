"""Results kept under content names in a folder or any place that fsspec reaches, so that several places can add to it.

    entries/IDENTITY-HASH.json   a result: labels, settings, status, and the hashes of its files
    objects/HASH.json            a file by the SHA-256 of its content: reports, study.json, predictions

Nothing is ever rewritten, objects come before the entries that name them, and an entry's name is of its content: two
that export at once cannot lose each other's results. Knows nothing of conflicts (`settling`).
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError

from workflow.errors import ConfigError, ResultsError
from workflow.evaluation.report import Report
from workflow.files import whole_file
from workflow.results.records import ResultRecord, record_of, result_of
from workflow.results.runs import ENTRIES_NAME, Result

OBJECTS_NAME = "objects"
REPORT = "report.json"
Content = Callable[[], bytes]
OF_A_READING = frozenset({"place", "number"})
OF_A_RUN = OF_A_READING | {"reason", "settings"}
"""What two readings of one finished run may have unlike; its own report tells its settings."""


@dataclass(frozen=True)
class Kept:
    """A result and the files that belong to it: name -> how to get the content."""

    result: Result
    files: Mapping[str, Content]
    number: int = 0
    """Its place among the results that it was first exported with: tables keep their order."""
    entry: str = ""
    """The name of the entry that it was read from, if from one."""


class Store:
    """One place. Raises ConfigError for a URL that fsspec does not know."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            self.files, self.root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"{url}: not a place that fsspec reaches: {error}") from None

    def exists(self) -> bool:
        """Whether there are results."""
        return bool(self.files.isdir(self._path(ENTRIES_NAME)))

    def kept(self) -> list[Kept]:
        """Every entry, by study and in its order. Raises ResultsError for what is damaged, by name."""
        if not self.exists():
            raise ResultsError(f"{self.url}: no exported results here (no folder {ENTRIES_NAME})")
        paths = sorted(str(path) for path in self.files.ls(self._path(ENTRIES_NAME), detail=False))
        found = [self._entry(path) for path in paths if path.endswith(".json")]
        return sorted(found, key=lambda kept: (kept.result.study or "", kept.number, kept.result.name))

    def add(self, kept: Kept) -> str:
        """Writes a result, its files first; gives the entry's name."""
        hashes = {name: self._add_object(name, content()) for name, content in kept.files.items()}
        record = record_of(kept.result, files=hashes, number=kept.number)
        text = record.model_dump_json(indent=1).encode()
        # The same report read elsewhere, from another folder, is the same entry.
        named = record.model_dump_json(exclude=set(OF_A_RUN if kept.result.report else OF_A_READING)).encode()
        name = f"{record.identity[:16]}-{_hash(named)[:16]}.json"
        self._write(posixpath.join(ENTRIES_NAME, name), text)
        return name

    def remove(self, name: str) -> None:
        """Takes an entry out; objects stay."""
        self.files.rm_file(self._path(ENTRIES_NAME, name))

    def names(self) -> list[str]:
        """The names of the entries."""
        if not self.exists():
            return []
        return sorted(posixpath.basename(str(path)) for path in self.files.ls(self._path(ENTRIES_NAME), detail=False))

    def _entry(self, path: str) -> Kept:
        where = f"{self.url}/{ENTRIES_NAME}/{posixpath.basename(path)}"
        try:
            record = ResultRecord.model_validate_json(self.files.cat_file(path))
        except (ValidationError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ResultsError(f"{where}: not an entry that this version reads: {reason}") from None
        files: dict[str, Content] = {name: self._reader(name, digest) for name, digest in record.files.items()}
        report = _report(where, files[REPORT]()) if REPORT in files else None
        return Kept(result_of(record, report, place=Path(where)), files, record.number, posixpath.basename(path))

    def _reader(self, name: str, digest: str) -> Content:
        def read() -> bytes:
            path = self._path(OBJECTS_NAME, _object_name(name, digest))
            try:
                content: bytes = self.files.cat_file(path)
            except FileNotFoundError:
                raise ResultsError(f"{path}: missing, the {name} of a result; export it again") from None
            if _hash(content) != digest:
                raise ResultsError(f"{path}: damaged, its content has another hash; remove it, and export it again")
            return content

        return read

    def _add_object(self, name: str, content: bytes) -> str:
        digest = _hash(content)
        self._write(posixpath.join(OBJECTS_NAME, _object_name(name, digest)), content)
        return digest

    def _write(self, name: str, content: bytes) -> None:
        path = self._path(name)
        if self.files.exists(path):
            return
        if "file" in _protocols(self.files):
            with whole_file(Path(path)) as file:
                file.buffer.write(content)
            return
        self.files.makedirs(posixpath.dirname(path), exist_ok=True)
        self.files.pipe_file(path, content)

    def _path(self, *parts: str) -> str:
        return posixpath.join(self.root, *parts)


def _report(where: str, content: bytes) -> Report:
    try:
        return Report.model_validate_json(content)
    except ValidationError as error:
        reason = " ".join(str(error).split())[:200]
        raise ResultsError(f"{where}: its report is none that this version reads: {reason}") from None


def read_store(url: str) -> list[Result]:
    """The results that are kept in a place."""
    return [kept.result for kept in Store(url).kept()]


def _protocols(files: Any) -> tuple[str, ...]:
    return files.protocol if isinstance(files.protocol, tuple) else (files.protocol,)


def _object_name(name: str, digest: str) -> str:
    return digest + PurePath(name).suffix


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
