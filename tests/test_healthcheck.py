"""The image's HEALTHCHECK finds the server wherever it listens, and takes nothing else for it."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT

SERVER = """
import http.server, socket, sys
code, host = int(sys.argv[2]), sys.argv[3]

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(code if self.path == "/health" else 404)
        self.end_headers()

class Server(http.server.HTTPServer):
    address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

server = Server((host, 0), Handler)
print(server.server_port, flush=True)
if code:
    server.serve_forever()
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def healthcheck():
    spec = importlib.util.spec_from_file_location("healthcheck", ROOT / "container/healthcheck.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def serving(tmp_path, code, host="127.0.0.1", command="serve"):
    """A process that looks like the server's, and answers with this code; never, where that is 0."""
    program = tmp_path / "workflow"
    program.write_text(SERVER)
    process = subprocess.Popen(
        [sys.executable, program, command, str(code), host], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline().strip()
        yield Path(f"/proc/{process.pid}")
    finally:
        process.kill()
        process.communicate()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("code", "host", "healthy"),
    [
        (200, "127.0.0.1", True),
        (200, "0.0.0.0", True),
        pytest.param(200, "::", True, marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
        (401, "127.0.0.1", True),  # --protect_all
        (503, "127.0.0.1", False),
        (0, "127.0.0.1", False),
    ],
)
def test_a_server(healthcheck, tmp_path, monkeypatch, code, host, healthy):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(healthcheck, "TIMEOUT_S", 5.0 if code else 0.2)
    with serving(tmp_path, code, host) as process:
        assert healthcheck.check([process]) == (0 if healthy else 1)


def test_a_server_that_does_not_listen_yet(healthcheck, tmp_path, monkeypatch):
    with serving(tmp_path, 200) as process:
        monkeypatch.setattr(healthcheck, "places_of", lambda _: [])
        assert healthcheck.check([process]) == 1


def test_anything_else_is_healthy(healthcheck, tmp_path):
    with serving(tmp_path, 503, command="generate") as process:
        assert healthcheck.check([process, Path("/proc/0")]) == 0


def test_addresses(healthcheck):
    if sys.byteorder != "little":
        pytest.skip("the texts are of a little-endian machine")
    assert healthcheck.place_of("0100007F:1F40") == "127.0.0.1:8000"
    assert healthcheck.place_of("00000000:1F40") == "127.0.0.1:8000"
    assert healthcheck.place_of("0500A8C0:0050") == "192.168.0.5:80"
    assert healthcheck.place_of("00000000000000000000000001000000:1F40") == "[::1]:8000"
