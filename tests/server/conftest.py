"""A live server in a thread, on a mount of checkpoints that a fake loader turns into fake engines."""

from __future__ import annotations

import json
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.server.browsing import browser, open_page  # noqa: F401
from tests.server.fake_engine import FakeEngine
from workflow.config.cascade import Layer, resolve
from workflow.server.app import create_app
from workflow.server.main import Server, make_server
from workflow.server.service import Service
from workflow.server.settings import ServeSettings
from workflow.server.texts import ModelTexts

WEIGHT_BYTES = 64


def write_checkpoint(folder: Path, *, version: int = 1) -> Path:
    """The smallest files that are a whole checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "version": version}))
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "U8", "shape": [WEIGHT_BYTES], "data_offsets": [0, WEIGHT_BYTES]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * WEIGHT_BYTES)
    return folder


@pytest.fixture
def runs(tmp_path) -> Path:
    """A folder with the runs `echo` and `other`."""
    for name in ("echo", "other"):
        write_checkpoint(tmp_path / "models" / name / "checkpoint-best-ckpt")
    return tmp_path / "models"


def settings_of(models: Path, **flags) -> ServeSettings:
    values = {"models": str(models), "host": "127.0.0.1", "port": 0, "refresh_s": 0.05, **flags}
    return resolve(ServeSettings, [Layer("flag", values)]).settings


@dataclass
class FakeLoader:
    """Remembers what it made; `failing` names raise what they say."""

    tokenizer: object
    texts: dict = field(default_factory=dict)
    engine: dict = field(default_factory=dict)
    failing: dict = field(default_factory=dict)
    memory_bytes: int = WEIGHT_BYTES
    delay: threading.Event | None = None
    loads: list = field(default_factory=list)
    engines: dict = field(default_factory=dict)
    released: list = field(default_factory=list)

    def __call__(self, name, path):
        if self.delay is not None:
            self.delay.wait(10)
        if name in self.failing:
            raise self.failing[name]
        self.loads.append((name, json.loads((path / "config.json").read_text()).get("version")))
        engine = self.engines[name] = FakeEngine(self.tokenizer, **self.engine)
        return Service(
            name,
            path,
            engine,
            ModelTexts(self.tokenizer, len(self.tokenizer), **self.texts),
            default_new_tokens=20,
            memory_bytes=self.memory_bytes,
            device="cpu",
            precision="fp32",
            release=lambda: self.released.append(name),
        )


@dataclass
class Live:
    """A server that runs, a client of it, and what stands behind it."""

    server: Server
    load: FakeLoader
    client: httpx.Client
    url: str

    @property
    def state(self):
        return self.server.state

    def post(self, route: str, body, **more) -> httpx.Response:
        return self.client.post(route, json=body, **more)

    def engine(self, name: str = "echo") -> FakeEngine:
        if name not in self.load.engines:
            self.post("/generate", {"model": name, "prompt": "red"}).raise_for_status()
        return self.load.engines[name]

    def begin_end(self):
        self.server.state.draining = True
        self.server._loop.call_soon_threadsafe(self.server.begin_end)

    def metric(self, name: str, **labels) -> float:
        return self.state.metrics.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def serving(settings: ServeSettings, load):
    hooks = []
    app = create_app(settings, load, on_dead=lambda: hooks[0].died(), on_unready=lambda: hooks[0].unready())
    server = make_server(app, settings)
    hooks.append(server)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        host, port = server.servers[0].sockets[0].getsockname()
        url = f"http://{host}:{port}"
        with httpx.Client(base_url=url, timeout=20) as client:
            yield Live(server, load, client, url)
    finally:
        for engine in getattr(load, "engines", {}).values():
            engine.go()
        if thread.is_alive():
            server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def until(holds, *, timeout_s: float = 10.0):
    """Waits until something holds."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.005)


def error_of(response: httpx.Response, status: int) -> dict:
    """The error in a response of this status; asserts the one shape."""
    assert response.status_code == status, (response.status_code, response.text)
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str)
    assert body["error"]["message"]
    return body["error"]


@pytest.fixture
def fake(vocabulary) -> FakeLoader:
    return FakeLoader(vocabulary)


@pytest.fixture
def serve(runs, fake):
    """Starts servers: serve(max_n=3, engine={"step_s": 0.1})."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(*, engine: dict | None = None, texts: dict | None = None, **flags) -> Live:
            fake.engine, fake.texts = engine or {}, texts or {}
            return stack.enter_context(serving(settings_of(runs, **flags), fake))

        yield start


@pytest.fixture(scope="module")
def live(tmp_path_factory, vocabulary):
    """One server for a module's tests that leave it as it is."""
    models = tmp_path_factory.mktemp("served") / "models"
    for name in ("echo", "other"):
        write_checkpoint(models / name / "checkpoint-best-ckpt")
    with serving(settings_of(models), FakeLoader(vocabulary)) as found:
        yield found
