"""What is refused at the door while a run's queue is full, and what must come in all the same."""

from __future__ import annotations

import json
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.server.conftest import error_of, until
from workflow.server.heads import Plain, Reading, read_plain

BODIES = {
    "/generate": {"model": "echo", "prompt": "red"},
    "/generate_stream": {"model": "echo", "prompt": "red"},
    "/": {"model": "echo", "inputs": "red"},
    "/score": {"model": "echo", "input": "red"},
    **{
        route: {"model": "echo", "query": "red", "documents": ["green"]}
        for route in ("/rerank", "/v1/rerank", "/v2/rerank")
    },
    "/generative_scoring": {"model": "echo", "query": "red", "items": ["green"], "label_token_ids": [4, 5]},
    "/v1/completions": {"model": "echo", "prompt": "red"},
}


def raw(path, body, *lines):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        *lines,
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n", data


@contextmanager
def connected(live):
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        yield connection


def answer(connection):
    """Status, headers and body of the next response."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(1)
        assert piece, data
        data += piece
    first, *lines = data.decode().strip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = b""
    while len(body) < int(headers["content-length"]):
        body += connection.recv(int(headers["content-length"]) - len(body))
    return int(first.split()[1]), headers, json.loads(body)


@pytest.fixture
def full(serve):
    """Starts a server whose run `echo` has no place left; `answered_at_door` are the paths refused there."""
    with ThreadPoolExecutor(4) as pool:
        starting = []

        def start(*, headers=None, **flags):
            live = serve(max_requests=1, **flags)
            live.client.headers.update(headers or {})
            live.engine().hold()
            starting.append((live, pool.submit(live.post, "/generate", {"model": "echo", "prompt": "red"})))
            until(lambda: live.state.registry.lanes["echo"].queue.full())
            door = live.server.config.app.state.door
            live.answered_at_door = []

            def watched(asked, more, really=door.answer):
                found = really(asked, more)
                if found is not None:
                    live.answered_at_door.append(asked.path)
                return found

            door.answer = watched
            return live

        yield start
        for live, first in starting:
            live.engine().go()
            assert first.result().status_code == 200


def test_every_queued_route_refuses_at_the_door_as_it_would_inside(full):
    live = full()
    with connected(live) as connection:
        for path, body in BODIES.items():
            connection.sendall(b"".join(raw(path, body, "X-Request-Id: mine")))
            status, headers, told = answer(connection)
            assert live.answered_at_door.pop() == path
            connection.sendall(b"".join(raw(f"{path}?x=1", body, "X-Request-Id: mine")))  # the common way
            inside = answer(connection)
            assert not live.answered_at_door
            headers.pop("date"), inside[1].pop("date")
            assert (status, headers, told) == inside
            assert (status, told["error"]["code"], headers["x-request-id"]) == (429, "queue_full", "mine")
            assert int(headers["retry-after"]) >= 1


def test_refusals_at_the_door_are_counted_and_logged(full, caplog):
    caplog.set_level(logging.INFO, "workflow.server")
    live = full()
    error_of(live.post("/score", BODIES["/score"], headers={"x-request-id": "counted"}), 429)
    assert live.answered_at_door == ["/score"]
    assert live.metric("workflow:http_responses_total", route="/score", status="429") == 1
    assert live.metric("vllm:request_success_total", model_name="echo", finished_reason="error") == 1
    (line,) = [record for record in caplog.records if getattr(record, "request_id", "") == "counted"]
    assert (line.method, line.route, line.status, line.model) == ("POST", "/score", 429, "echo")


def test_each_refusal_has_an_id_of_its_own(full):
    live = full()
    given = [live.post("/generate", BODIES["/generate"]).headers["x-request-id"] for _ in range(2)]
    bad = live.post("/generate", BODIES["/generate"], headers={"x-request-id": "a b"}).headers["x-request-id"]
    assert len({*given, bad, "a b"}) == 4
    assert len(live.answered_at_door) == 3


def test_without_a_key_nothing_is_told_of_the_load(full, tmp_path):
    (tmp_path / "keys").write_text("secret\n")
    live = full(api_key_file=str(tmp_path / "keys"), headers={"authorization": "Bearer secret"})
    for wrong in ({"authorization": ""}, {"authorization": "Bearer other"}, {"authorization": "Basic secret"}):
        response = live.post("/generate", BODIES["/generate"], headers=wrong)
        assert error_of(response, 401)["code"] == "invalid_api_key"
        assert "retry-after" not in response.headers
    assert not live.answered_at_door
    error_of(live.post("/generate", BODIES["/generate"]), 429)
    assert live.answered_at_door == ["/generate"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/generate", {"model": "nowhere", "prompt": "red"}, 404, "model_not_found"),
        ("/generate", {"model": 3, "prompt": "red"}, 400, "invalid_request"),
        ("/generate", {"prompt": "red"}, 400, "model_required"),
        ("/generate", b'{"model": "echo", "prompt": NaN}', 400, "invalid_json"),
        ("/generate", b'{"model": "echo", "model": "echo", "prompt": "red"}', 400, "invalid_json"),
        ("/generate", b"", 400, "invalid_request"),
        ("/generate", b"[]", 400, "invalid_request"),
        ("/nowhere", {"model": "echo", "prompt": "red"}, 404, "not_found"),
        ("/health", {}, 405, "method_not_allowed"),
        ("/v1/models", {}, 405, "method_not_allowed"),
    ],
)
def test_other_refusals_stay_what_they_are(full, path, body, status, code):
    live = full()
    with connected(live) as connection:
        connection.sendall(b"".join(raw(path, body)))
        found, _, told = answer(connection)
    assert (found, told["error"]["code"]) == (status, code)
    assert not live.answered_at_door


def test_a_body_that_is_said_to_be_something_else(full):
    live = full()
    response = live.client.post("/generate", content=b'{"model": "echo"}', headers={"content-type": "text/plain"})
    error_of(response, 415)
    assert not live.answered_at_door


def test_a_small_limit_of_bodies_holds_at_the_door(full):
    live = full(max_body_bytes=200)
    error_of(live.post("/generate", {"model": "echo", "prompt": "red " * 60}), 413)
    error_of(live.post("/generate", {"model": "echo", "prompt": "red"}), 429)
    assert live.answered_at_door == ["/generate"]


def test_another_run_has_room(full):
    live = full()
    live.post("/generate", {"model": "other", "prompt": "red"}).raise_for_status()
    assert not live.answered_at_door


def test_a_default_run_is_known_at_the_door(full):
    live = full(default_model="echo")
    error_of(live.post("/generate", {"prompt": "red"}), 429)
    assert live.answered_at_door == ["/generate"]


def test_the_only_run_is_known_at_the_door(full, runs):
    for file in (runs / "other" / "checkpoint-best-ckpt").iterdir():
        file.unlink()
    live = full()
    for _ in range(2):  # the first one looks which runs there are
        error_of(live.post("/generate", {"prompt": "red"}), 429)
    assert live.answered_at_door == ["/generate"]


def test_what_reads_and_asks_is_not_affected(full):
    live = full()
    assert live.client.get("/health").json() == {"status": "ok"}
    assert live.client.get("/ready").status_code == 200
    assert 'status="200"' in live.client.get("/metrics").text
    assert live.client.get("/").status_code == 200
    assert live.client.head("/generate").status_code == 405
    assert live.client.get("/generate").status_code == 405
    assert live.client.options("/generate").status_code == 405
    assert not live.answered_at_door


def test_pages_of_other_origins_may_read_their_refusal(full):
    live = full(cors_origins=["https://page.example"])
    response = live.post("/generate", BODIES["/generate"], headers={"origin": "https://page.example"})
    error_of(response, 429)
    assert response.headers["access-control-allow-origin"] == "https://page.example"


def test_a_draining_server_says_so(full):
    live = full()
    live.begin_end()
    assert error_of(live.post("/generate", BODIES["/generate"]), 503)["code"] == "draining"
    assert not live.answered_at_door


def test_logged_prompts_are_logged_of_refused_requests_too(full, caplog):
    caplog.set_level(logging.INFO, "workflow.server")
    live = full(log_prompts=True)
    error_of(live.post("/generate", BODIES["/generate"], headers={"x-request-id": "read"}), 429)

    def lines():  # written once the answer has been sent
        return [record for record in caplog.records if getattr(record, "request_id", "") == "read"]

    until(lines)
    assert [line.prompts for line in lines()] == [["red"]]
    assert not live.answered_at_door


def test_a_connection_goes_on_after_refusals(full):
    live = full()
    head, body = raw("/generate", BODIES["/generate"])
    with connected(live) as connection:
        for _ in range(3):
            connection.sendall(head + body)
            assert answer(connection)[0] == 429
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer(connection)[0] == 200
        live.engine().go()
        until(lambda: not live.state.registry.lanes["echo"].queue.num_requests)
        connection.sendall(head + body)
        assert answer(connection)[0] == 200
    assert len(live.answered_at_door) == 3


def test_the_connection_is_closed_where_the_client_wants_it(full):
    live = full()
    before = len(live.server.server_state.connections)
    with connected(live) as connection:
        connection.sendall(b"".join(raw("/generate", BODIES["/generate"], "Connection: close")))
        status, headers, _ = answer(connection)
        assert (status, headers["connection"]) == (429, "close")
        assert connection.recv(1) == b""
    assert live.answered_at_door == ["/generate"]
    until(lambda: len(live.server.server_state.connections) == before)


def test_idle_connections_are_closed_after_a_refusal(full, monkeypatch):
    live = full()
    monkeypatch.setattr(live.server.config, "timeout_keep_alive", 0.2)
    with connected(live) as connection:
        connection.sendall(b"".join(raw("/generate", BODIES["/generate"])))
        assert answer(connection)[0] == 429
        assert connection.recv(1) == b""
    assert live.answered_at_door == ["/generate"]


@pytest.mark.parametrize("num_bytes", [1_000_000, 70_000])
def test_a_large_body_is_read_before_the_next_request(full, num_bytes):
    live = full()
    with connected(live) as connection:
        for path in ("/generate", "/score"):
            large = {"model": "echo", "prompt" if path == "/generate" else "input": "r" * num_bytes}
            connection.sendall(b"".join(raw(path, large)))
            assert answer(connection)[0] == 429
            connection.sendall(b"".join(raw(path, BODIES[path])))
            assert answer(connection)[0] == 429
    assert live.answered_at_door == ["/generate", "/score"]


def test_a_body_after_its_head(full):
    live = full()
    head, body = raw("/generate", BODIES["/generate"])
    with connected(live) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(head)
        time.sleep(0.01)
        connection.sendall(body[:7])
        time.sleep(0.01)
        connection.sendall(body[7:])
        assert answer(connection)[0] == 429
        connection.sendall(head[:20])  # half a head is nothing to wait for
        time.sleep(0.02)
        connection.sendall(head[20:] + body)
        assert answer(connection)[0] == 429
    assert live.answered_at_door == ["/generate"]


def test_a_slow_body_goes_the_common_way(full):
    live = full(body_timeout_s=0.5)
    head, body = raw("/generate", BODIES["/generate"])
    with connected(live) as connection:
        connection.sendall(head + body[:5])
        time.sleep(0.2)
        connection.sendall(body[5:])
        assert answer(connection)[0] == 429
        connection.sendall(head + body[:5])
        status, _, told = answer(connection)
        assert (status, told["error"]["code"]) == (408, "body_timeout")
    assert not live.answered_at_door


def test_room_that_comes_while_a_body_is_awaited(full):
    live = full()
    head, body = raw("/generate", BODIES["/generate"])
    lane = live.state.registry.lanes["echo"]
    with connected(live) as connection:
        connection.sendall(head)
        live.engine().go()
        until(lambda: not lane.queue.num_requests)
        connection.sendall(body)
        assert answer(connection)[0] == 200


def test_requests_sent_at_once_are_answered_in_order(full):
    live = full()
    head, body = raw("/generate", BODIES["/generate"])
    with connected(live) as connection:
        connection.sendall((head + body) * 3 + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [answer(connection)[0] for _ in range(4)] == [429, 429, 429, 200]


def test_clients_that_go_away_leave_nothing(full):
    live = full()
    head, _ = raw("/generate", BODIES["/generate"])
    before = len(live.server.server_state.connections)
    with connected(live) as connection:
        connection.sendall(head)
        until(lambda: len(live.server.server_state.connections) == before + 1)
    until(lambda: len(live.server.server_state.connections) == before)
    time.sleep(0.1)  # beyond the wait for the body
    error_of(live.post("/generate", BODIES["/generate"]), 429)


GOOD = b"".join(raw("/generate", b'{"model": "echo"}', "Connection: keep-alive", "X-Request-Id: a"))
SPOILERS = [
    b"\r\n",
    b"\n",
    b"\r",
    b":",
    b" ",
    b"\t",
    b"\0",
    b"\x80",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Connection: close\r\n",
    b"%20",
    b"?",
    b"0",
]


@given(st.lists(st.tuples(st.integers(0, len(GOOD)), st.integers(0, 12), st.sampled_from(SPOILERS)), max_size=3))
@example([])
@example([(6, 0, b"\n")])
@example([(6, 0, b"\0")])
def test_the_door_reads_requests_as_h11_does(changes):
    data = GOOD
    for place, cut, spoiler in changes:
        data = data[:place] + spoiler + data[place + cut :]
    found = read_plain(data)
    if isinstance(found, Plain):
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(data)
        request, *parts = [connection.next_event() for _ in range(3 if found.body else 2)]
        assert isinstance(request, h11.Request)
        assert (request.method, request.target, request.http_version) == (b"POST", found.path.encode(), b"1.1")
        assert dict(request.headers) == found.headers
        assert b"".join(bytes(part.data) for part in parts if isinstance(part, h11.Data)) == found.body
        assert isinstance(parts[-1], h11.EndOfMessage)
        assert connection.trailing_data == (b"", False)
        assert (connection.their_state is h11.MUST_CLOSE) == found.closes
    assert isinstance(found, Plain) or changes


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (GOOD[:-1], Reading.INCOMPLETE),
        (GOOD + b"P", Reading.NOT_PLAIN),
        (GOOD[:40], Reading.NOT_PLAIN),
        (GOOD.replace(b"POST", b"PUT"), Reading.NOT_PLAIN),
        (GOOD.replace(b"1.1", b"1.0"), Reading.NOT_PLAIN),
        (GOOD.replace(b"Host: x\r\n", b""), Reading.NOT_PLAIN),
        (GOOD.replace(b"keep-alive", b"upgrade"), Reading.NOT_PLAIN),
        (GOOD.replace(b"X-Request-Id: a", b"Expect: 100-continue"), Reading.NOT_PLAIN),
        (GOOD.replace(b"X-Request-Id", b"Content-Length"), Reading.NOT_PLAIN),
        (GOOD.replace(b"Length: 17", b"Length: 999999"), Reading.NOT_PLAIN),
        (GOOD.replace(b"Length: 17", b"Length: +17"), Reading.NOT_PLAIN),
    ],
)
def test_what_is_no_plain_request(data, found):
    assert read_plain(data) is found
