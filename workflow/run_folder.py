"""Claims a run's folder: one process at a time, one set of settings for good.

Knows nothing of what a run does. A folder that somebody trained in is never overwritten or deleted: the same
settings continue it, others are refused, `--overwrite_output_dir` moves it aside.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow import locks
from workflow.config.affects import names_that_affect
from workflow.config.cascade import Resolved, with_defaults
from workflow.config.rivals import names_set, silenced_by
from workflow.config.sections import CommandSettings
from workflow.errors import RunExistsError
from workflow.files import write_json
from workflow.locks import acquire, holder, stand_of
from workflow.paths import SETTINGS_NAMES, RunPaths
from workflow.runtime import AGAIN_VARIABLE

FREE_TO_CHANGE = names_that_affect("speed", "place", "command")
"""Settings that never change a run's numbers, so that a run may be continued with others."""
NOT_NOTED = frozenset({"training_run_name", "mount", "resume", "overwrite_output_dir", "allow_changed_data"})
"""Those that say how a run is found or continued, and are not worth a note."""
SHORT_HASH = 12


@dataclass(frozen=True)
class Claim:
    """A folder that this process holds. `finished` runs have a report; `notes` tell what differs from when it began."""

    paths: RunPaths
    finished: bool
    lock: int
    data_changed: bool = False
    notes: tuple[str, ...] = ()


def claim(
    root: Path,
    resolved: Resolved[Any],
    *,
    data_hash: str,
    overwrite: bool,
    settings_name: str = SETTINGS_NAMES[0],
    inputs: Mapping[str, str] | None = None,
    allow_changed_data: bool = False,
) -> Claim:
    """Creates or takes over the run folder and locks it until `release`, or this process's end.

    `inputs` are contents of files that settings name: with other contents it is another run.
    With `overwrite` the first start of a command moves what is there aside; later ones go on with what the first began.

    With `allow_changed_data` a run goes on with other data than before, and its settings file says so from then on.
    Raises RunExistsError when another process holds it, or when it holds a run with other settings or data.
    """
    paths = RunPaths(root, settings_name)
    try:
        if overwrite and root.exists() and not _is_started_again():
            _move_aside(root)
        _refuse_other_folders(paths)
        root.mkdir(parents=True, exist_ok=True)
        lock = _lock(paths)
    except OSError as error:
        raise RunExistsError(
            f"{root}: cannot write here: {error.strerror}; pass --mount with a folder that can be written"
        ) from None
    record = _record(resolved, data_hash, inputs or {})
    finished, notes, data_changed = paths.report.is_file(), [], False
    try:
        if _has_work(paths):
            before = _before(paths, resolved)
            notes = _check_same(paths, before, record, resolved, allow_changed_data=allow_changed_data)
            data_changed = before["data_hash"] != data_hash
            if data_changed and not finished:
                write_json(paths.settings, _with_new_data(before, data_hash))
        else:
            write_json(paths.settings, record)
    except BaseException:
        locks.release(lock)
        raise
    return Claim(paths, finished, lock, data_changed, tuple(notes))


def release(held: Claim) -> None:
    """Lets others have the folder, the next run in this process among them; for the process that claimed it."""
    locks.release(held.lock)


def _is_started_again() -> bool:
    """Whether this very command ran before: after memory ran out, ranks that died, or as a job that Slurm requeued."""
    return AGAIN_VARIABLE in os.environ or os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


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
    descriptor = acquire(paths.lock)
    if descriptor is None:
        raise RunExistsError(
            f"{paths.root}: held by {holder(paths.lock)}; wait for it, or choose another --training_run_name"
        )
    if not os.path.samestat(os.fstat(descriptor), paths.lock.stat()):  # moved aside since it was opened
        locks.release(descriptor)
        raise RunExistsError(f"{paths.root}: moved by another process just now; try again")
    return descriptor


def _move_aside(root: Path) -> None:
    """Renames the folder, unless a process holds it."""
    descriptor = _lock(RunPaths(root))
    aside = root.with_name(f"{root.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
    while aside.exists():
        aside = aside.with_name(aside.name + "x")
    stand_of(RunPaths(root).lock).unlink(missing_ok=True)  # of the folder that is made in its place, nobody holds it
    root.rename(aside)
    locks.release(descriptor)


def _has_work(paths: RunPaths) -> bool:
    """Whether anything stands in the folder that took time to make."""
    return paths.report.is_file() or paths.best.is_dir() or bool(paths.checkpoints())


def _record(resolved: Resolved[Any], data_hash: str, inputs: Mapping[str, str]) -> dict[str, Any]:
    settings = resolved.flat()
    return {
        "schema_version": 1,
        "settings": settings,
        "origins": {name: resolved.origin_text(name) for name in settings},
        "data_hash": data_hash,
        "inputs": dict(inputs),
    }


def _before(paths: RunPaths, resolved: Resolved[Any]) -> dict[str, Any]:
    """The record that the run began with; parts of settings that did not exist then are at their defaults."""
    try:
        old: dict[str, Any] = json.loads(paths.settings.read_text(encoding="utf-8"))
        settings = with_defaults(dict(old["settings"]), resolved.settings)
        return {**old, "settings": settings, "data_hash": str(old["data_hash"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise RunExistsError(
            f"{paths.root} holds checkpoints but no readable {paths.settings.name}; choose another --training_run_name"
        ) from None


def _check_same(
    paths: RunPaths,
    before: dict[str, Any],
    record: dict[str, Any],
    resolved: Resolved[Any],
    *,
    allow_changed_data: bool,
) -> list[str]:
    """Notes of what differs and may. Raises RunExistsError with a table of what must not."""
    then = {**before["settings"], **before.get("inputs", record["inputs"])}
    now = {**record["settings"], **record["inputs"]}
    # A setting that the program did not have then, and that is left at its default, is no difference.
    new = {name for name in record["settings"] if name not in then and name not in resolved.origins}
    silent = _silent_in(type(resolved.settings), before["settings"], record["settings"])
    silent |= {name for name, (by, _) in resolved.settings.idle().items() if then.get(by) == now.get(by)}
    changed = [name for name in now if name not in new and then.get(name) != now[name]]
    rows = {name: (json.dumps(then.get(name)), json.dumps(now[name])) for name in changed}
    refused = {name: row for name, row in rows.items() if name not in FREE_TO_CHANGE | silent}
    instead = "choose another --training_run_name, or pass --overwrite_output_dir to move that run aside and start anew"
    data = (short_hash(before["data_hash"]), short_hash(record["data_hash"]))
    other_data = before["data_hash"] != record["data_hash"]
    if other_data and not allow_changed_data:
        refused["data_hash"] = data
        instead += "; --allow_changed_data goes on with data that changed"
    if refused:
        raise RunExistsError(f"{paths.root} holds a run with other settings or data:\n{_table(refused)}\n{instead}")
    free = {name: row for name, row in rows.items() if name not in NOT_NOTED}
    return [
        *(
            [f"the data changed since this run began: {data[0]} -> {data[1]} (--allow_changed_data)"]
            if other_data
            else []
        ),
        *([f"other settings than this run began with, which change no numbers:\n{_table(free)}"] if free else []),
    ]


def _silent_in(settings_type: type[CommandSettings], *records: Mapping[str, Any]) -> set[str]:
    """Settings that have no say in any of these: each holds one that silences them (older records may hold both)."""
    on = [names_set(settings_type, record) for record in records]
    return {
        other
        for name, others in silenced_by(settings_type, companions=False).items()
        if all(name in one for one in on)
        for other in others
    }


def differences(then: Path, now: Path) -> list[str]:
    """A note of what two runs' settings files do not share, but for names and places; none where one cannot be read."""
    try:
        old, new = (dict(json.loads(file.read_text(encoding="utf-8"))["settings"]) for file in (then, now))
    except (OSError, ValueError, KeyError, TypeError):
        return []
    names = [name for name in new if name in old and name not in NOT_NOTED]
    rows = {name: (json.dumps(old[name]), json.dumps(new[name])) for name in names if old[name] != new[name]}
    return [f"other settings than {then.parent} was trained with:\n{_table(rows)}"] if rows else []


def _table(rows: Mapping[str, tuple[str, str]]) -> str:
    """Name, then, now."""
    lines = [("", "then", "now"), *((name, *row) for name, row in rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    return "\n".join(f"  {name:<{widths[0]}}  {then:<{widths[1]}}  {now}" for name, then, now in lines)


def _with_new_data(before: dict[str, Any], data_hash: str) -> dict[str, Any]:
    change = {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "data_hash": [before["data_hash"], data_hash]}
    return {**before, "data_hash": data_hash, "changes": [*before.get("changes", []), change]}


def short_hash(value: str | None) -> str:
    """Enough of a hash to tell two apart."""
    return (value or "none")[:SHORT_HASH]
