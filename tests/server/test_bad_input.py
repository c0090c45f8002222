"""Bodies, names and connections that mean harm or are broken: 4xx in one shape, never 500, and the server lives on."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.server.conftest import error_of, until, write_checkpoint
from workflow.server.openai_schemas import CompletionBody
from workflow.server.ranking_schemas import GenerativeScoringBody, RerankBody
from workflow.server.schemas import GenerateBody, ScoreBody
from workflow.server.strict_json import parse
from workflow.server.tgi_schemas import TgiBody

ROUTES = ("/generate", "/generate_stream", "/score", "/generative_scoring", "/rerank", "/v1/completions", "/")
JSON = {"content-type": "application/json"}


def raw(live, body: bytes, route="/generate", **headers):
    return live.client.post(route, content=body, headers={**JSON, **headers})


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": -Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "a", "logit_bias": {"1": 1, "1": 2}}',
        b'{"prompt": "\xff"}',
        '{"prompt": "a"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"prompt": "a"}',
        b"",
        b" ",
        b"null",
        b"[]",
        b'"prompt"',
        b"5",
        b"{",
        b'{"prompt": "a"} x',
        b'{"prompt": "a\nb"}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
    ids=lambda body: repr(body[:40]),
)
def test_broken_bodies(live, route, body):
    error_of(raw(live, body, route), 400)


MILLION = 10**6
MANY = {
    "/generate": [
        b'{"prompts": [' + b",".join([b"1"] * (MILLION - 100)) + b"]}",
        b'{"prompt": "a", "stop": [' + b",".join([b"1"] * (MILLION - 100)) + b"]}",
        b'{"prompt": "a", "logit_bias": {' + b",".join(b'"%d":[]' % number for number in range(150_000)) + b"}}",
        b"{" + b",".join(b'"%d":1' % number for number in range(180_000)) + b"}",
        b'{"inputs": "a", "parameters": {"stop": [' + b",".join([b"1"] * (MILLION - 100)) + b"]}}",
    ],
    "/v1/completions": [
        b'{"model": "echo", "prompt": [' + b",".join([item] * (2_000_000 // (len(item) + 1))) + b"]}"
        for item in (b'""', b"[]", b"{}", b"null", b"[-1]")
    ],
    "/score": [
        b'{"inputs": [' + b",".join([b"[]"] * (MILLION // 2)) + b"]}",
        b'{"input": "a", "labels": [' + b",".join([b"1"] * (MILLION - 100)) + b"]}",
        b'{"input": {' + b",".join(b'"%d":[]' % number for number in range(150_000)) + b"}}",
    ],
    "/rerank": [b'{"query": "a", "documents": [' + b",".join([b"1"] * (MILLION - 100)) + b"]}"],
    "/generative_scoring": [
        b'{"query": "a", "items": [' + b",".join([b"[]"] * (MILLION // 2)) + b'], "label_token_ids": [1]}',
        b'{"query": "a", "items": ["b"], "label_token_ids": [' + b",".join([b"-1"] * (MILLION // 2)) + b"]}",
    ],
}


@pytest.mark.parametrize(
    ("route", "body"),
    [(route, body) for route, bodies in MANY.items() for body in bodies],
    ids=lambda given: given[:60],
)
def test_a_million_wrong_items_are_one_error(live, route, body):
    error_of(raw(live, body, route), 400)


def test_too_many_token_ids_are_not_even_looked_at(live):
    flat = b'{"model": "echo", "prompt": [' + b",".join([b"1"] * (MILLION - 100)) + b"]}"
    for body in (flat, flat.replace(b": [1", b": [[1").replace(b"1]}", b"1]]}")):
        assert error_of(raw(live, body, "/v1/completions"), 413)["code"] == "prompt_too_long"


def test_within_the_bounds_a_list_s_first_error_is_the_only_one():
    for model, body in (
        (GenerateBody, {"prompts": [1] * 100, "stop": [1] * 100}),
        (CompletionBody, {"model": "a", "prompt": [""] * 100, "stop": [1] * 100}),
        (CompletionBody, {"model": "a", "prompt": [[]] * 100}),
        (ScoreBody, {"inputs": [[]] * 100, "labels": [1] * 100}),
        (RerankBody, {"query": "a", "documents": [1] * 100}),
        (GenerativeScoringBody, {"query": [-1] * 100, "items": [[-1] * 100] * 100, "label_token_ids": [-1] * 100}),
        (TgiBody, {"inputs": "a", "parameters": {"stop": [1] * 100}}),
    ):
        with pytest.raises(ValidationError) as caught:
            model.model_validate(body)
        assert caught.value.error_count() < 10, model


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "x"]
)
def test_other_content_types(live, media_type):
    error_of(raw(live, b'{"model": "echo", "prompt": "red"}', **{"content-type": media_type}), 415)


def test_content_type_may_have_parameters(live):
    answer = raw(live, b'{"model": "echo", "prompt": "red"}', **{"content-type": "Application/JSON; charset=utf-8"})
    answer.raise_for_status()


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../models/echo",
        "/etc",
        "//etc/passwd",
        "echo/../echo",
        "echo/checkpoint-best-ckpt",
        "..%2fmodels%2fecho",
        "%2e%2e",
        "echo\\..",
        "echo\0",
        ".hidden",
        "",
        " echo",
        "e" * 5000,
        "\U0001f600",
        "link",
        "linked_inside",
        "linked_weights",
        "nowhere",
    ],
)
def test_model_names_lead_nowhere_else(live, tmp_path, name):
    models = live.state.settings.folder
    outside = write_checkpoint(tmp_path / "outside")
    for link, target in (("link", outside), ("linked_inside", models / "..")):
        if not (models / link).is_symlink():
            (models / link).symlink_to(target)
    inside = write_checkpoint(models / "linked_weights")
    (inside / "model.safetensors").unlink()
    (inside / "model.safetensors").symlink_to(outside / "model.safetensors")
    write_checkpoint(models / ".hidden")
    for route, body in (
        ("/generate", {"prompt": "red"}),
        ("/score", {"input": "red"}),
        ("/v1/completions", {"prompt": "red"}),
    ):
        assert error_of(live.post(route, {"model": name, **body}), 404)["code"] == "model_not_found"
    assert not {name, "link", "linked_weights", ".hidden"} & {
        row["id"] for row in live.client.get("/v1/models").json()["data"]
    }


@pytest.mark.parametrize("path", ["..%2f..%2fetc", "%2e%2e", "nowhere", "a%00b", "%ff", "..%5c"])
def test_model_names_in_paths_lead_nowhere_else(live, path):
    error_of(live.client.get(f"/v1/models/{path}"), 404)


def test_unknown_routes_and_methods(live):
    error_of(live.client.get("/nowhere"), 404)
    error_of(live.client.get("/generate"), 405)
    error_of(live.client.put("/score", json={}), 405)
    error_of(live.client.post("/generate/", json={}), 404)


def test_names_of_fields_and_models_come_back_as_text(live):
    error = error_of(live.post("/generate", {"model": "echo", "prompt": "a", "\u2028</script>": 1}), 400)
    assert "unknown field" in error["message"]
    assert error_of(live.post("/generate", {"model": "\u202e", "prompt": "a"}), 404)["message"].isascii()


# ---- bodies and connections


def connect(live) -> socket.socket:
    host, port = live.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def head(length: int, route="/generate", more="") -> bytes:
    return f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{more}Content-Length: {length}\r\n\r\n".encode()


def answer_of(connection: socket.socket) -> tuple[int, dict]:
    """Status and body of the answer, after which the server closes."""
    received = b""
    while part := connection.recv(65536):
        received += part
    top, _, body = received.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(body)


def test_a_body_too_long_is_refused_by_its_length(serve):
    live = serve(max_body_bytes=1000)
    with connect(live) as connection:
        connection.sendall(head(10**12))
        status, body = answer_of(connection)
    assert (status, body["error"]["code"]) == (413, "body_too_large")


def test_a_body_too_long_is_refused_while_it_comes(serve):
    live = serve(max_body_bytes=1000)

    def parts():
        for _ in range(3000):
            yield b" " * 10_000

    error = error_of(live.client.post("/generate", content=parts(), headers=JSON), 413)
    assert error["code"] == "body_too_large"
    live.post("/generate", {"model": "echo", "prompt": "red"}).raise_for_status()


def test_half_a_body_is_given_up(serve):
    live = serve(body_timeout_s=0.3)
    with connect(live) as connection:
        connection.sendall(head(100) + b'{"prompt": ')
        status, body = answer_of(connection)
    assert (status, body["error"]["code"]) == (408, "body_timeout")


def test_a_byte_at_a_time_is_given_up(serve):
    live = serve(body_timeout_s=0.3)
    with connect(live) as connection:
        connection.sendall(head(1000))
        for _ in range(8):
            connection.sendall(b" ")
            time.sleep(0.06)
        assert answer_of(connection)[0] == 408


@pytest.mark.parametrize("start", [b"", b"POST /generate HT", b"POST /generate HTTP/1.1\r\nHost: x\r\nX: "])
def test_half_a_head_is_given_up(serve, start):
    live = serve(body_timeout_s=0.3)
    with connect(live) as connection:
        connection.sendall(start)
        status, body = answer_of(connection)
    assert (status, body["error"]["code"]) == (408, "body_timeout")


def test_half_a_second_head_is_given_up(serve):
    live = serve(body_timeout_s=0.3)
    with connect(live) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while b'"ok"}' not in received:
            received += connection.recv(65536)
        connection.sendall(b"GET /hea")
        assert b"408" in connection.recv(65536).split(b"\r\n")[0]


def test_slow_answers_are_no_slow_heads(serve):
    live = serve(body_timeout_s=0.2, engine={"step_s": 0.3})
    with connect(live) as connection:
        body = b'{"model": "echo", "prompt": "red green"}'
        connection.sendall(head(len(body), more="Connection: close\r\n") + body)
        assert answer_of(connection)[0] == 200


@pytest.mark.parametrize("num_requests", [1, 200])
def test_clients_that_do_not_read_are_cut_off(serve, num_requests):
    live = serve(write_timeout_s=0.3)
    page = live.client.get("/openapi.json").content
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n"
    last = asked.replace(b"keep-alive", b"close")
    host, port = live.url.removeprefix("http://").split(":")
    connections = live.server.server_state.connections
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect((host, int(port)))
        until(lambda: len(connections) == 2)
        connection.sendall(asked * (num_requests - 1) + last)
        time.sleep(0.1)
        until(lambda: len(connections) == 1)
        assert live.state.num_open == 0
    assert live.client.get("/openapi.json").content == page


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00" + b"\0" * 50 + b"\r\n\r\n", b"G@T\r\n\r\n"])
def test_what_is_not_http(live, garbage):
    with connect(live) as connection:
        connection.sendall(garbage)
        status, body = answer_of(connection)
    assert status == 400
    assert set(body["error"]) == {"message", "type", "param", "code"}


def test_too_large_heads(live):
    with connect(live) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nX: " + b"a" * 200_000)
        assert answer_of(connection)[0] == 400


def test_connections_are_limited(serve):
    live = serve(max_connections=5)
    held = [connect(live) for _ in range(5)]
    try:
        time.sleep(0.1)
        with connect(live) as connection:
            assert answer_of(connection)[0] == 503
    finally:
        for connection in held:
            connection.close()
    time.sleep(0.1)
    assert live.client.get("/health").status_code == 200


# ---- the parser by itself

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
@settings(deadline=None, max_examples=100)
def test_good_json_is_read_as_written(value):
    for ascii_only in (True, False):
        assert parse(json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")) == value


@given(st.binary())
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_a_value_or_a_value_error(body):
    with suppress(ValueError):
        json.dumps(parse(body), ensure_ascii=False, allow_nan=False).encode()
