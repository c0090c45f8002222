"""A table's file that grows: beside it stand the results it shows, so that more can join them without doubles.

Knows nothing of formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workflow.errors import ConfigError, ResultsError
from workflow.files import read_json, write_json
from workflow.results.labelling import with_settings_labels
from workflow.results.records import WholeRecord, result_of, whole_record
from workflow.results.runs import Result
from workflow.results.settling import Prefer, settle


def results_file(out: Path) -> Path:
    """Where the results of a table stand: `table.md.results.json`."""
    return out.with_name(f"{out.name}.results.json")


def joined(out: Path, results: Sequence[Result], *, prefer: Prefer | None = None) -> list[Result]:
    """The results that the table at `out` shows already, with these; each run once. See `settle`.

    Raises ConfigError where `out` is a file that is no such table.
    """
    path = results_file(out)
    if out.exists() and not path.is_file():
        raise ConfigError(f"--out {out}: exists, and no {path.name} says what it shows; choose another, or remove it")
    records = read_json(path, broken=ResultsError) or []
    return with_settings_labels(settle([*_read(path, records), *results], prefer=prefer))


def write_results(out: Path, results: Sequence[Result]) -> None:
    """Keeps the results of the table at `out`."""
    write_json(results_file(out), [whole_record(result).model_dump(mode="json") for result in results])


def _read(path: Path, records: Any) -> list[Result]:
    try:
        whole = [WholeRecord.model_validate(record) for record in records]
    except (ValidationError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ResultsError(f"{path}: not the results of a table: {reason}; remove it and the table") from None
    return [result_of(record, record.report) for record in whole]
