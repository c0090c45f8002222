"""The settings of `workflow serve`: each one a flag `--name`, an environment variable `WORKFLOW_SERVE_NAME`, and a key of settings files.

Knows nothing of HTTP or models; imports no torch, so that `-h` answers at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from workflow.config.cascade import FLAGS, Layer, read_settings_file
from workflow.config.sections import CommandSettings, Section, section_fields, setting
from workflow.errors import ConfigError, did_you_mean
from workflow.paths import find_mount

PREFIX = "WORKFLOW_SERVE_"
SERVICE_LINK = re.compile(r"\w+_(SERVICE_(HOST|PORT\w*)|PORT(_\d+_\w+)?)")
"""What Kubernetes adds to the environment for a Service whose name starts with `workflow-serve-`."""


class ServerSection(Section):
    """The server"""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 for all of this machine's")
    port: int = setting(8000, "port to listen on; 0 for any free one", ge=0, le=65535)
    grace_s: float = setting(
        130,
        "seconds after SIGTERM in which accepted requests are still answered; above --timeout_s, none is lost",
        gt=0,
    )
    keep_alive_s: int = setting(
        90,
        "seconds that an idle connection stays open; above those of proxies and clients' pools (60 to 75), which else send a "
        "request on a connection that is just being closed",
        ge=1,
    )
    root_path: str = setting(
        "", "path under which a proxy shows the server (`/models`), whether the proxy strips it or not; by default none"
    )
    log_prompts: bool = setting(False, "write prompts and answers into the log")


class ModelsSection(Section):
    """The models"""

    models: Path | None = setting(
        None, "folder of the runs to serve; by default models/ of the mount", companions=("mount",)
    )
    mount: Path | None = setting(
        None, "folder that holds data/ and models/; by default WORKFLOW_MOUNT, /model_mount if it exists, else ./mount"
    )
    preload: tuple[str, ...] = setting((), "runs to load before the server is ready; others load on first use")
    default_model: str | None = setting(None, "run for requests that name none; by default the only one there is")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto is a GPU where one is visible")
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "auto is bf16 on GPU and fp32 on CPU")
    memory_bytes: int = setting(
        0, "most bytes of loaded weights; the run used least recently goes first; 0 for no limit", ge=0
    )
    check_hashes: bool = setting(
        False, "load a run only if every file has the hash in its manifest.json; names and sizes are always checked"
    )
    turn_s: float = setting(
        5, "seconds that a run in use stays loaded while another one waits for its memory (--memory_bytes)", ge=0
    )
    refresh_s: float = setting(5, "seconds between two looks for a newer best checkpoint of the loaded runs", gt=0)


class EngineSection(Section):
    """The engine"""

    max_rows: int = setting(64, "samples decoded side by side, for each run", ge=1)
    max_encode_tokens: int = setting(8192, "prompt tokens encoded in one step", ge=1)
    max_cache_tokens: int = setting(
        131_072, "prompt and answer tokens whose keys and values the running answers of a run may come to hold", ge=1
    )
    max_prompt_tokens: int = setting(
        4096, "tokens of a prompt, end of sequence included; longer ones are refused", ge=1
    )
    step_timeout_s: float = setting(300, "seconds of one step after which /health says that the server is dead", gt=0)
    default_new_tokens: int = setting(256, "max_new_tokens of requests and checkpoints that do not say it", ge=1)


class QueueSection(Section):
    """The queue of each run"""

    max_requests: int = setting(128, "requests running and waiting; further ones are refused with 429", ge=1)
    max_queued_tokens: int = setting(
        1_048_576, "prompt tokens and tokens to generate of these requests; further ones are refused with 429", ge=1
    )
    timeout_s: float = setting(120, "seconds until a request that is not answered gets 504", gt=0)


class BoundsSection(Section):
    """Bounds of one request"""

    max_body_bytes: int = setting(2_097_152, "bytes of a request's body", ge=1)
    body_timeout_s: float = setting(15, "seconds in which a request's head, and then its body, must arrive", gt=0)
    write_timeout_s: float = setting(60, "seconds without reading after which a waiting client is cut off", gt=0)
    max_connections: int = setting(1024, "open connections; further ones are refused with 503", ge=1)
    max_fields: int = setting(1000, "fields of an object in a body", ge=1)
    max_prompts: int = setting(128, "prompts, inputs, items or documents in a request", ge=1)
    max_n: int = setting(32, "samples of a prompt", ge=1)
    max_beams: int = setting(8, "beams of a prompt", ge=1)
    max_new_tokens: int = setting(1024, "tokens to generate for a sample", ge=1)
    max_labels: int = setting(64, "labels of a score", ge=2)
    max_logprobs: int = setting(20, "most likely tokens shown for each generated one", ge=0)
    max_stop: int = setting(8, "stop strings", ge=0)
    max_stop_chars: int = setting(256, "characters of a stop string", ge=1)
    max_logit_bias: int = setting(300, "tokens with a bias", ge=0)


class AccessSection(Section):
    """Access"""

    api_key_file: Path | None = setting(
        None,
        "file of keys, one a line, read again when it changes; requests then need `Authorization: Bearer KEY`; by default none is "
        "needed",
    )
    protect_all: bool = setting(
        False, "ask for a key on /health, /ready, /metrics and the static pages too", needs="api_key_file"
    )
    cors_origins: tuple[str, ...] = setting((), "origins whose pages may call the server; by default none")

    @model_validator(mode="after")
    def _check_together(self) -> AccessSection:
        if self.protect_all and self.api_key_file is None:
            raise ValueError("--protect_all needs --api_key_file; without keys nothing is protected")
        return self


class ServeSettings(CommandSettings):
    """Serves the runs under mount/models over HTTP: /generate, /score, OpenAI's and TGI's routes, a page at /."""

    server: ServerSection = ServerSection()
    models: ModelsSection = ModelsSection()
    engine: EngineSection = EngineSection()
    queue: QueueSection = QueueSection()
    bounds: BoundsSection = BoundsSection()
    access: AccessSection = AccessSection()

    @property
    def folder(self) -> Path:
        """Where the runs are."""
        return self.models.models or find_mount(self.models.mount) / "models"


def serve_layers(files: Sequence[Path], flags: dict[str, Any], environment: Mapping[str, str]) -> list[Layer]:
    """Files in order, then the environment, then flags. Raises ConfigError for unknown variables of ours."""
    return [
        *(Layer(str(path), read_settings_file(path)) for path in files),
        Layer("environment", environment_values(environment)),
        Layer(FLAGS, flags),
    ]


def environment_values(environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings among environment variables; several values of a setting are separated by commas."""
    fields = {name.upper(): (name, info) for name, (_, info) in section_fields(ServeSettings).items()}
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        known = fields.get(variable.removeprefix(PREFIX))
        if known is not None:
            several = isinstance(known[1].default, tuple)
            values[known[0]] = [part.strip() for part in text.split(",") if part.strip()] if several else text
        elif not SERVICE_LINK.fullmatch(variable.removeprefix(PREFIX)):
            hint = did_you_mean(variable, [PREFIX + name for name in fields])
            raise ConfigError(f"environment variable {variable}: no such setting{hint}")
    return values
