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

from workflow.errors import CheckpointError
from workflow.files import write_json

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION = 1
HASH_THREADS = 8
BIG_BYTES = 4 << 30
"""From this size on, checking takes long enough to be worth a line."""

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
    to_hash: list[str] = []
    for name, (size, _) in manifest.files.items():
        try:
            found = (folder / name).stat()
        except OSError as error:
            return f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror}"
        if found.st_size != size:
            return f"{name} has {found.st_size:,} bytes, not {size:,}"
        if (found.st_dev, found.st_ino) not in known:
            to_hash.append(name)
    total = sum(manifest.files[name][0] for name in to_hash)
    if say is not None and total >= BIG_BYTES:
        say(f"checking {folder.name}: {total / 1e9:,.1f} GB against the hashes of its {MANIFEST_FILE}")
    try:
        hashes = _hashes([folder / name for name in to_hash])
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    changed = [name for name, of in zip(to_hash, hashes, strict=True) if of != manifest.files[name][1]]
    return f"{', '.join(changed)}: not what was written (the SHA-256 differs)" if changed else None


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
