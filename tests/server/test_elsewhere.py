"""What is said of routes that other servers have, and of methods; and that every limit has a flag and stands in /info."""

from __future__ import annotations

import re

import pytest

from tests.server.conftest import error_of
from workflow.config.sections import section_fields
from workflow.server.elsewhere import ADVICE
from workflow.server.settings import BoundsSection, EngineSection, QueueSection, ServeSettings


@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("/v1/chat/completions", "/v1/completions"),
        ("/chat/completions", "/v1/completions"),
        ("/v1/responses", "/v1/completions"),
        ("/completions", "/v1/completions"),
        ("/completion", "/v1/completions"),
        ("/v1/engines/x/completions", "/v1/completions"),
        ("/v1/embeddings", "/score"),
        ("/embed", "/rerank"),
        ("/embed_all", "/score"),
        ("/tokenize", "usage"),
        ("/v1/tokenize", "usage"),
        ("/tokenizer_info", "usage"),
        ("/predict", "/score"),
        ("/v1/score", "/score"),
        ("/classify", "/score"),
        ("/invocations", "/generate"),
        ("/api/generate", "/generate"),
        ("/models", "/v1/models"),
        ("/version", "/info"),
        ("/ping", "/health"),
        ("/v1/fine_tuning/jobs", "seq2seq.py"),
        ("/v1/audio/speech", "texts"),
        ("/generate/", "slash"),
        ("/v1/completions/", "slash"),
        ("/v1/v1/completions", '"/v1/completions"'),
        ("/app/generate", '"/generate"'),
        ("/generat", '"/generate"'),
        ("/nowhere", "/docs"),
    ],
)
def test_routes_of_others_name_ours(live, path, instead):
    for response in (live.post(path, {}), live.client.get(path)):
        error = error_of(response, 404)
        assert error["code"] == "not_found"
        assert instead in error["message"]


def test_what_is_advised_is_here_and_what_is_here_is_not_advised_against(live):
    paths = set(live.client.get("/openapi.json").json()["paths"])
    for pattern, advice in ADVICE:
        assert not [path for path in paths if re.fullmatch(pattern, path)]
        for named in re.findall(r"(?<![\w.])/[a-z0-9/_]+", advice):
            assert named in paths


def test_a_wrong_method_names_the_right_one(live):
    assert "POST" in error_of(live.client.get("/generate"), 405)["message"]
    assert "GET" in error_of(live.post("/health", {}), 405)["message"]


def test_every_limit_is_a_flag_and_in_info(serve):
    live = serve(max_cache_tokens=4321, max_fields=7)
    bounds = live.client.get("/info").json()["bounds"]
    for section in (BoundsSection, QueueSection, EngineSection):
        assert set(section.model_fields) <= set(bounds)
        assert set(section.model_fields) <= set(section_fields(ServeSettings))
    assert (bounds["max_cache_tokens"], bounds["max_fields"]) == (4321, 7)


def test_what_no_engine_could_hold_is_refused_by_its_flag(serve):
    live = serve(max_cache_tokens=100, max_rows=3)
    error = error_of(live.post("/generate", {"model": "echo", "prompt": "red", "max_new_tokens": 50, "n": 2}), 400)
    assert "--max_cache_tokens" in error["message"]
    error = error_of(live.post("/v1/completions", {"model": "echo", "prompt": "red", "max_tokens": 1, "n": 4}), 400)
    assert "--max_rows" in error["message"]
    live.post("/generate", {"model": "echo", "prompt": "red", "max_new_tokens": 20, "n": 2}).raise_for_status()


def test_fields_are_counted_by_their_flag(serve):
    live = serve(max_fields=7)
    body = {"model": "echo", "input": {str(number): 1 for number in range(8)}}
    assert "--max_fields" in error_of(live.post("/score", body), 400)["message"]
