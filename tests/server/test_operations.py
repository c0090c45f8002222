"""Health, readiness, metrics, the table of runs, the pages, keys, ids, logs, CORS."""

from __future__ import annotations

import json
import logging
import re
import threading

import pytest

from tests.server.conftest import error_of, until, write_checkpoint


def test_health_and_readiness(live):
    assert live.client.get("/health").json() == {"status": "ok"}
    assert live.client.get("/ready").json() == {"status": "ready"}


def test_not_ready_while_preloading(serve, fake):
    fake.delay = threading.Event()
    live = serve(preload=["echo", "other"])
    assert live.client.get("/ready").json() == {"status": "loading"}
    assert live.client.get("/health").status_code == 200
    fake.delay.set()
    until(lambda: live.client.get("/ready").status_code == 200)
    assert [name for name, _ in fake.loads] == ["echo", "other"]


def test_a_run_that_cannot_be_preloaded_ends_the_server(serve, fake):
    fake.failing["other"] = RuntimeError("broken")
    live = serve(preload=["other"])
    until(lambda: live.server.should_exit)
    assert live.server.exit_code == 2


def test_metrics_have_vllm_s_names(serve):
    live = serve()
    live.post("/generate", {"model": "echo", "prompt": "red green"}).raise_for_status()
    live.post("/generate_stream", {"model": "echo", "prompt": "red"}).raise_for_status()
    live.post("/score", {"model": "echo", "input": "red"}).raise_for_status()
    live.post("/generate", {"model": "echo", "prompt": "wrong"})
    text = live.client.get("/metrics").text
    for name in (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:time_to_first_token_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:inter_token_latency_seconds_count",
        "vllm:request_prompt_tokens_count",
        "vllm:request_generation_tokens_count",
    ):
        assert f'{name}{{model_name="echo"}}' in text, name
    assert live.metric("vllm:request_success_total", model_name="echo", finished_reason="stop") == 3
    assert live.metric("vllm:request_success_total", model_name="echo", finished_reason="error") == 1
    assert live.metric("vllm:e2e_request_latency_seconds_count", model_name="echo") == 3
    assert live.metric("vllm:time_to_first_token_seconds_count", model_name="echo") == 1
    assert live.metric("workflow:http_responses_total", route="/score", status="200") == 1


def test_metrics_count_what_runs_and_waits(serve):
    live = serve()
    engine = live.engine()
    engine.hold()
    threads = [
        threading.Thread(target=live.post, args=("/generate", {"model": "echo", "prompt": "red"})) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    until(lambda: live.state.registry.lanes["echo"].queue.num_requests == 6)
    live.client.get("/metrics")
    assert live.metric("vllm:num_requests_running", model_name="echo") == 4
    assert live.metric("vllm:num_requests_waiting", model_name="echo") == 2
    engine.go()
    for thread in threads:
        thread.join()


def test_clients_make_no_labels(live):
    for name in ("a", "b"):
        live.post("/generate", {"model": f"nowhere-{name}", "prompt": "red"})
        live.client.get(f"/nowhere-{name}")
    assert "nowhere" not in live.client.get("/metrics").text


def test_info_is_the_table_of_runs(serve, runs):
    (write_checkpoint(runs / "scorer" / "checkpoint-best-ckpt") / "scoring.json").write_text("{}")
    live = serve()
    rows = {row["name"]: row for row in live.client.get("/info").json()["models"]}
    assert rows["scorer"]["task"] == "score"
    assert rows["echo"] | {"state": "available", "can_generate": None} == rows["echo"]
    live.engine()
    row = {row["name"]: row for row in live.client.get("/info").json()["models"]}["echo"]
    assert row["state"] == "loaded"
    assert row["can_generate"] is row["can_score"] is True
    assert row["labels"] == ["no", "yes"]
    assert row["max_prompt_tokens"] == 512


def test_pages_load_nothing_from_elsewhere(live):
    for path in ("/", "/docs"):
        response = live.client.get(path)
        assert response.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", response.text)
    for route in ("/generate", "/score", "/v1/completions", "/health"):
        assert route in live.client.get("/docs").text


def test_the_document_has_examples_for_every_body(live):
    document = live.client.get("/openapi.json").json()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["responses"]["401"]
            if method == "post":
                assert operation["requestBody"], path
                assert operation["responses"]["429"]["content"]["application/json"]["schema"]["$ref"].endswith(
                    "ErrorAnswer"
                )
    for name in (
        "GenerateBody",
        "ScoreBody",
        "CompletionBody",
        "TgiBody",
        "RerankBody",
        "TeiRerankBody",
        "GenerativeScoringBody",
    ):
        schema = document["components"]["schemas"][name]
        assert schema["additionalProperties"] is False
        assert schema["examples"]


def test_the_document_s_examples_are_good_bodies(live):
    document = live.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for route, name in (
        ("/generate", "GenerateBody"),
        ("/generate", "TgiBody"),
        ("/score", "ScoreBody"),
        ("/v1/completions", "CompletionBody"),
        ("/rerank", "RerankBody"),
        ("/rerank", "TeiRerankBody"),
        ("/v1/rerank", "RerankBody"),
        ("/generative_scoring", "GenerativeScoringBody"),
    ):
        for example in schemas[name]["examples"]:
            response = live.post(route, {**example, "model": "nowhere"})
            assert error_of(response, 404)["code"] == "model_not_found"


# ---- keys


@pytest.fixture
def locked(serve, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# who\nfirst-key\n\nsecond-key\n")
    return serve(api_key_file=str(file))


def bearer(key: str) -> dict:
    return {"authorization": f"Bearer {key}"}


def test_any_of_the_keys_opens(locked):
    for key in ("first-key", "second-key"):
        locked.post("/generate", {"model": "echo", "prompt": "red"}, headers=bearer(key)).raise_for_status()
    locked.client.get("/v1/models", headers={"authorization": "bearer first-key"}).raise_for_status()


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        "Bearer first-key2",
        "Bearer first-ke",
        "Basic first-key",
        "first-key",
        "Bearer # who",
        b"Bearer \xff",
    ],
)
def test_nothing_else_does(locked, header):
    headers = {} if header is None else {"authorization": header}
    for route in ("/generate", "/", "/score", "/nowhere"):
        response = locked.post(route, {"model": "echo", "prompt": "red"}, headers=headers)
        assert error_of(response, 401)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    error_of(locked.client.get("/v1/models", headers=headers), 401)
    error_of(locked.client.get("/info", headers=headers), 401)


def test_what_gives_nothing_away_is_free(locked):
    for path in ("/health", "/ready", "/metrics", "/", "/docs", "/openapi.json"):
        assert locked.client.get(path).status_code == 200


def test_unless_everything_is_protected(serve, tmp_path):
    (tmp_path / "keys").write_text("key\n")
    live = serve(api_key_file=str(tmp_path / "keys"), protect_all=True)
    for path in ("/health", "/metrics", "/"):
        error_of(live.client.get(path), 401)
        assert live.client.get(path, headers=bearer("key")).status_code == 200


def test_a_large_body_without_a_key_is_not_read(locked):
    error_of(locked.client.post("/generate", content=b" " * 1_500_000), 401)


# ---- ids, logs, CORS


def test_request_ids_go_in_and_out(live):
    assert live.client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    first, second = (live.client.get("/nowhere").headers["x-request-id"] for _ in range(2))
    assert first != second
    bad = live.client.get("/health", headers={"x-request-id": "a b\tc" + "d" * 200}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", bad)
    response = live.client.post("/generate", content=b"", headers={"x-request-id": "mine-2"})
    assert response.headers["x-request-id"] == "mine-2"


def lines(caplog, level=logging.INFO):
    from workflow.server.logs import JsonLines

    records = [record for record in caplog.records if record.name == "workflow.server" and record.levelno >= level]
    return [json.loads(JsonLines().format(record)) for record in records]


def test_logs_tell_no_prompts(serve, caplog):
    caplog.set_level(logging.INFO, "workflow.server")
    live = serve()
    live.post("/generate", {"model": "echo", "prompt": "red green"}, headers={"x-request-id": "one"})
    live.post("/generate", {"model": "echo", "prompt": "red green " * 400}, headers={"x-request-id": "two"})
    live.client.get("/health")
    until(lambda: live.state.num_open == 0)
    # By their ids: another test's server may still write of a client that went away.
    requests = [line for line in lines(caplog) if line["message"] == "request" and line["request_id"] in ("one", "two")]
    assert [line["status"] for line in requests] == [200, 413]
    first = requests[0]
    assert (first["request_id"], first["route"], first["model"]) == ("one", "/generate", "echo")
    assert first["prompt_tokens"] > 0
    assert first["generated_tokens"] > 0
    assert "red green" not in json.dumps(lines(caplog))


def test_logs_tell_prompts_where_asked(serve, caplog):
    caplog.set_level(logging.INFO, "workflow.server")
    live = serve(log_prompts=True)
    live.post("/generate", {"model": "echo", "prompt": "red green"})
    until(lambda: live.state.num_open == 0)
    (line,) = [line for line in lines(caplog) if line["message"] == "request"]
    assert line["prompts"] == ["red green"]
    assert line["answers"] == [["red green"]]


def test_cors_is_off_unless_configured(live, serve):
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in live.client.get("/health", headers=asked).headers
    error_of(live.client.options("/generate", headers=asked), 405)
    open_to = serve(cors_origins=["https://a.example"])
    allowed = open_to.client.options("/generate", headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    other = open_to.client.get("/health", headers={"origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers
