"""`workflow data check`: the findings of `data.checks`, for people or as JSON.

Knows nothing of models but their tokenizers.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from workflow import paths as names
from workflow.console import make_console
from workflow.data.checks import DataCheck, check
from workflow.data.examples import SEQ2SEQ, SPLITS, load_examples
from workflow.data.features import LengthLimits, load_features
from workflow.data.sources import find_source
from workflow.models.load import load_tokenizer, quiet_transformers


def check_data(given: Namespace) -> int:
    """Prints the findings; malformed data raises DataError (exit 2)."""
    mount, cache = names.find_mount(given.mount), names.cache_dir()
    tokenizer = _tokenizer(given, mount)
    examples = load_examples(find_source(given.data_name, mount), SEQ2SEQ, cache)
    limits = LengthLimits(given.max_source_length, given.max_target_length)
    features = (
        {split: load_features(examples, split, tokenizer, limits, cache) for split in SPLITS} if tokenizer else None
    )
    found = check(examples, features=features, tokenizer=tokenizer)
    if given.json:
        print(json.dumps({**found.as_json(), "warnings": found.warnings()}, ensure_ascii=False))
    else:
        _print(found, make_console(), with_tokens=tokenizer is not None)
    return 0


def _tokenizer(given: Namespace, mount: Path) -> Any:
    name = given.model_init_path
    if name is None and given.model_init_name:
        name = str(
            names.model_folder(mount / "models" / names.checked_name(given.model_init_name, what="--model_init_name"))
        )
    if name is None:
        return None
    quiet_transformers()
    return load_tokenizer(str(names.model_folder(Path(name))) if Path(name).is_dir() else name)


def _print(found: DataCheck, console: Console, *, with_tokens: bool) -> None:
    console.print(f"{found.label}  (content hash {found.fingerprint})")
    table = Table("", *found.splits)
    table.add_row("rows", *(f"{split.rows:,}" for split in found.splits.values()))
    table.add_row("distinct prompts", *(f"{split.rows - split.duplicate_prompts:,}" for split in found.splits.values()))
    for key in ("prompt", "completion") if with_tokens else ():
        spans = [split.lengths.get(key) for split in found.splits.values()]
        table.add_row(
            f"{key} tokens (min, median, p90, p99, max)",
            *(", ".join(map(str, span.values())) if span else "-" for span in spans),
        )
    console.print(table)
    for name, split in found.splits.items():
        if split.completions is not None:
            shares = ", ".join(f"{text!r} {count / split.rows:.1%}" for text, count in split.completions.items())
            console.print(f"{name}: completions: {escape(shares)}")
    for warning in found.warnings():
        console.print(f"[yellow]warning[/]  {escape(warning)}")
    if not with_tokens:
        console.print(
            "no tokenizer given (--model_init_path PATH): lengths, truncation and round trips were not checked"
        )
    if not found.warnings():
        console.print("nothing odd found")
