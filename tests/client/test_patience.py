"""What both clients try again, and for how long; and what a server, or what stands before it, may say meanwhile."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from tests.server.conftest import until
from workflow.client import Busy, ClientError, NoAnswer, answers


def test_a_full_queue_is_waited_for(connect, serve):
    live = serve(max_requests=1)
    engine = live.engine()
    engine.hold()
    other = threading.Thread(target=live.post, args=("/generate", {"model": "echo", "prompt": "red"}))
    other.start()
    queue = live.state.registry.lanes["echo"].queue
    until(lambda: queue.num_requests == 1)
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        engine.go()
        until(lambda: queue.num_requests == 0)

    client = connect(live.url)
    client.sleep_by(sleep)
    assert client.generate("red green", model="echo").text == "red green"
    assert 1 <= waits[0] <= 31 * 1.25
    assert len(waits) == 1
    other.join()


def test_patience_has_an_end(connect, serve):
    live = serve(max_requests=1, grace_s=5)
    engine = live.engine()
    engine.hold()
    other = threading.Thread(target=live.post, args=("/generate", {"model": "echo", "prompt": "red"}))
    other.start()
    until(lambda: live.state.registry.lanes["echo"].queue.num_requests == 1)
    client, waits = connect(live.url, max_retries=3), []
    client.sleep_by(waits.append)
    with pytest.raises(Busy) as caught:
        list(client.generate_stream("red", model="echo"))
    assert (caught.value.status, caught.value.code, len(waits)) == (429, "queue_full", 3)
    assert caught.value.retry_after_s >= 1
    live.begin_end()
    until(lambda: not client.ready().ok)
    with pytest.raises(Busy) as caught:
        client.generate("red", model="echo")
    assert (caught.value.status, caught.value.code, len(waits)) == (503, "draining", 6)
    engine.go()
    other.join()


def scripted(*responses):
    """A transport that answers in turn; and how often it was asked."""
    asked = []

    def answer(request):
        asked.append(request)
        return responses[min(len(asked), len(responses)) - 1]

    return httpx.MockTransport(answer), asked


GOOD = {"data": [{"id": "a", "created": 1}]}


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("2", 2, 2.5),
        (None, 0.5, 0.625),
        ("soon", 0.5, 0.625),
        ("nan", 0.5, 0.625),
        ("-3", 0, 0),
        ("in 40 s", 30, 50),
    ],
)
def test_what_retry_after_says(connect, header, least, most):
    if header == "in 40 s":
        header = format_datetime(datetime.now(UTC) + timedelta(seconds=40))
    headers = {} if header is None else {"retry-after": header}
    transport, asked = scripted(httpx.Response(503, headers=headers, text="busy"), httpx.Response(200, json=GOOD))
    client, waits = connect("http://server", transport=transport), []
    client.sleep_by(waits.append)
    assert client.models() == [answers.Model("a", 1)]
    assert len(asked) == 2
    assert least <= waits[0] <= most


def test_a_wait_that_is_too_long_is_not_begun(connect):
    transport, asked = scripted(httpx.Response(429, headers={"retry-after": "3600"}))
    client, waits = connect("http://server", transport=transport), []
    client.sleep_by(waits.append)
    with pytest.raises(Busy):
        client.models()
    assert (len(asked), waits) == (1, [])


@pytest.mark.parametrize("status", [307, 400, 401, 404, 408, 500, 502, 504])
def test_nothing_else_is_tried_again(connect, status):
    transport, asked = scripted(httpx.Response(status, headers={"retry-after": "0"}, text="<html>a gateway\n speaks"))
    with pytest.raises(ClientError, match=f"HTTP {status}: <html>a gateway speaks"):
        connect("http://server", transport=transport).models()
    assert len(asked) == 1


def event(text, **more):
    return (
        "data: "
        + json.dumps({"index": 1, "token": {"id": 1, "text": text, "logprob": 0.0}, **more}, ensure_ascii=False)
        + "\n\n"
    )


END = {"details": {"finish_reason": "length", "generated_tokens": 2, "input_length": 1, "seed": 1}}


def test_a_stream_that_has_begun_is_not_tried_again(connect):
    transport, asked = scripted(httpx.Response(200, text=event("a")))
    stream = connect("http://server", transport=transport).generate_stream("x")
    assert next(stream).text == "a"
    with pytest.raises(NoAnswer, match="broke off"):
        next(stream)
    assert len(asked) == 1
    busy = 'data: {"error": {"message": "going", "type": "unavailable_error", "param": null, "code": "draining"}}\n\n'
    transport, asked = scripted(httpx.Response(200, text=event("a") + busy))
    with pytest.raises(Busy, match="going"):
        list(connect("http://server", transport=transport).generate_stream("x"))
    assert len(asked) == 1


def test_line_ends_within_a_text_end_no_event(connect):
    texts = ["one\u2028two", "three\x85four", "five\x0csix"]
    content = "".join(map(event, texts)) + ": a comment\n\n" + event("", **END) + "data: [DONE]\n\n"
    transport, _ = scripted(httpx.Response(200, text=content))
    pieces = list(connect("http://server", transport=transport).generate_stream("x"))
    assert [piece.text for piece in pieces] == [*texts, ""]
    assert pieces[-1].finish_reason == "length"


@pytest.mark.parametrize("content", ["no json", "[]", '{"data": 3}'])
def test_answers_of_something_else(connect, content):
    transport, _ = scripted(httpx.Response(200, text=content))
    with pytest.raises(NoAnswer, match="not one of this server's"):
        connect("http://server", transport=transport).models()
