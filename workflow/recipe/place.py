"""Where a command happens: this process's ranks and device, the mount, and where it speaks.

Knows nothing of models or data but where a name or path of a model leads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from workflow import paths as names
from workflow.errors import ConfigError, ModelError, did_you_mean
from workflow.models.load import is_path
from workflow.runtime import Ranks


@dataclass(frozen=True)
class Place:
    """Ranks, device, mount, and a console that is silent but on the first rank."""

    ranks: Ranks
    device: str
    mount: Path
    console: Console


def init_model_folder(name: str, mount: Path) -> str:
    """The folder that `--model_init_name NAME` means. Raises ConfigError."""
    folder = mount / "models" / names.checked_name(name, what="--model_init_name")
    if not folder.exists():
        raise ConfigError(
            f"--model_init_name {name}: no such folder: {folder}; --model_init_path takes a path or a hub name"
        )
    return str(names.model_folder(folder))


def inside_run(name: str) -> str:
    """A path to a run means its best checkpoint; every other path, and a hub name, itself."""
    return str(names.model_folder(Path(name))) if is_path(name) else name


def model_to_use(name: str, mount: Path) -> str:
    """What RUN means on a command line: a run under the mount, else a folder, else a hub name."""
    if "/" not in name and (mount / "models" / name).is_dir():
        return str(names.model_folder(mount / "models" / names.checked_name(name, what="RUN")))
    if is_path(name):
        return str(names.model_folder(Path(name)))
    runs = sorted(path.name for path in (mount / "models").glob("*") if path.is_dir() and not path.name.startswith("."))
    if hint := did_you_mean(name, runs):
        raise ModelError(f"no run named {name!r} under {mount / 'models'}{hint}")
    return name
