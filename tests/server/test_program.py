"""`workflow serve` as a process: signals, exit codes, memory, and an engine that dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT
from tests.server.conftest import error_of

pytestmark = pytest.mark.slow

ENDLESS = """
import time
from workflow.inference.engine import T5Engine
T5Engine.step = lambda engine: time.sleep(0.05) or True
from workflow.cli import main
main()
"""
DYING = """
import sys
from workflow.inference.engine import T5Engine

def step(self):
    if any(len(job.request.token_ids) > 20 for job in self._open.values()):
        raise RuntimeError("broken")
    return real(self)

real, T5Engine.step = T5Engine.step, step
from workflow.cli import main
main()
"""


@pytest.fixture
def models(tmp_path, flan_like):
    shutil.copytree(flan_like, tmp_path / "models" / "flan")
    return tmp_path / "models"


@contextmanager
def program(models, *flags, code: str | None = None):
    """The process and a client of it."""
    start = ["-c", code] if code else ["-m", "workflow"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORKFLOW_SERVE_PORT": "0"}
    log = models.parent / "serve.log"  # no pipe: a full one that nobody reads would block the server
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, *start, "serve", "--models", str(models), "--device", "cpu", *flags],
            stderr=stderr,
            env=environment,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port_of(process, log)}", timeout=60) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()


def port_of(process, log) -> int:
    """The port that the server says in its log, once it does."""
    while process.poll() is None:
        for line in log.read_text().splitlines(keepends=True):
            if line.endswith("\n") and "port" in (said := json.loads(line)):
                return said["port"]
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def ask(client, **more):
    return client.post("/generate", json={"model": "flan", "prompt": "reverse red", "max_new_tokens": 30, **more})


def test_sigterm_drains_and_exits_with_0(models):
    with program(models, "--preload", "flan", "--grace_s", "30") as (process, client), ThreadPoolExecutor(8) as pool:
        while client.get("/ready").status_code != 200:
            time.sleep(0.05)
        ask(client).raise_for_status()
        accepted = [pool.submit(ask, client, max_new_tokens=200, min_new_tokens=200, n=8) for _ in range(6)]
        while client.get("/info").json()["models"][0]["requests"] < 6:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        while client.get("/ready").status_code == 200:
            time.sleep(0.01)
        assert error_of(ask(client), 503)["code"] == "draining"
        assert {future.result().status_code for future in accepted} == {200}
        assert process.wait(10) == 0


NOISY = """
import sys, threading, warnings
from workflow.server import app

def noisy(*args, **more):
    warnings.warn("a library warns\\nin two lines")
    print("a library prints", file=sys.stderr)
    threading.Thread(target=lambda: 1 / 0).start()
    return real(*args, **more)

real, app.Registry.preload = app.Registry.preload, noisy
from workflow.cli import main
main()
"""


def test_sighup_drains_and_the_log_is_json_whoever_writes(models):
    with program(models, code=NOISY) as (process, client):
        assert client.get("/health").status_code == 200
        client.get("/info").raise_for_status()
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0
    lines = [json.loads(line) for line in (models.parent / "serve.log").read_text().splitlines()]
    messages = " ".join(line["message"] for line in lines)
    for part in ("a library warns\nin two lines", "a library prints", "nobody caught", "signal 1: draining", "request"):
        assert part in messages, part
    assert "ZeroDivisionError" in " ".join(line.get("exception", "") for line in lines)


def test_ctrl_c_drains_and_a_second_one_ends_at_once(models):
    with (
        program(models, "--grace_s", "1000", "--timeout_s", "900", code=ENDLESS) as (process, client),
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(ask, client)
        while client.get("/info").json()["models"][0]["requests"] < 1:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        while client.get("/ready").status_code == 200:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert isinstance(asked.exception(), httpx.TransportError)


def test_a_dead_engine_ends_the_process_with_1(models):
    with program(models, code=DYING) as (process, client):
        ask(client).raise_for_status()
        assert error_of(ask(client, prompt="red " * 40), 500)["code"] == "engine_dead"
        assert client.get("/health").status_code == 503
        assert process.wait(15) == 1


def test_what_cannot_be_preloaded_ends_the_process_with_2(models):
    (models / "flan" / "config.json").write_text('{"model_type": "nothing"}')
    with program(models, "--preload", "flan") as (process, _):
        assert process.wait(30) == 2


def test_a_taken_port_is_told(models):
    with program(models) as (_, client):
        port = str(client.base_url.port)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "WORKFLOW_SERVE_PORT": port}
        done = subprocess.run(
            [sys.executable, "-m", "workflow", "serve", "--models", str(models)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
            check=False,
        )
        assert done.returncode not in (0, None)
        assert "in use" in done.stderr


def resident_kb(process) -> int:
    with Path(f"/proc/{process.pid}/status").open() as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def test_memory_stays_flat_under_bad_input(models):
    json_type = {"content-type": "application/json"}
    bad = [
        b" " * 30_000_000,
        b"[" * 1_000_000,
        b'{"prompt": "' + b"a" * 1_900_000 + b'", "x": 1}',
        json.dumps({"model": "flan", "prompt": "red " * 400_000}).encode(),
        json.dumps({"model": "../" * 10_000, "prompt": "red"}).encode(),
        json.dumps({"model": "flan", "prompts": ["a"] * 100_000}).encode(),
        json.dumps({f"x{number}": 1 for number in range(50_000)}).encode(),
        json.dumps({"model": "flan", "input": "red", "labels": ["no"] * 100_000}).encode(),
    ]
    with program(models) as (process, client):
        ask(client).raise_for_status()

        def one_round():
            for body in bad:
                for route in ("/generate", "/score", "/v1/completions"):
                    assert 400 <= client.post(route, content=body, headers=json_type).status_code < 500

        sizes = []
        while len(sizes) < 4 or sizes[-1] - sizes[-4] > 20_000:  # the first rounds fill the allocator's arenas
            assert len(sizes) < 15, f"grows without end (kB): {sizes}"
            one_round()
            sizes.append(resident_kb(process))
        ask(client).raise_for_status()
