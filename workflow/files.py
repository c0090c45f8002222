"""Files and folders that appear whole or not at all: written under a temporary name, flushed to disk, renamed.

Knows nothing of their content.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from workflow.errors import WorkflowError

TEMPORARY_PREFIX = ".tmp-"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file that takes its name when the block ends well; on any error nothing is left and an old file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        _name_place(error, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes its name when the block ends well. OSError if `path` is there by then.

    All in it has the permissions that the umask leaves: some libraries write files for nobody else to read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=path.parent))
    try:
        yield temporary
        mask = _umask()
        for place in [*temporary.rglob("*"), temporary]:
            place.chmod((0o777 if place.is_dir() else 0o666) & ~mask)
        flush_folder(temporary)
        temporary.rename(path)
        flush(path.parent)
    except OSError as error:
        _name_place(error, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Writes one JSON value. NaN is refused with ValueError: no reader need cope with it."""
    with whole_file(path) as file:
        json.dump(value, file, indent=indent, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_json(path: Path, *, broken: type[WorkflowError] | None = None) -> Any:
    """The JSON value in a file, or None where there is no file.

    A file that cannot be read, or holds null, raises `broken` where that is given; else it counts as no file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value is None:
            raise ValueError("it holds null")
        return value
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        if broken is None:
            return None
        raise broken(f"{path}: cannot be read: {error}") from None


def flush_folder(folder: Path) -> None:
    """Flushes every file of a folder to disk, so that a rename cannot outlive the content."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def flush(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process left under temporary names; only for the holder of the folder's lock."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_old_leftovers(folder: Path, *, older_than_s: float) -> None:
    """Removes temporary names that no living process can still be writing, in a folder that nobody locks."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > older_than_s:
                shutil.rmtree(path)


def link_or_copy(source: str, target: str) -> None:
    """A hard link where the file system has them, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def replace_by_link(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, or a copy, whole at any moment."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}")
    temporary.unlink(missing_ok=True)
    try:
        link_or_copy(str(source), str(temporary))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def why_not_writable(file: Path) -> str | None:
    """Why a file of this name could not be written, as far as one can tell before; or None."""
    if file.is_dir():
        return "is a folder"
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not folder.is_dir():
        return f"{folder} is no folder"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written to"


def _name_place(error: OSError, path: Path) -> None:
    """Of a full disk the system tells no name."""
    if error.filename is None and error.errno is not None:
        error.filename = str(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
