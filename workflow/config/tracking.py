"""Settings of who else is told how a run goes: experiment trackers, and a page for Prometheus.

Knows nothing of the trackers themselves. None of these settings changes a number of a run.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from workflow.config.sections import Section, setting
from workflow.errors import install_command


class TrackingSection(Section):
    """Trackers and metrics"""

    affects = "place"
    trackers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = setting(
        (),
        f"who is told of losses and metrics beside metrics.jsonl and TensorBoard; each is an extra ({install_command('wandb')}), and takes "
        "its server, key and offline mode from its own environment",
    )
    tracker_project: str = setting(
        "workflow", "project (for MLflow: experiment) of the trackers; the run is called there as its folder is"
    )
    metrics_port: int | None = setting(
        None, "port at which the first rank serves /metrics for Prometheus while it trains", ge=1, le=65535
    )
    metrics_host: str = setting(
        "127.0.0.1",
        "address that --metrics_port listens at: 0.0.0.0 where others must reach it, as Prometheus in a cluster",
        needs="metrics_port",
    )

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _check_together(self) -> TrackingSection:
        if self.metrics_port is None and self.metrics_host != type(self).model_fields["metrics_host"].default:
            raise ValueError("--metrics_host needs --metrics_port, e.g. 9400")
        if not self.tracker_project.strip():
            raise ValueError("--tracker_project must not be empty")
        return self
