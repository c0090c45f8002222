"""The last file of a checkpoint: sizes and SHA-256 of all the others, so that damage is found before it is trained on.

    checkpoint-N/manifest.json   {"schema_version": 1, "step": N, "files": {NAME: {"size": BYTES, "sha256": HEX}}}

Knows nothing of what the files mean. SHA-256, so that `sha256sum` can check a folder by hand; files are hashed in
threads (hashlib lets go of Python's lock), which big checkpoints make use of, because they are many files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow.errors import CheckpointError, ModelError
from workflow.files import write_json
from workflow.paths import CARD_NAME, STATE_FOLDER

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION = 1
HASH_THREADS = 8
BIG_BYTES = 4 << 30
"""From this size on, checking takes long enough to be worth a line."""

AGAIN = (
    f": the checkpoint was copied in part, or changed since it was written ({MANIFEST_FILE}); copy it again, or delete "
    f"{MANIFEST_FILE} where the change is meant"
)

Inode = tuple[int, int]


@dataclass(frozen=True)
class Manifest:
    """Name -> (bytes, SHA-256) of every file of a folder, subfolders included, and the step of its model."""

    step: int
    files: dict[str, tuple[int, str]]

    def without(self, folder: str) -> Manifest:
        """The files that do not stand in this subfolder."""
        return Manifest(self.step, {name: of for name, of in self.files.items() if not name.startswith(f"{folder}/")})


def write_manifest(folder: Path, *, step: int, before: Path | None = None) -> None:
    """Writes down what is in a folder that is otherwise complete. Raises OSError, or CheckpointError of `before`.

    Files that are hard links of those in `before`, an older state of the folder, are not hashed again.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    known = _known_hashes(folder, before) if before is not None else {}
    fresh = [name for name in names if name not in known]
    known |= dict(zip(fresh, _hashes([folder / name for name in fresh]), strict=True))
    files = {name: {"size": (folder / name).stat().st_size, "sha256": known[name]} for name in names}
    write_json(folder / MANIFEST_FILE, {"schema_version": SCHEMA_VERSION, "step": step, "files": files})


def _known_hashes(folder: Path, before: Path) -> dict[str, str]:
    manifest = read_manifest(before)
    return {
        name: of
        for name, (_, of) in (manifest.files.items() if manifest is not None else ())
        if (folder / name).is_file() and (folder / name).samefile(before / name)
    }


def read_manifest(folder: Path) -> Manifest | None:
    """What should be in a folder; None where there is no manifest. Raises CheckpointError where it cannot be read."""
    try:
        found: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        files = {name: (int(of["size"]), str(of["sha256"])) for name, of in found["files"].items()}
        return Manifest(int(found["step"]), files)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{MANIFEST_FILE} cannot be read: {type(error).__name__}: {error}") from None


def damage(
    folder: Path, manifest: Manifest, *, known: Collection[Inode] = (), say: Callable[[str], None] | None = None
) -> str | None:
    """What is wrong with a folder, by the name of a file, or None: sizes of all files first, then their contents.

    Files that are in `known` (hard links of what was found good) are not read again; files beyond the manifest's do
    not count. `say` hears of a check that takes long.
    """
    for fault in size_faults(folder, manifest).values():
        return fault
    stats = {name: (folder / name).stat() for name in manifest.files}
    to_hash = [name for name, found in stats.items() if (found.st_dev, found.st_ino) not in known]
    total = sum(manifest.files[name][0] for name in to_hash)
    if say is not None and total >= BIG_BYTES:
        say(f"checking {folder.name}: {total / 1e9:,.1f} GB against the hashes of its {MANIFEST_FILE}")
    try:
        hashes = _hashes([folder / name for name in to_hash])
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    changed = [name for name, of in zip(to_hash, hashes, strict=True) if of != manifest.files[name][1]]
    return f"{', '.join(changed)}: not what was written (the SHA-256 differs)" if changed else None


def size_faults(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Which files are missing or of another size, and a sentence of each."""
    return {name: fault for name, of in manifest.files.items() if (fault := _size_fault(folder, name, of[0]))}


def _size_fault(folder: Path, name: str, size: int) -> str | None:
    try:
        found = (folder / name).stat().st_size
    except OSError as error:
        return f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror}"
    return None if found == size else f"{name} has {found:,} bytes, not {size:,}"


def model_fault(folder: Path) -> str | None:
    """Why a model is not what was written, by names and sizes of its files; the text about it may be another."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return str(error)
    faults = size_faults(folder, manifest.without(STATE_FOLDER)) if manifest is not None else {}
    return next((fault for name, fault in faults.items() if not _is_about(folder / name)), None)


def check_written(folder: Path) -> tuple[str, ...]:
    """Raises ModelError for a model of which a file is missing or cut short.

    A settings file that was changed and can be read is a user's own doing, and becomes a note.
    """
    manifest = _of_model(folder)
    notes = []
    for name, fault in size_faults(folder, manifest).items() if manifest is not None else ():
        if _is_settings(folder / name):
            notes.append(f"{name} was changed since the checkpoint was written ({fault.removeprefix(f'{name} ')})")
        elif not _is_about(folder / name):
            raise ModelError(f"{folder}: {fault}{AGAIN}")
    return tuple(notes)


def check_hashes(folder: Path) -> None:
    """Raises ModelError unless every file of a model is the one that was written."""
    manifest = _of_model(folder)
    if manifest is None:
        raise ModelError(f"{folder}: no {MANIFEST_FILE}, so there are no hashes to check (--check_hashes)")
    if fault := damage(folder, manifest):
        raise ModelError(f"{folder}: {fault}{AGAIN}")


def _of_model(folder: Path) -> Manifest | None:
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        raise ModelError(f"{folder}: {error}{AGAIN}") from None
    return manifest.without(STATE_FOLDER) if manifest is not None else None


def _is_about(file: Path) -> bool:
    """Whether it is a text for people alone."""
    return file.name == CARD_NAME and file.is_file()


def _is_settings(file: Path) -> bool:
    """Whether it is a whole JSON file; one that was cut short is none."""
    try:
        return file.suffix == ".json" and isinstance(json.loads(file.read_text(encoding="utf-8")), dict | list)
    except (OSError, ValueError):
        return False


def inodes(folder: Path, manifest: Manifest) -> frozenset[Inode]:
    """Which files these are, whatever their names."""
    stats = [(folder / name).stat() for name in manifest.files]
    return frozenset((found.st_dev, found.st_ino) for found in stats)


def _hashes(files: list[Path]) -> list[str]:
    with ThreadPoolExecutor(HASH_THREADS) as threads:
        return list(threads.map(_sha256, files))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
