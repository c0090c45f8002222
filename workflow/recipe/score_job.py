"""What one scoring is: which model, tokenizer and calibration, which rows, which settings; and how two of them differ.

Knows nothing of how rows are scored.
"""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from workflow.data.encoders import tokenizer_fingerprint
from workflow.data.sources import Source
from workflow.errors import ConfigError
from workflow.files import is_stream, why_not_writable
from workflow.models.load import is_path
from workflow.recipe.scorers import LoadedScorer

WEIGHTS = ("config.json", "*.safetensors", "*.bin", "*.pt")
IN_PARTS_ALONE = ("shard_rows", "num_rows")
"""What a finished file does not show."""


def describe(given: Namespace, name: str, scorer: LoadedScorer, source: Source) -> dict[str, Any]:
    """Everything that changes a record of the output, as plain values. To be taken before any row is encoded."""
    return {
        "model": name,
        "weights": fingerprint(name),
        "tokenizer": tokenizer_fingerprint(scorer.loaded.tokenizer),
        "data": source.label,
        "data_hash": source.data_hash,
        "scoring": json.loads(json.dumps(scorer.scoring.as_json())),
        "split": given.split,
        "scores_only": given.scores_only,
        "calibrated": _hash_of(scorer.calibration.as_json()) if given.calibrated and scorer.calibration else False,
        "precision": given.precision,
        "shard_rows": given.shard_rows,
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, apart_from: Collection[str] = ()) -> list[str]:
    """The names of what two descriptions do not share."""
    return [key for key in now if before.get(key) != now[key] and key not in apart_from]


def fingerprint(name: str) -> str:
    """Changes with a checkpoint's configuration and any byte of its weights; a hub name stands for itself.

    No samples: of a large T5 trained for scores, few kilobytes of label rows may be all that differ.
    """
    if not is_path(name):
        return name
    path = Path(name)
    files = [path] if path.is_file() else [file for pattern in WEIGHTS for file in sorted(path.glob(pattern))]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:32]


def check_out(out: Path, source: Source) -> None:
    """Refuses an --out that is no place for scores. Raises ConfigError."""
    if out.suffix not in (".json", ".jsonl") and not is_stream(out):
        raise ConfigError(f"--out {out}: ends in neither .json (one list) nor .jsonl (one record a line)")
    if reason := why_not_writable(out):
        raise ConfigError(f"--out {out}: {reason}; name a file that can be written")
    if out.exists() and any(out.samefile(file) for _, file in source.files):
        raise ConfigError(f"--out {out}: is the file of the rows to be scored, which it would replace; choose another")


def _hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
