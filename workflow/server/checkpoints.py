"""The runs in a folder, by name: which of them have a whole checkpoint, and where it stands.

Knows nothing of loading. Names lead nowhere but into the folder: no separators, no links that leave it. A checkpoint
that lacks a byte (a copy still under way) is not there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from workflow.errors import ConfigError
from workflow.models.load import FAMILIES, WEIGHT_FILES, has_tokenizer
from workflow.models.manifest import model_fault
from workflow.models.stored import FLOATS, safetensors_header
from workflow.paths import SCORING_NAME, RunPaths, checked_name

Fingerprint = tuple[tuple[str, int, int, int], ...]
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a checkpoint's files may raise: they may be gone, no JSON, or JSON of another shape."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint; `fingerprint` changes with any of its files."""

    path: Path
    fingerprint: Fingerprint
    scores: bool
    """Whether it was trained to score."""
    modified_s: int


class RunFolder:
    """The runs of one folder. Looks at the disk at each call, and remembers which files it has found whole."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._whole: dict[Path, Fingerprint] = {}

    def names(self) -> list[str]:
        """The runs that can be served, sorted."""
        try:
            entries = sorted(path.name for path in self.root.iterdir())
        except OSError:
            return []
        return [name for name in entries if self.find(name) is not None]

    def find(self, name: str) -> Checkpoint | None:
        """The run's best checkpoint, else its newest, if it is whole; None where there is none."""
        try:
            folder = self.root / checked_name(name, what="model")
            return next(filter(None, map(self._whole_checkpoint, _candidates(folder))), None)
        except (ConfigError, *UNREADABLE):  # a name that no file system takes; a folder going away under us
            return None

    def fault(self, name: str) -> str | None:
        """What a run's checkpoint lacks, where its manifest tells; None where it tells of nothing."""
        try:
            folder = self.root / checked_name(name, what="model")
            inside = [path for path in _candidates(folder) or [folder] if self._is_inside(path)]
            return next((fault for path in inside if (fault := model_fault(path))), None)
        except (ConfigError, *UNREADABLE):
            return None

    def _is_inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.root.resolve())

    def _whole_checkpoint(self, path: Path) -> Checkpoint | None:
        root = self.root.resolve()
        if not self._is_inside(path):
            return None
        files = sorted(file for file in path.iterdir() if file.is_file())
        if not all(file.resolve().is_relative_to(root) for file in files):
            return None
        stats = [(file.name, file.stat()) for file in files]
        fingerprint = tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)
        if self._whole.get(path) != fingerprint:
            if not is_whole(path):
                return None
            self._whole[path] = fingerprint
        return Checkpoint(
            path,
            fingerprint,
            scores=(path / SCORING_NAME).is_file() or not _is_t5(path),
            modified_s=max(int(stat.st_mtime) for _, stat in stats),
        )


def _candidates(folder: Path) -> list[Path]:
    if (folder / "config.json").is_file():
        return [folder]
    run = RunPaths(folder)
    if run.best.is_dir():
        return [run.best]
    return [path for _, path in reversed(run.checkpoints())]


def is_whole(path: Path) -> bool:
    """Whether configuration, tokenizer and every byte of the weights are there, and all that its manifest names."""
    try:
        if model_fault(path) is not None:
            return False
        readable = isinstance(json.loads((path / "config.json").read_text(encoding="utf-8")), dict)
        return readable and has_tokenizer(path) and _tokenizer_readable(path) and _weights_whole(path)
    except UNREADABLE:
        return False


def _is_t5(path: Path) -> bool:
    """Whether the model generates; all other families have heads that score."""
    try:
        return json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type") in FAMILIES
    except (OSError, ValueError, AttributeError):
        return False


def _tokenizer_readable(path: Path) -> bool:
    file = path / "tokenizer.json"
    return not file.is_file() or isinstance(json.loads(file.read_text(encoding="utf-8")), dict)


def weight_sizes(path: Path) -> list[tuple[int, int | None]]:
    """For each tensor of a checkpoint its bytes and, if they are floating numbers, an element's; files of other formats
    than safetensors are taken whole."""
    sizes: list[tuple[int, int | None]] = []
    for file in _weight_files(path):
        if file.suffix != ".safetensors":
            sizes.append((file.stat().st_size, None))
            continue
        header, _ = safetensors_header(file)
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                sizes.append((end - start, FLOATS[entry["dtype"]].itemsize if entry["dtype"] in FLOATS else None))
    return sizes


def _weights_whole(path: Path) -> bool:
    files = _weight_files(path)
    return bool(files) and all(map(_file_whole, files))


def _weight_files(path: Path) -> list[Path]:
    name = next((file for file in WEIGHT_FILES if (path / file).is_file()), None)
    if name is None or not name.endswith(".index.json"):
        return [] if name is None else [path / name]
    shards = json.loads((path / name).read_text(encoding="utf-8"))["weight_map"].values()
    return [path / shard for shard in sorted(set(shards))]


def _file_whole(file: Path) -> bool:
    """Whether a weights file is as long as its header says; of other formats, whether it holds anything."""
    size = file.stat().st_size
    if file.suffix != ".safetensors":
        return size > 0
    header, start = safetensors_header(file)
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size == start + max(ends, default=0)
