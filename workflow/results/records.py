"""A result as JSON, to be kept beside a table or among exported results, and back.

Knows nothing of where it is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from workflow.evaluation.report import Report
from workflow.results.runs import Result

SCHEMA_VERSION = 1


class ResultRecord(BaseModel):
    """Everything of a result but its report. `files`: names of its files -> SHA-256 of their content."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    identity: str
    name: str
    labels: dict[str, str]
    status: str
    reason: str | None
    metrics: list[str]
    settings: dict[str, Any]
    entry: str
    study: str | None
    slice: str | None
    place: str
    files: dict[str, str] = {}
    number: int = 0


class WholeRecord(ResultRecord):
    """With the report itself."""

    report: Report | None


def record_of(result: Result, *, files: dict[str, str] | None = None, number: int = 0) -> ResultRecord:
    """The record, without the report."""
    return ResultRecord(
        identity=result.identity,
        name=result.name,
        labels=dict(result.labels),
        status=result.status,
        reason=result.reason,
        metrics=list(result.metrics),
        settings=dict(result.settings),
        entry=result.entry,
        study=result.study,
        slice=result.slice,
        place=str(result.place.absolute()),
        files=files or {},
        number=number,
    )


def whole_record(result: Result) -> WholeRecord:
    """The record, with the report."""
    return WholeRecord(**record_of(result).model_dump(), report=result.report)


def result_of(record: ResultRecord, report: Report | None, *, place: Path | None = None) -> Result:
    """The result; `place` is where it is read from, unless it is the folder that it was first read from."""
    return Result(
        record.name,
        record.labels,
        place if place is not None else Path(record.place),
        record.status,
        report,
        record.reason,
        tuple(record.metrics),
        record.settings,
        record.entry,
        record.study,
        record.slice,
    )
