"""OpenAI's routes, by the unchanged `openai` client and by hand."""

from __future__ import annotations

import json

import openai
import pytest

from tests.server.conftest import error_of


@pytest.fixture
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_a_completion(client):
    made = client.completions.create(model="echo", prompt="red green", max_tokens=30, temperature=0)
    assert made.choices[0].text == "red green"
    assert made.choices[0].finish_reason == "stop"
    assert made.object == "text_completion"
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens


def test_prompts_of_every_kind(client, vocabulary):
    ids = vocabulary("red", add_special_tokens=True)["input_ids"]
    for prompt, wanted in (
        (["red", "blue"], ["red", "blue"]),
        (ids, ["red"]),
        ([ids, ids], ["red", "red"]),
    ):
        made = client.completions.create(model="echo", prompt=prompt, n=2)
        assert [choice.text for choice in made.choices] == [text for text in wanted for _ in range(2)]
        assert [choice.index for choice in made.choices] == list(range(2 * len(wanted)))


def test_parameters_reach_the_engine(client, live):
    client.completions.create(
        model="echo",
        prompt="red",
        max_tokens=7,
        temperature=0.5,
        top_p=0.5,
        n=2,
        stop=["x", "y"],
        seed=5,
        logprobs=2,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": -100},
        user="me",
    )
    params = live.engine().submitted[-1].params
    assert (params.max_new_tokens, params.temperature, params.top_p, params.n) == (7, 0.5, 0.5, 2)
    assert (params.stop, params.logprobs, params.logit_bias) == (("x", "y"), 2, ((5, -100.0),))
    assert (params.presence_penalty, params.frequency_penalty) == (1, -1)


def test_the_temperature_is_openai_s_unless_given(client, live):
    client.completions.create(model="echo", prompt="red")
    assert live.engine().submitted[-1].params.temperature == 1.0


def test_logprobs(client):
    made = client.completions.create(model="echo", prompt=["red green", "blue"], n=2, logprobs=2)
    for choice in made.choices:
        check_logprobs(choice.text, choice.logprobs)


def test_logprobs_of_a_stream(client):
    asked = {"model": "echo", "prompt": ["red green", "blue"], "n": 2, "logprobs": 2}
    whole = client.completions.create(**asked).choices
    for choice in whole:
        pieces = [
            piece.choices[0]
            for piece in client.completions.create(**asked, stream=True)
            if piece.choices[0].index == choice.index
        ]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [entry for piece in pieces for entry in getattr(piece.logprobs, name)]
            assert joined == getattr(choice.logprobs, name)
        assert all("".join(piece.logprobs.tokens) == piece.text for piece in pieces)


def check_logprobs(text, shown):
    assert "".join(shown.tokens) == text
    for token, logprob, others, offset in zip(
        shown.tokens, shown.token_logprobs, shown.top_logprobs, shown.text_offset, strict=True
    ):
        assert text[offset : offset + len(token)] == token
        assert others[token] == logprob


def test_a_stream(client):
    pieces = list(
        client.completions.create(
            model="echo",
            prompt=["red green", "blue"],
            n=2,
            stream=True,
            stream_options={"include_usage": True},
            logprobs=0,
        )
    )
    *pieces, last = pieces
    texts = dict.fromkeys(range(4), "")
    for piece in pieces:
        texts[piece.choices[0].index] += piece.choices[0].text
    assert texts == {0: "red green", 1: "red green", 2: "blue", 3: "blue"}
    assert [piece.choices[0].finish_reason for piece in pieces].count("stop") == 4
    assert last.choices == []
    plain = client.completions.create(model="echo", prompt=["red green", "blue"], n=2)
    assert last.usage == plain.usage
    assert all(piece.usage is None for piece in pieces)


def test_the_stream_ends_in_done(live):
    response = live.post("/v1/completions", {"model": "echo", "prompt": "red", "stream": True})
    assert response.text.endswith("data: [DONE]\n\n")
    assert "usage" in json.loads(response.text.split("\n\n")[0].removeprefix("data: "))


def test_an_error_within_a_stream(client):
    with pytest.raises(openai.APIError, match="engine failed"):
        list(client.completions.create(model="echo", prompt="wrong", stream=True))


def test_models(client):
    assert [model.id for model in client.models.list()] == ["echo", "other"]
    assert client.models.retrieve("other").id == "other"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nowhere")


def test_errors_are_openai_s(client):
    with pytest.raises(openai.NotFoundError) as told:
        client.completions.create(model="nowhere", prompt="red")
    assert told.value.code == "model_not_found"
    assert told.value.param == "model"
    with pytest.raises(openai.BadRequestError) as told:
        client.completions.create(model="echo", prompt="red", max_tokens=0)
    assert told.value.param == "max_tokens"


@pytest.mark.parametrize(
    ("field", "value", "neutral"),
    [
        ("suffix", "x", [None, ""]),
        ("best_of", 2, [1]),
        ("best_of", 3, [None]),
        ("use_beam_search", True, [None, False]),
        ("length_penalty", 0.5, [1, 1.0]),
        ("stop_token_ids", [5], [None, []]),
        ("skip_special_tokens", False, [True]),
        ("include_stop_str_in_output", True, [False]),
        ("prompt_logprobs", 1, [None]),
        ("allowed_token_ids", [5], [None]),
        ("response_format", {"type": "json_object"}, [None, {"type": "text"}]),
        ("guided_regex", "a", [None]),
        ("return_tokens_as_token_ids", True, [False, None]),
        ("priority", 1, [0]),
        ("priority", False, [0]),
    ],
)
def test_unsupported_fields_are_refused_by_name(live, field, value, neutral):
    body = {"model": "echo", "prompt": "red"}
    assert field in error_of(live.post("/v1/completions", {**body, field: value}), 400)["message"]
    for accepted in neutral:
        live.post("/v1/completions", {**body, field: accepted}).raise_for_status()


def test_what_vllm_takes_beside_openai_s_fields(live):
    body = {"model": "echo", "prompt": "red green blue", "max_tokens": 9, "min_tokens": 2, "top_k": 3, "min_p": 0.1}
    more = {"repetition_penalty": 1.5, "request_id": "mine", "cache_salt": "x", "truncate_prompt_tokens": 2}
    live.post("/v1/completions", {**body, **more}).raise_for_status()
    asked = live.engine().submitted[-1]
    params = asked.params
    assert (params.top_k, params.min_p, params.min_new_tokens, params.repetition_penalty) == (3, 0.1, 2, 1.5)
    assert len(asked.token_ids) == 2
    for top_k in (-1, 0):
        live.post("/v1/completions", {**body, "top_k": top_k}).raise_for_status()
        assert live.engine().submitted[-1].params.top_k == 0
    told = error_of(live.post("/v1/completions", {**body, "min_tokens": 10}), 400)
    assert told["message"] == "min_tokens: 10 is more than max_tokens, 9"
    assert told["param"] == "min_tokens"


def test_an_answer_without_an_end(live):
    body = {"model": "echo", "prompt": "red", "max_tokens": 9, "ignore_eos": True}
    live.post("/v1/completions", body).raise_for_status()
    assert live.engine().submitted[-1].params.min_new_tokens == 9
    live.post("/v1/completions", {**body, "stop": "x"}).raise_for_status()
    params = live.engine().submitted[-1].params
    assert params.min_new_tokens == 0, "a stop string still ends it"
    assert params.logit_bias == ((live.engine().tokenizer.eos_token_id, float("-inf")),)


def test_every_event_has_the_usage_so_far_where_it_is_asked(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    *pieces, last = client.completions.create(model="echo", prompt="red green", stream=True, stream_options=options)
    used = [piece.usage.completion_tokens for piece in pieces]
    assert used == sorted(used)
    assert pieces[-1].usage == last.usage


def test_bounds_are_told_by_openai_s_names(live):
    asked = {"model": "echo", "prompt": "red", "max_tokens": 10**6}
    assert error_of(live.post("/v1/completions", asked), 400)["param"] == "max_tokens"


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": ["red", 5]},
        {"prompt": [-1]},
        {"prompt": [10**6]},
        {"prompt": None},
        {"model": None},
        {"tools": []},
        {"stream_options": {"include_usage": True}},
        {"temperature": 3},
    ],
)
def test_wrong_bodies(live, change):
    error_of(live.post("/v1/completions", {"model": "echo", "prompt": "red", **change}), 400)


def test_token_ids_are_cut_where_it_is_advised(live):
    body = {"model": "echo", "prompt": [5] * 600, "max_tokens": 1}
    advice = error_of(live.post("/v1/completions", body), 413)["message"]
    assert advice.endswith('"truncate_prompt_tokens": -1')
    live.post("/v1/completions", {**body, "truncate_prompt_tokens": -1}).raise_for_status()
    assert len(live.engine().submitted[-1].token_ids) == 512
