"""Texts that are compared with files; a failure says how to accept the new one."""

from __future__ import annotations

import difflib
import os
from pathlib import Path


def assert_golden(text: str, file: Path) -> None:
    """`text` is what `file` holds; with WORKFLOW_ACCEPT=1 it is made so."""
    if os.environ.get("WORKFLOW_ACCEPT") == "1":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    wanted = file.read_text(encoding="utf-8") if file.is_file() else ""
    changed = "\n".join(difflib.unified_diff(wanted.splitlines(), text.splitlines(), str(file), "now", lineterm=""))
    assert text == wanted, (
        f"{changed}\nTo accept it: WORKFLOW_ACCEPT=1 python -m pytest, with this test; say why in the commit."
    )
