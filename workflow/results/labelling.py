"""Labels of runs that no study labelled: task, model and seed from the report, and the settings in which they differ.

Knows nothing of files or tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from workflow.evaluation.report import Report
from workflow.results.identity import hash_of
from workflow.run_folder import FREE_TO_CHANGE

if TYPE_CHECKING:
    from workflow.results.runs import Result

UNNAMED = FREE_TO_CHANGE | {"seed", "model_init_name", "model_init_path", "model_pretrain_name", "data_name"}
"""Settings that change no numbers, and those that have labels of their own."""
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
MOST_NAMED = 4
"""More settings than these are too many to read: a label shows the first, and a hash of all."""


def labels_of_report(report: Report) -> dict[str, str]:
    """Task (the data set's name), model (where its weights came from) and seed."""
    settings = report.settings
    # A run of clf.py with weights from elsewhere goes by its pretrained model's name.
    start = (
        (settings.get("model_init_path") or settings.get("model_init_name"))
        if settings.get("model_pretrain_name")
        else None
    )
    return _labels(report.data, str(start or report.model), settings)


def labels_of_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """The same of a run that has settings alone, as near as these tell."""
    models = (settings.get(name) for name in ("model_init_path", "model_pretrain_name", "model_init_name"))
    return _labels(str(settings.get("data_name")), str(next((name for name in models if name), "")), settings)


def _labels(data: str, model: str, settings: Mapping[str, Any]) -> dict[str, str]:
    path = PurePath(data)
    task = path.stem if path.suffix in SUFFIXES else path.name
    return {"task": task, "model": model, "seed": str(settings.get("seed", 0))}


def with_settings_labels(results: Sequence[Result]) -> list[Result]:
    """The results; finished runs without a "setting" get one where their settings differ, so that nobody takes them for seeds."""
    unnamed = [result for result in results if "setting" not in result.labels and not result.study and result.report]
    values = [{name: value for name, value in result.settings.items() if name not in UNNAMED} for result in unnamed]
    # Only what differs between runs of one task and model: batches of unlike tasks are no choice to tell apart.
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result, one in zip(unnamed, values, strict=True):
        groups.setdefault((result.labels.get("task", ""), result.labels.get("model", "")), []).append(one)
    names = dict.fromkeys(name for one in values for name in one)
    varied = [name for name in names if any(_differs(group, name) for group in groups.values())]
    if not varied:
        return list(results)
    labels = {id(result): _told(one, varied) for result, one in zip(unnamed, values, strict=True)}
    return [
        replace(result, labels={**result.labels, "setting": labels[id(result)]}) if id(result) in labels else result
        for result in results
    ]


def _differs(settings: Sequence[Mapping[str, Any]], name: str) -> bool:
    # A report of an earlier version lacks newer settings, which is no difference.
    return len({hash_of(one[name]) for one in settings if name in one}) > 1


def _told(settings: Mapping[str, Any], varied: Sequence[str]) -> str:
    own = [name for name in varied if name in settings]
    parts = [f"{name}={_plain(settings[name])}" for name in own[:MOST_NAMED]]
    rest = (
        [f"+{len(own) - MOST_NAMED} ({hash_of([settings[name] for name in own])[:6]})"] if len(own) > MOST_NAMED else []
    )
    return ", ".join(parts + rest)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
