"""Under load: full queues, deadlines, clients that go away, requests that fail, engines that die, servers that drain."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.conftest import error_of, until

LONG = " ".join(["red"] * 40)


def later(pool, live, body, route="/generate"):
    """A request under way."""
    return pool.submit(live.client.post, route, json=body)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(32) as threads:
        yield threads


def queue_of(live):
    return live.state.registry.lanes["echo"].queue


def test_a_full_queue_refuses_at_once(serve, pool):
    live = serve(max_requests=3)
    engine = live.engine()
    engine.hold()
    accepted = [later(pool, live, {"model": "echo", "prompt": "red"}) for _ in range(3)]
    until(lambda: queue_of(live).num_requests == 3)
    response = live.post("/generate", {"model": "echo", "prompt": "red"})  # while the engine answers nothing
    assert error_of(response, 429)["code"] == "queue_full"
    assert int(response.headers["retry-after"]) >= 1
    live.post("/generate", {"model": "other", "prompt": "red"}).raise_for_status()  # each run has a queue of its own
    engine.go()
    assert [future.result().status_code for future in accepted] == [200] * 3
    until(lambda: queue_of(live).num_requests == 0)
    assert queue_of(live).num_tokens == 0


def test_queued_tokens_are_limited(serve, pool):
    live = serve(max_queued_tokens=100)
    live.engine().hold()
    accepted = later(pool, live, {"model": "echo", "prompt": "red", "max_new_tokens": 90})
    until(lambda: queue_of(live).num_requests == 1)
    error_of(live.post("/generate", {"model": "echo", "prompt": "red", "max_new_tokens": 20}), 429)
    error_of(live.post("/score", {"model": "echo", "input": "red green blue one two three"}), 429)
    live.engine().go()
    assert accepted.result().status_code == 200


def test_a_request_larger_than_the_queue_can_be_is_told_so(serve):
    live = serve(max_queued_tokens=30)
    asked = {"model": "echo", "prompts": ["red", "red"], "max_new_tokens": 10}
    for _ in range(2):
        assert error_of(live.post("/generate", {**asked, "n": 2}), 400)["code"] == "too_many_tokens"
    live.post("/generate", asked).raise_for_status()


def test_places_are_taken_before_tokenizing(serve, pool):
    live = serve(max_requests=2)
    live.engine()
    tokenizing = threading.Event()
    texts = live.state.registry.lanes["echo"].live.service.texts
    slow, fast = (lambda *a, **k: tokenizing.wait(10) and [[1]]), type(texts).prompts
    object.__setattr__(texts, "prompts", slow)
    accepted = [later(pool, live, {"model": "echo", "prompt": "red"}) for _ in range(2)]
    until(lambda: queue_of(live).num_requests == 2)
    error_of(live.post("/generate", {"model": "echo", "prompt": "red"}), 429)
    assert live.client.get("/health").status_code == 200  # the event loop is free
    tokenizing.set()
    assert [future.result().status_code for future in accepted] == [200, 200]
    assert fast


def test_refused_requests_give_their_place_back(serve):
    live = serve(max_requests=1)
    for _ in range(3):
        error_of(live.post("/generate", {"model": "echo", "prompt": "red " * 600}), 413)
        error_of(live.post("/generate", {"model": "echo", "prompt": "refused"}), 400)
        error_of(live.post("/score", {"model": "echo", "input": "red", "labels": ["no", "not a word"]}), 400)
    live.post("/generate", {"model": "echo", "prompt": "red"}).raise_for_status()


def test_the_deadline(serve):
    live = serve(timeout_s=0.3)
    engine = live.engine()
    engine.endless, engine.step_s = True, 0.02
    assert error_of(live.post("/generate", {"model": "echo", "prompt": "red", "max_new_tokens": 900}), 504)["code"]
    until(lambda: not engine.has_work)
    until(lambda: queue_of(live).num_requests == 0)


def test_the_deadline_of_a_stream_is_its_last_event(serve):
    live = serve(timeout_s=0.3)
    engine = live.engine()
    engine.endless, engine.step_s = True, 0.02
    response = live.post("/generate_stream", {"model": "echo", "prompt": "red", "max_new_tokens": 900})
    last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "deadline_exceeded"
    until(lambda: not engine.has_work)


@pytest.mark.parametrize(
    ("route", "more"),
    [
        ("/generate", {}),
        ("/generate", {"prompts": ["red", "blue"], "n": 2}),
        ("/generate_stream", {}),
        ("/v1/completions", {}),
        ("/v1/completions", {"stream": True, "n": 2}),
        ("/score", None),
    ],
)
def test_a_client_that_goes_away_frees_its_slots_within_two_steps(serve, route, more):
    live = serve()
    engine = live.engine()
    engine.endless, engine.step_s = True, 0.05
    body = {"model": "echo", "prompt": "red", **(more or {})}
    if "prompts" in body:
        del body["prompt"]
    if more is None:
        engine.hold()
        body = {"model": "echo", "input": "red"}
    else:
        body["max_tokens" if route.startswith("/v1") else "max_new_tokens"] = 900
    host, port = live.url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        until(lambda: len(engine.submitted) >= 2)
        time.sleep(0.12)
    gone_at = engine.num_steps
    if more is None:
        engine.go()
    until(lambda: not engine.has_work)
    assert engine.num_steps <= gone_at + 2
    until(lambda: queue_of(live).num_requests == 0)
    assert queue_of(live).num_tokens == 0
    until(lambda: live.state.num_open == 0)


def test_one_request_s_failure_is_its_own(serve, pool):
    live = serve(engine={"step_s": 0.01})
    live.engine()
    good = [later(pool, live, {"model": "echo", "prompt": LONG}) for _ in range(4)]
    error = error_of(live.post("/generate", {"model": "echo", "prompt": "wrong"}), 500)
    assert error["code"] == "engine_failed"
    assert "secret" not in error["message"]
    error_of(live.post("/generate", {"model": "echo", "prompts": ["red", "wrong", LONG]}), 500)
    assert all(future.result().status_code == 200 for future in good)
    assert live.client.get("/health").status_code == 200
    until(lambda: queue_of(live).num_requests == 0)


def test_a_dead_engine_turns_health_red_and_ends_the_server(serve, pool):
    live = serve(engine={"step_s": 0.02})
    live.engine()
    others = [later(pool, live, {"model": "echo", "prompt": LONG}) for _ in range(3)]
    until(lambda: queue_of(live).num_requests == 3)
    assert error_of(live.post("/generate", {"model": "echo", "prompt": "dies"}), 500)["code"] == "engine_dead"
    assert live.client.get("/health").status_code == 503
    assert live.client.get("/ready").status_code == 503
    error_of(live.post("/generate", {"model": "other", "prompt": "red"}), 503)
    assert {future.result().status_code for future in others} == {500}
    until(lambda: live.server.should_exit)
    assert live.server.exit_code == 1


def test_an_engine_that_stands_still_turns_health_red(serve, pool, caplog):
    live = serve(step_timeout_s=0.2)
    engine = live.engine()
    engine.hold()
    answer = later(pool, live, {"model": "echo", "prompt": "red"})
    assert live.client.get("/health").status_code == 200
    until(lambda: live.client.get("/health").status_code == 503)
    until(lambda: "a step takes longer than 0.2 s" in caplog.text)
    assert live.client.get("/ready").status_code == 503
    time.sleep(0.2)
    assert caplog.text.count("a step takes longer") == 1
    engine.go()
    assert answer.result().status_code == 200
    assert live.client.get("/health").status_code == 200


def test_draining_answers_what_was_accepted_and_refuses_the_rest(serve, pool):
    live = serve(engine={"step_s": 0.01})
    engine = live.engine()
    engine.hold()
    accepted = [later(pool, live, {"model": "echo", "prompt": LONG}) for _ in range(6)]
    accepted.append(later(pool, live, {"model": "echo", "prompt": LONG}, "/generate_stream"))
    until(lambda: queue_of(live).num_requests == 7)
    live.begin_end()
    until(lambda: live.client.get("/ready").status_code == 503)
    response = live.post("/generate", {"model": "echo", "prompt": "red"})
    assert error_of(response, 503)["code"] == "draining"
    assert "retry-after" in response.headers
    assert live.client.get("/health").status_code == 200
    engine.go()
    assert [future.result().status_code for future in accepted] == [200] * 7
    assert '"generated_text":"' in accepted[-1].result().text
    until(lambda: live.server.should_exit)
    assert live.server.exit_code == 0


def test_grace_ends(serve, pool):
    live = serve(grace_s=0.3)
    live.engine().hold()
    lost = later(pool, live, {"model": "echo", "prompt": "red"})
    stream = later(pool, live, {"model": "echo", "prompt": "red"}, "/generate_stream")
    until(lambda: queue_of(live).num_requests == 2)
    live.begin_end()
    assert "draining" in stream.result().text
    error_of(lost.result(), 503)
    until(lambda: live.server.should_exit)
    assert live.server.exit_code == 1


def test_one_thread_owns_the_engine(serve, pool):
    live = serve()
    live.engine()
    for future in [later(pool, live, {"model": "echo", "prompt": "red"}) for _ in range(20)]:
        future.result().raise_for_status()
    assert live.engine().thread_names == {"engine echo"}


def test_an_idle_engine_is_left_alone(serve):
    live = serve()
    engine = live.engine()
    steps = engine.num_steps
    time.sleep(0.2)
    assert engine.num_steps == steps


def test_overload_rejects_fast_and_answers_what_it_took(serve, pool):
    live = serve(max_requests=8, engine={"step_s": 0.002})
    live.engine()
    answers = [later(pool, live, {"model": "echo", "prompt": "red green blue"}) for _ in range(200)]
    statuses = [future.result().status_code for future in answers]
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= 8
    until(lambda: queue_of(live).num_requests == 0)
    assert queue_of(live).num_tokens == 0
