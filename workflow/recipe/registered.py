"""`workflow data list`, `show` and `make`: what is registered, told and written.

Knows nothing of models.
"""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from workflow import paths as names
from workflow.console import leave_stdout_to, make_console, styled
from workflow.data.glue import TASKS, glue_task, plain
from workflow.data.made_files import Made, make, write_eval, write_once
from workflow.data.registry import BUILT_IN, Entry, Registry, glue_entry, glue_registry, read_registry
from workflow.data.registry_rows import Survey, survey, unlabelled_rows
from workflow.errors import ConfigError, DataError
from workflow.files import is_stream, why_not_writable
from workflow.metric_names import higher_is_better

USUAL_FILE = Path("language-database.json")


def list_data(given: Namespace) -> int:
    """Prints a table of the registry, or of GLUE's tasks."""
    console = make_console()
    if given.registry is None and USUAL_FILE.is_file():
        given.registry = str(USUAL_FILE)
    if given.registry in (None, BUILT_IN) and given.glue_dir is None:
        console.print(_glue_table())
        console.print("their files: workflow data make glue TASK --glue_dir DIR --out NAME")
        return 0
    registry = _registry(given)
    table = Table("language", "task", "name", "data set", "splits", "classes", title=registry.label)
    for entry in registry.entries:
        cells = (entry.language, entry.task, entry.name, entry.dataset, " / ".join(entry.splits))
        table.add_row(*cells, str(entry.classes) if entry.classes else "numbers")
    console.print(table)
    return 0


def _glue_table() -> Table:
    table = Table("task", "metrics", "classes", "learn / measure / test", "leaderboard", title="GLUE")
    for task in TASKS.values():
        metrics = ", ".join(f"{name} ({'high' if higher_is_better(name) else 'low'})" for name in task.metrics)
        classes = " ".join(task.names) or "numbers, 0 to 5"
        files = " / ".join(name or "-" for name in task.files)
        table.add_row(task.name, metrics, classes, files, f"{task.leaderboard}, {task.num_test:,} rows")
    return table


def show_data(given: Namespace) -> int:
    """Surveys an entry and prints what it holds."""
    console = make_console()
    found = survey(_entry(given, given.entry), given.model_type)
    entry = found.entry
    console.print(f"{entry.key}  ({entry.dataset})")
    console.print(_split_table(found))
    for split in found.splits:
        state = "present" if split.phonemes == split.rows else f"in {split.phonemes:,} of {split.rows:,} rows"
        console.print(f"{split.split}: phoneme features {state if split.phonemes else 'absent'}")
    _print_notes(console, found.notes())
    made = make([found], [found], given.model_type)
    for name in ("train", "eval"):
        for row in islice(made.rows(name), max(0, given.rows)):
            console.print(f"{name}: {json.dumps(row, ensure_ascii=False)}", soft_wrap=True)
    return 0


def _split_table(found: Survey) -> Table:
    table = Table("", *(f"{split.split}" for split in found.splits))
    table.add_row("rows", *(f"{split.rows:,}" for split in found.splits))
    for number, label in enumerate(found.labels):
        table.add_row(f"class {number}: {label}", *(f"{split.labels[label]:,}" for split in found.splits))
    if not found.entry.classes:
        table.add_row("numbers", *(f"{split.low:g} to {split.high:g}" for split in found.splits))
    return table


def make_data(given: Namespace) -> int:
    """Writes the data file, or the rows of one split without targets; of GLUE's tasks a file each where no --out joins them."""
    if given.out is None:
        return _make_each(given)
    path = out_file(given.out, names.find_mount(given.mount))
    leave_stdout_to(path)
    console = make_console()
    entries = [_entry(given, wanted) for wanted in given.entries]
    if given.split is not None:
        return _make_split(given, entries, path, console)
    surveys = {entry.key: survey(entry, given.model_type) for entry in entries}
    evaluated = entries if given.eval is None else [_entry(given, wanted) for wanted in given.eval]
    for entry in evaluated:
        surveys.setdefault(entry.key, survey(entry, given.model_type))
    made = make([surveys[e.key] for e in entries], [surveys[e.key] for e in evaluated], given.model_type)
    state = "" if write_once(made, path, overwrite=given.overwrite) else ", as it was"
    for found in surveys.values():
        _print_notes(console, found.notes())
    rows = [sum(found.splits[place].rows for found in part) for place, part in enumerate((made.train, made.eval))]
    console.print(f"{path}: {rows[0]:,} train and {rows[1]:,} eval rows{state}")
    if not is_stream(path):
        console.print(f"use it: python3 clf.py --data_name {given.out}{_flags(made)}")
    return 0


def _make_each(given: Namespace) -> int:
    if given.registry != BUILT_IN:
        raise ConfigError("--out NAME: a registry's entries are joined into one data set; name it")
    entries = [_entry(given, wanted) for wanted in given.entries]  # every name is looked at before anything is written
    for entry, wanted in zip(entries, given.entries, strict=True):
        name = plain(entry.name) + (f"-{given.split}" if given.split is not None else "")
        make_data(Namespace(**{**vars(given), "entries": [wanted], "out": name}))
    return 0


def _make_split(given: Namespace, entries: list[Entry], path: Path, console: Console) -> int:
    if given.eval is not None:
        raise ConfigError("--split writes rows to be scored alone; leave out --eval")
    if path.exists() and not given.overwrite and not is_stream(path):
        raise ConfigError(f"{path}: is there already; --overwrite replaces it, or choose another --out")
    rows = (row for entry in entries for row in unlabelled_rows(entry, given.split, given.model_type))
    count = write_eval(rows, path)
    console.print(f"{path}: {count:,} rows without targets")
    return 0


def out_file(out: str, mount: Path) -> Path:
    """Where `--out NAME|FILE` is. Raises ConfigError."""
    path = Path(out)
    if is_stream(path):
        return path
    path = (
        path
        if "/" in out or out.endswith(".json")
        else mount / "data" / f"{names.checked_name(out, what='--out')}.json"
    )
    if path.suffix != ".json":
        raise ConfigError(f"--out {out}: a FILE ends in .json; a NAME without slashes goes to {mount / 'data'}")
    if reason := why_not_writable(path):
        raise ConfigError(f"--out {path}: {reason}")
    return path


def _flags(made: Made) -> str:
    if made.problem == "binary":
        return ""
    labels = f" --labels {shlex.join(made.names)}" if made.names else ""
    return f" --problem {made.problem}{labels}"


def _registry(given: Namespace) -> Registry:
    if given.registry != BUILT_IN:
        if given.glue_dir is not None:
            raise ConfigError(f"--glue_dir is for the registry {BUILT_IN}, not for {given.registry}")
        return read_registry(Path(given.registry))
    return glue_registry(_glue_dir(given))


def _entry(given: Namespace, wanted: str) -> Entry:
    """A GLUE task however it is spelled, MNLI-mm and AX too, or an entry of the registry."""
    if given.registry == BUILT_IN:
        return glue_entry(glue_task(wanted.rpartition("/")[2]), _glue_dir(given))
    return _registry(given).find(wanted)


def _glue_dir(given: Namespace) -> Path:
    folder = given.glue_dir
    if folder is None:
        raise ConfigError("glue: pass --glue_dir DIR, the folder that holds CoLA/, MRPC/ and so on")
    if not folder.is_dir():
        raise DataError(f"--glue_dir {folder}: no such folder")
    assert isinstance(folder, Path)
    return folder


def _print_notes(console: Console, notes: Iterable[str]) -> None:
    for note in notes:
        console.print(styled("note", "yellow", f"  {note}"))
