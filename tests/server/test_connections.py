"""Connections: how long they stay, how many there may be, and clients that stop sending before they are answered."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import re
import resource
import socket

import pytest

from tests.server.conftest import settings_of, until
from workflow.server import open_files
from workflow.server.main import make_server
from workflow.server.open_files import QuietAccept, backlog, max_connections, raise_open_file_limit

ASKED = {"model": "echo", "prompt": "red green"}


def raw(live) -> socket.socket:
    host, port = live.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def request(route="/generate", body=None, *, version="1.1", more="") -> bytes:
    content = json.dumps(ASKED if body is None else body).encode()
    head = f"POST {route} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return f"{head}{more}\r\n".encode() + content


def read_all(connection) -> bytes:
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("route", ["/generate", "/generate_stream", "/score", "/health", "/nowhere"])
def test_who_only_stops_sending_is_answered(live, route, version):
    body = {"model": "echo", "input": "red"} if route == "/score" else ASKED
    with raw(live) as connection:
        connection.sendall(
            f"GET {route} HTTP/{version}\r\nHost: x\r\n\r\n".encode()
            if route == "/health"
            else request(route, body, version=version)
        )
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 404" if route == "/nowhere" else b"HTTP/1.1 200 OK\r\n")
    assert answer.count(b"HTTP/1.1") == 1
    if route == "/generate":
        assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["generations"][0]["text"] == "red green"


@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
def test_who_stops_sending_long_before_the_answer_is_answered(serve, route):
    live = serve()
    engine = live.engine()
    engine.hold()
    with raw(live) as connection:
        connection.sendall(request(route))
        until(lambda: len(engine.submitted) == 2)
        connection.shutdown(socket.SHUT_WR)
        until(lambda: any(protocol._half_closed for protocol in live.server.server_state.connections))
        engine.go()
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"green" in answer
    assert not engine.cancelled
    until(lambda: not [protocol for protocol in live.server.server_state.connections if protocol._half_closed])


def test_who_sends_two_requests_and_stops_is_answered_twice(live):
    with raw(live) as connection:
        connection.sendall(request() + request())
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection).count(b"HTTP/1.1 200 OK") == 2


def test_who_stops_sending_and_then_goes_away_is_noticed(serve):
    live = serve()
    engine = live.engine()
    engine.endless, engine.step_s = True, 0.01
    with raw(live) as connection:
        connection.sendall(request(body={**ASKED, "max_new_tokens": 900}))
        until(lambda: len(engine.submitted) == 2)
        connection.shutdown(socket.SHUT_WR)
        until(lambda: any(protocol._half_closed for protocol in live.server.server_state.connections))
        assert not engine.cancelled
    until(lambda: engine.cancelled)
    until(lambda: live.state.num_open == 0)


def test_half_a_request_is_not_answered(live):
    with raw(live) as connection:
        connection.sendall(request()[:-3])
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""


def test_connections_stay_longer_than_proxies_keep_them(runs, serve, fake):
    assert settings_of(runs).server.keep_alive_s > 75
    live = serve(keep_alive_s=100)
    assert live.server.config.timeout_keep_alive == 100


def answer_of(connection) -> bytes:
    """One whole response, whose connection stays."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += connection.recv(65536)
    head, _, body = found.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head)[1])
    while len(body) < length:
        body += connection.recv(65536)
    return head + body


def test_an_idle_connection_makes_room_for_a_new_one(serve):
    live = serve(max_connections=3)
    idle = [raw(live) for _ in range(2)]
    try:
        for connection in idle:
            connection.sendall(request())
            assert b"200 OK" in answer_of(connection)
        live.client.get("/health").raise_for_status()  # the third
        with raw(live) as another:
            another.sendall(request())
            assert b"200 OK" in answer_of(another)
        assert idle[0].recv(10) == b"", "the one that was idle for longest is closed"
        idle[1].sendall(request())
        assert b"200 OK" in answer_of(idle[1])
    finally:
        for connection in idle:
            connection.close()


def test_busy_connections_are_not_closed_for_new_ones(serve):
    live = serve(max_connections=1)
    with raw(live) as busy:
        busy.sendall(request()[:-3])
        until(lambda: len(live.server.server_state.connections) == 1)
        with raw(live) as refused:
            assert refused.recv(65536).startswith(b"HTTP/1.1 503")
        busy.sendall(request()[-3:])
        assert b"200 OK" in answer_of(busy)


# ---- open files


def test_the_limit_of_open_files_is_raised():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] - 1, before[1]))
        raise_open_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("open_files", [64, 256, 1024, 4096, 1 << 20])
def test_connections_leave_room_for_files(open_files):
    taken = max_connections(1024, open_files)
    assert 1 <= taken <= 1024
    assert taken + backlog(taken, open_files) < open_files
    assert taken == 1024 or taken >= open_files // 2


def test_few_open_files_mean_few_connections(live, monkeypatch, caplog):
    monkeypatch.setattr("workflow.server.main.open_file_limit", lambda: 512)
    logger = logging.getLogger("workflow.server")
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.WARNING, "workflow.server"):
        server = make_server(live.server.config.app, live.state.settings)
    assert server.config.http.max_connections == 256
    assert "ulimit" in caplog.text


def test_a_storm_of_connections_is_one_line(caplog, monkeypatch):
    logger = logging.getLogger("workflow.server")
    monkeypatch.setattr(logger, "propagate", True)
    loop, others = asyncio.new_event_loop(), []
    monkeypatch.setattr(loop, "default_exception_handler", others.append)
    handler = QuietAccept()
    context = {
        "message": "socket.accept() out of system resource",
        "exception": OSError(errno.EMFILE, "Too many open files"),
    }
    with caplog.at_level(logging.ERROR, "workflow.server"):
        for _ in range(1000):
            handler(loop, context)
        handler(loop, {"message": "another", "exception": OSError(errno.EMFILE, "elsewhere")})
    loop.close()
    assert len(caplog.records) == 1
    assert "ulimit" in caplog.text
    assert [found["message"] for found in others] == ["another"]
    assert open_files.TELL_S >= 60


def test_the_server_hears_storms(live):
    assert isinstance(live.server._loop.get_exception_handler(), QuietAccept)
