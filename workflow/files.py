"""Files and folders that appear whole or not at all: written under a temporary name, flushed to disk, renamed.

Links are followed, and what is no regular file (standard output, a device, a FIFO) is written through, never replaced.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from workflow.errors import WorkflowError

TEMPORARY_PREFIX = ".tmp-"
STDOUT = Path("-")
"""Standard output, as commands name it."""
STREAMS = {"-": 1, "/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|(\d+)))/fd/(\d+)")
MOST_LINKS = 40
LFS_START = b"version https://git-lfs.github.com/spec/"
LFS_ADVICE = "is a Git LFS pointer, not the file itself; `git lfs pull` in its repository fetches that"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Opens a text file that takes its name when the block ends well; on any error nothing is left and an old file stays.

    A link is followed. What is no regular file gets the whole text when the block ends well.
    """
    try:
        target = followed(path)
        with _through(target) if _is_stream(target) else _renamed(target) as file:
            yield file
    except OSError as error:
        _name_place(error, path)
        raise


@contextlib.contextmanager
def _renamed(path: Path) -> Iterator[TextIO]:
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
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _through(stream: Path) -> Iterator[TextIO]:
    """The text is kept apart until the block ends well, so that a reader never gets a part of it."""
    with tempfile.TemporaryFile() as content, io.TextIOWrapper(content, encoding="utf-8") as file:
        yield file
        file.flush()
        content.seek(0)
        sys.stdout.flush()  # what was printed before comes before
        number = _own_descriptor(stream)
        # An own descriptor is used as it is: opening its name anew would write over what a redirected file holds.
        handle = os.open(stream, os.O_WRONLY | os.O_NOCTTY) if number is None else os.dup(number)
        with os.fdopen(handle, "wb") as out:
            shutil.copyfileobj(content, out)


def followed(path: Path) -> Path:
    """Where a path leads through links, up to a stream of this process. Raises OSError for a loop."""
    for _ in range(MOST_LINKS):
        if _own_descriptor(path) is not None or not path.is_symlink():
            return path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def is_stream(path: Path) -> bool:
    """Whether what is written there passes through, and no file of this name stays: `-`, a device, a FIFO, a socket."""
    try:
        return _is_stream(followed(path))
    except OSError:
        return False


def is_stdout(path: Path) -> bool:
    """Whether what is written there comes out at standard output."""
    try:
        return _own_descriptor(followed(path)) == 1
    except OSError:
        return False


def _is_stream(target: Path) -> bool:
    return _own_descriptor(target) is not None or (target.exists() and not target.is_file() and not target.is_dir())


def _own_descriptor(path: Path) -> int | None:
    """The number of this process's open file that a path names."""
    name = str(path)
    match = DESCRIPTOR.fullmatch(name)
    if match is not None and match[1] in (None, str(os.getpid())):
        return int(match[2])
    return STREAMS.get(name)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes its name when the block ends well. OSError if `path` is there by then.

    A link to nothing yet is followed. All in it has the permissions that the umask leaves: some libraries write files for
    nobody else to read.
    """
    path = followed(path)
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


def is_lfs_pointer(path: Path) -> bool:
    """Whether Git LFS left its pointer in the place of a file, as a clone without git-lfs does."""
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_START)) == LFS_START
    except OSError:
        return False


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
            remove_folder(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_folder(path: Path, *, ignore_errors: bool = False) -> None:
    """Removes a folder with all that is in it; of a link to one, the link alone."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=ignore_errors)


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
    try:
        target = followed(file)
    except OSError as error:
        return f"cannot be followed: {error.strerror}"
    if target.is_dir():
        return "is a folder"
    if _own_descriptor(target) is not None:
        return None
    if _is_stream(target):
        return None if os.access(target, os.W_OK) else "cannot be written to"
    folder = next(parent for parent in target.absolute().parents if parent.exists())
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
