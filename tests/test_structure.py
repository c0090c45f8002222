"""The house keeps its floors: imports go downward only, rooms on one floor never import each other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

FLOORS = {
    "__main__": 11,
    "cli": 10,
    "commands": 9,
    "seq2seq": 8,
    "clf": 8,
    "entry": 7,
    "torchrun": 7,
    "server": 7,
    "sweep": 7,
    "recipe": 6,
    "launch": 6,
    "exits": 6,
    "jobs": 6,
    "results": 6,
    "pages": 5,
    "training": 4,
    "evaluation": 4,
    "inference": 3,
    "strategies": 3,
    "data": 2,
    "models": 2,
    "run_folder": 2,
    "watch": 2,
    "client": 1,
    "config": 1,
    "paths": 1,
    "runtime": 1,
    "console": 1,
    "files": 1,
    "errors": 0,
    "metric_names": 0,
    "__init__": -1,
}
OFFERED = {"client"}
"""What the package itself offers, and imports when it is asked for."""
MODULES = sorted((ROOT / "workflow").rglob("*.py"))


def room(parts: list[str]) -> str:
    return parts[0] if parts else "__init__"


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "workflow":
            rest = node.module.split(".")[1:]
            found |= (
                {room(rest)}
                if rest
                else {room([alias.name]) if alias.name in FLOORS else "__init__" for alias in node.names}
            )
        elif isinstance(node, ast.Import):
            found |= {room(alias.name.split(".")[1:]) for alias in node.names if alias.name.split(".")[0] == "workflow"}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    here = path.relative_to(ROOT / "workflow").with_suffix("").parts[0]
    assert here in FLOORS, f"{here} has no floor; place it in FLOORS and in docs/structure.md"
    for other in imported_rooms(path) - {here} - (OFFERED if here == "__init__" else set()):
        assert FLOORS[other] < FLOORS[here], (
            f"{path.name} (floor {FLOORS[here]}) imports {other} (floor {FLOORS[other]})"
        )


def test_only_the_backend_imports_deepspeed():
    pattern = re.compile(r"^\s*(import|from) deepspeed\b", re.MULTILINE)
    assert [path.name for path in MODULES if pattern.search(path.read_text(encoding="utf-8"))] == [
        "backend.py",
        "masters.py",
        "zero_start.py",
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_say_what_they_are(path):
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, f"{path} has no docstring"
    assert text.count("\n") <= 400, f"{path} has grown beyond 400 lines; split it by idea"


def test_every_room_is_drawn():
    drawn = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    for name in FLOORS:
        if not name.startswith("__"):
            assert re.search(rf"(?<![\w/.]){name}(/|\.py\b)", drawn), f"docs/structure.md does not draw {name}"


def test_no_habits_we_refuse():
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        for habit in ("trust_remote_code=True", "weights_only=False", "shell=True", "pickle.load", "os.system("):
            assert habit not in text, f"{path}: {habit}"
