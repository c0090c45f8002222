"""What is counted and timed, in Prometheus' format and under vLLM's names, so that existing dashboards show this server.

Knows nothing of requests' content. Labels are runs' names and routes, never anything that a client made up.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MODEL = "model_name"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


class Metrics:
    """One registry an app, so that several apps can live in a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, (MODEL, *labels), registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, (MODEL,), registry=self.registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(name, text, (MODEL,), buckets=buckets, registry=self.registry)

        self.running = gauge("vllm:num_requests_running", "Requests in the engine.")
        self.waiting = gauge("vllm:num_requests_waiting", "Requests waiting for the engine.")
        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens taken in.")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens generated.")
        self.success = counter("vllm:request_success", "Answers given, by why they ended.", "finished_reason")
        self.first_token = histogram("vllm:time_to_first_token_seconds", "Until a stream's first token.", SECONDS)
        self.latency = histogram("vllm:e2e_request_latency_seconds", "From a request's arrival to its answer.", SECONDS)
        self.token_gap = histogram("vllm:inter_token_latency_seconds", "Between two tokens of a stream.", SECONDS)
        self.request_prompt = histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self.request_generation = histogram("vllm:request_generation_tokens", "Tokens of an answer.", TOKENS)
        self.responses = Counter(
            "workflow:http_responses", "Responses by route and status.", ("route", "status"), registry=self.registry
        )
        self.loaded_bytes = gauge("workflow:loaded_weights_bytes", "Bytes of a loaded run's weights.")

    def accepted(self, model: str, prompt_tokens: Sequence[int]) -> None:
        """Prompts went to the engine."""
        self.prompt_tokens.labels(model).inc(sum(prompt_tokens))
        for number in prompt_tokens:
            self.request_prompt.labels(model).observe(number)

    def answered(self, model: str, reason: str, generated_tokens: int = 0) -> None:
        """An answer ended; `reason` is stop, length, abort or error."""
        self.success.labels(model, reason).inc()
        if generated_tokens:
            self.generation_tokens.labels(model).inc(generated_tokens)
            self.request_generation.labels(model).observe(generated_tokens)

    def ended(self, model: str, status: int, seconds: float) -> None:
        """A response is complete, or its client went away."""
        if status < 400:
            self.latency.labels(model).observe(seconds)
        else:
            self.success.labels(model, "abort" if status in (499, 504) else "error").inc()

    def occupied(self, model: str, *, requests: int, rows: int, loaded_bytes: int) -> None:
        """How many requests a run has, of which `rows` at most are in the engine."""
        self.running.labels(model).set(min(requests, rows))
        self.waiting.labels(model).set(max(0, requests - rows))
        self.loaded_bytes.labels(model).set(loaded_bytes)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)
