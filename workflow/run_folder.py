"""Claims a run's folder: one process at a time, one set of settings for good.

Knows nothing of what a run does. A folder that somebody trained in is never overwritten or deleted: the same
settings continue it, others are refused, `--overwrite_output_dir` moves it aside.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow.config.cascade import Resolved
from workflow.errors import RunExistsError
from workflow.files import write_json
from workflow.paths import SETTINGS_NAMES, RunPaths

FREE_TO_CHANGE = frozenset(
    {
        "mount",
        "resume",
        "overwrite_output_dir",
        "nproc",
        "grace_s",
        "max_restarts",
        "rank_timeout_s",
        "skip_nonfinite",
        "deepspeed",
        "micro_batch_size",
        "micro_batch_tokens",
        "logging_steps",
        "save_total_limit",
        "eval_batch_size",
        "gradient_checkpointing",
        "pred_save_path",
    }
)
"""Settings that never change a run's numbers, so that a run may be continued with others."""


@dataclass(frozen=True)
class Claim:
    """A folder that this process holds. `finished` runs have a report."""

    paths: RunPaths
    finished: bool
    lock: int


def claim(
    root: Path,
    resolved: Resolved[Any],
    *,
    data_hash: str,
    overwrite: bool,
    settings_name: str = SETTINGS_NAMES[0],
    inputs: Mapping[str, str] | None = None,
) -> Claim:
    """Creates or takes over the run folder and locks it until this process ends.

    `inputs` are contents of files that settings name: with other contents it is another run.

    Raises RunExistsError when another process holds it, or when it holds a run with other settings or data.
    """
    if overwrite and root.exists():
        _move_aside(root)
    paths = RunPaths(root, settings_name)
    _refuse_other_folders(paths)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = _lock(paths)
    except OSError as error:
        raise RunExistsError(
            f"{root}: cannot write here: {error.strerror}; pass --mount with a folder that can be written"
        ) from None
    record = _record(resolved, data_hash, inputs or {})
    try:
        if _has_work(paths):
            _check_same(paths, record)
        else:
            write_json(paths.settings, record)
    except BaseException:
        os.close(lock)
        raise
    return Claim(paths, finished=paths.report.is_file(), lock=lock)


def _refuse_other_folders(paths: RunPaths) -> None:
    """A folder with content but no settings file of this task is no run of it: a model, say, that must not become one."""
    root = paths.root
    if not root.is_dir() or paths.settings.is_file():
        return
    content = [path.name for path in root.iterdir() if path.name != paths.lock.name and path.name[0] != "."]
    if content:
        raise RunExistsError(
            f"{root} exists and is not a run's folder, or another task's (it holds {', '.join(sorted(content)[:3])}); "
            "choose another --training_run_name"
        )


def _lock(paths: RunPaths) -> int:
    descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise RunExistsError(
            f"{paths.root}: held by {holder}; wait for it, or choose another --training_run_name"
        ) from None
    if not os.path.samestat(os.fstat(descriptor), paths.lock.stat()):  # moved aside since it was opened
        os.close(descriptor)
        raise RunExistsError(f"{paths.root}: moved by another process just now; try again")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def _move_aside(root: Path) -> None:
    """Renames the folder, unless a process holds it."""
    descriptor = _lock(RunPaths(root))
    aside = root.with_name(f"{root.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
    while aside.exists():
        aside = aside.with_name(aside.name + "x")
    root.rename(aside)
    os.close(descriptor)


def _has_work(paths: RunPaths) -> bool:
    """Whether anything stands in the folder that took time to make."""
    return paths.report.is_file() or paths.best.is_dir() or bool(paths.checkpoints())


def _record(resolved: Resolved[Any], data_hash: str, inputs: Mapping[str, str]) -> dict[str, Any]:
    settings = resolved.flat()
    return {
        "schema_version": 1,
        "settings": settings,
        "origins": {name: resolved.origin(name) for name in settings},
        "data_hash": data_hash,
        "inputs": dict(inputs),
    }


def _check_same(paths: RunPaths, record: dict[str, Any]) -> None:
    try:
        old = json.loads(paths.settings.read_text(encoding="utf-8"))
        before = {**old["settings"], "data_hash": old["data_hash"], **old.get("inputs", record["inputs"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise RunExistsError(
            f"{paths.root} holds checkpoints but no readable {paths.settings.name}; choose another --training_run_name"
        ) from None
    now = {**record["settings"], "data_hash": record["data_hash"], **record["inputs"]}
    changed = [name for name in now if name not in FREE_TO_CHANGE and before.get(name) != now[name]]
    if changed:
        lines = [f"  {name}: {json.dumps(before.get(name))} -> {json.dumps(now[name])}" for name in changed]
        raise RunExistsError(
            f"{paths.root} holds a run with other settings:\n" + "\n".join(lines) + "\n"
            "choose another --training_run_name, or pass --overwrite_output_dir to move that run aside and start anew"
        )
