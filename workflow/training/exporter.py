"""A training run's figures for Prometheus: /metrics of the first rank, in a registry of its own.

Knows nothing of models. A tracker like the others, but that it listens at a port from before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, start_http_server

from workflow.errors import ConfigError

PREFIX = "workflow_training"
TRAINING = {
    "loss": ("loss", "Loss of the update, as logged."),
    "lr": ("learning_rate", "Highest learning rate of the update's parameter groups."),
    "grad_norm": ("grad_norm", "Norm of the gradient before clipping."),
    "tokens_per_s": ("tokens_per_second", "Real tokens a second of the update."),
    "examples": ("examples", "Examples trained on so far."),
}
"""Name in metrics.jsonl -> (name here, text)."""


class Exporter:
    """Serves figures while a run trains. They are the newest logged ones (every --logging_steps updates)."""

    name = "metrics_port"

    def __init__(self, port: int, host: str, facts: Mapping[str, str]) -> None:
        """Raises ConfigError where the port cannot be listened at. `facts` (run, task, ...) become one info metric."""
        self.registry = CollectorRegistry()
        run, labels = facts.get("run", ""), ("run",)

        def gauge(name: str, text: str, *more: str) -> Gauge:
            return Gauge(f"{PREFIX}_{name}", text, (*labels, *more), registry=self.registry)

        self._run = run
        self._step = gauge("step", "Updates made, as logged.")
        self._train = {name: gauge(own, text) for name, (own, text) in TRAINING.items()}
        self._eval = gauge("eval", "Metrics of the newest evaluation.", "metric")
        self._eval_step = gauge("eval_step", "Step of the newest evaluation.")
        self._checkpoint_step = gauge("checkpoint_step", "Step of the newest checkpoint.")
        self._checkpoints = Counter(
            f"{PREFIX}_checkpoints", "Checkpoints written by this process.", labels, registry=self.registry
        )
        Info(PREFIX, "The run.", registry=self.registry).info(dict(facts))
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise ConfigError(
                f"--metrics_port {port}: cannot listen at {host}: {error.strerror or error}; choose another port or --metrics_host"
            ) from None

    def log(self, step: int, values: Mapping[str, float], group: str) -> None:
        """The newest figures replace the older ones."""
        if group == "checkpoint":
            self._checkpoint_step.labels(self._run).set(step)
            self._checkpoints.labels(self._run).inc()
        elif group == "eval":
            self._eval_step.labels(self._run).set(step)
            for name, value in values.items():
                self._eval.labels(self._run, name).set(value)
        else:
            self._step.labels(self._run).set(step)
            for name, value in values.items():
                if name in self._train:
                    self._train[name].labels(self._run).set(value)

    def close(self, *, finished: bool) -> None:  # noqa: ARG002
        """Stops listening; may be called again."""
        self._server.shutdown()
        self._server.server_close()
