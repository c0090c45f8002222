"""Starts whatever is told how a run goes: the exporter before anything is loaded, trackers when training begins.

Knows nothing of what they are told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workflow.config.cascade import flatten
from workflow.console import styled
from workflow.paths import RunPaths
from workflow.recipe.task import Task
from workflow.runtime import on_first
from workflow.training.exporter import Exporter
from workflow.training.trackers import TrackedRun, Trackers, start_trackers, without_secrets


@contextmanager
def exporting(task: Task[Any]) -> Iterator[Exporter | None]:
    """The exporter that --metrics_port asks for, listening on the first rank while the block runs. Collective; raises ConfigError."""
    tracking, held = task.settings.tracking, list[Exporter]()
    port = tracking.metrics_port
    if port is not None:
        facts = {"run": task.run_name, "task": task.name, "model": task.model_label}
        on_first(lambda: held.append(Exporter(port, tracking.metrics_host, facts)), task.place.ranks)
    try:
        yield held[0] if held else None
    finally:
        if held:
            held[0].close(finished=True)


def trackers_of(task: Task[Any], paths: RunPaths, exporter: Exporter | None, *, continue_from: int) -> Trackers:
    """All that are told; for the first rank."""

    def say(text: str) -> None:
        task.place.console.print(styled("notice", "bold red", f"  {text}"), soft_wrap=True)

    settings = without_secrets(flatten(task.settings))
    run = TrackedRun(paths.root.name, task.settings.tracking.tracker_project, paths.root, settings, continue_from)
    started = start_trackers(task.settings.tracking.trackers, run, say)
    return Trackers([*started, *([exporter] if exporter else [])], say)
