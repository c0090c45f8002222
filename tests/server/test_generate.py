"""/generate in our shape and TGI's, /generate_stream, and the bounds of what may be asked."""

from __future__ import annotations

import json

import pytest

from tests.server.conftest import error_of
from workflow.errors import RequestError
from workflow.server.bounds import biases
from workflow.server.settings import BoundsSection
from workflow.server.texts import ModelTexts


def events(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    return [
        json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line.startswith("data: {")
    ]


def test_one_prompt(live):
    body = live.post("/generate", {"model": "echo", "prompt": "red green"}).raise_for_status().json()
    assert body["model"] == "echo"
    (made,) = body["generations"]
    assert made == {"index": 0, "text": "red green", "finish_reason": "stop", "num_tokens": made["num_tokens"]}
    usage = body["usage"]
    assert usage["completion_tokens"] == made["num_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_several_prompts_and_samples(live):
    body = live.post("/generate", {"model": "echo", "prompts": ["red", "blue"], "n": 2}).raise_for_status().json()
    assert [[made["text"] for made in row["generations"]] for row in body["results"]] == [["red"] * 2, ["blue"] * 2]
    assert [made["index"] for made in body["results"][0]["generations"]] == [0, 1]
    assert body["usage"]["total_tokens"] == sum(row["usage"]["total_tokens"] for row in body["results"])


def test_every_sampling_field_reaches_the_engine(live):
    asked = {
        "max_new_tokens": 5,
        "min_new_tokens": 2,
        "temperature": 0.7,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": -0.3,
        "n": 2,
        "logprobs": 1,
    }
    live.post("/generate", {"model": "echo", "prompt": "red", "stop": "x", "logit_bias": {"5": 2}, **asked})
    params = live.engine().submitted[-1].params
    for name, value in asked.items():
        assert getattr(params, name) == value
    assert params.stop == ("x",)
    assert params.logit_bias == ((5, 2.0),)
    live.post("/generate", {"model": "echo", "prompt": "red", "num_beams": 3}).raise_for_status()
    assert live.engine().submitted[-1].params.num_beams == 3


def test_without_max_new_tokens_the_run_s_own_default_is_taken(live):
    live.post("/generate", {"model": "echo", "prompt": "red"}).raise_for_status()
    assert live.engine().submitted[-1].params.max_new_tokens == 20


def test_the_run_s_default_is_bounded(serve):
    live = serve(max_new_tokens=3)
    body = live.post("/generate", {"model": "echo", "prompt": "red green blue one two"}).raise_for_status().json()
    assert body["generations"][0]["num_tokens"] == 3
    assert body["generations"][0]["finish_reason"] == "length"


def test_a_seed_belongs_to_the_prompt_s_number_as_on_the_command_line(live):
    from workflow.runtime import derived_seed

    live.post("/generate", {"model": "echo", "prompts": ["red", "red"], "seed": 7}).raise_for_status()
    assert [request.seed for request in live.engine().submitted[-2:]] == [
        derived_seed(7, "sampling", number) for number in (0, 1)
    ]
    for _ in range(2):
        live.post("/generate", {"model": "echo", "prompt": "red"}).raise_for_status()
    assert live.engine().submitted[-1].seed != live.engine().submitted[-2].seed


def test_logprobs_are_shown_with_tokens(live):
    body = live.post("/generate", {"model": "echo", "prompt": "red", "logprobs": 2}).raise_for_status().json()
    shown = body["generations"][0]["logprobs"]
    assert "".join(token["token"] for token in shown) == "red"
    assert shown[-1]["id"] == live.engine().tokenizer.eos_token_id
    assert all(token["logprob"] == -0.5 and len(token["top"]) == 2 for token in shown)


def test_the_model_may_be_left_out_where_one_is_the_default(serve):
    live = serve(default_model="other")
    assert live.post("/generate", {"prompt": "red"}).raise_for_status().json()["model"] == "other"
    assert live.post("/generate?model=echo", {"prompt": "red"}).raise_for_status().json()["model"] == "echo"


def test_the_model_must_be_named_where_there_are_several(live):
    assert error_of(live.post("/generate", {"prompt": "red"}), 400)["code"] == "model_required"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"prompt": "a", "prompts": ["b"]}, None),
        ({"prompt": ""}, "prompt"),
        ({"prompts": []}, "prompts"),
        ({"prompts": ["a", ""]}, "prompts.1"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "a", "temprature": 1}, "temprature"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "temperature": "1"}, "temperature"),
        ({"prompt": "a", "top_p": 0}, "top_p"),
        ({"prompt": "a", "repetition_penalty": 1e-30}, "repetition_penalty"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "n": True}, "n"),
        ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "seed": 2**63}, "seed"),
        ({"prompt": "a", "stop": ""}, "stop"),
        ({"prompt": "a", "logit_bias": {"-1": 1}}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"9999": 1}}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"²": 1}}, "logit_bias"),
        ({"prompt": "a", "num_beams": 2, "temperature": 1}, "num_beams"),
        ({"prompt": "a", "num_beams": 2, "n": 2}, "num_beams"),
        ({"prompt": "a", "min_new_tokens": 9, "max_new_tokens": 3}, "min_new_tokens"),
    ],
)
def test_wrong_bodies_are_refused_by_field(live, body, param):
    assert error_of(live.post("/generate", {"model": "echo", **body}), 400)["param"] == param


def test_a_bias_is_for_tokens_that_can_become_text(vocabulary):
    texts = ModelTexts(vocabulary, len(vocabulary) + 100)
    assert texts.num_tokens == len(vocabulary)
    assert ModelTexts(vocabulary, 5).num_tokens == 5
    bounds = BoundsSection()
    assert biases({str(len(vocabulary) - 1): 1}, bounds, texts.num_tokens)
    with pytest.raises(RequestError) as caught:
        biases({str(len(vocabulary)): 1}, bounds, texts.num_tokens)
    assert caught.value.param == "logit_bias"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("min_new_tokens", 1),
            ("top_k", 3),
            ("top_p", 0.5),
            ("typical_p", 0.5),
            ("min_p", 0.1),
            ("repetition_penalty", 1.5),
        ),
        *(("presence_penalty", 1), ("frequency_penalty", 1), ("stop", "a"), ("logit_bias", {"5": 1}), ("logprobs", 0)),
    ],
)
def test_what_beam_search_does_not_know_is_refused_by_name(live, field, value):
    body = {"model": "echo", "prompt": "red", "num_beams": 2, field: value}
    assert error_of(live.post("/generate", body), 400)["param"] == field


def test_beams_do_not_stream(live):
    body = {"model": "echo", "prompt": "red", "num_beams": 2}
    assert error_of(live.post("/generate_stream", body), 400)["param"] == "num_beams"


def test_beams_count_as_tokens(serve):
    live = serve(max_queued_tokens=100)
    live.post("/generate", {"model": "echo", "prompt": "red", "max_new_tokens": 40}).raise_for_status()
    body = {"model": "echo", "prompt": "red", "num_beams": 3, "max_new_tokens": 40}
    assert error_of(live.post("/generate", body), 400)["code"] == "too_many_tokens"


def test_to_json_2_0_is_an_integer(live):
    body = live.post("/generate", {"model": "echo", "prompt": "red", "n": 2.0}).raise_for_status().json()
    assert len(body["generations"]) == 2
    error_of(live.post("/generate", {"model": "echo", "prompt": "red", "n": 2.5}), 400)


def test_a_misspelt_field_gets_a_hint(live):
    error = error_of(live.post("/generate", {"model": "echo", "prompt": "a", "temprature": 1}), 400)
    assert 'did you mean "temperature"?' in error["message"]


@pytest.mark.parametrize(
    ("flag", "bound", "body"),
    [
        ("max_prompts", 2, {"prompts": ["a"] * 3}),
        ("max_n", 2, {"prompt": "a", "n": 3}),
        ("max_beams", 2, {"prompt": "a", "num_beams": 3}),
        ("max_new_tokens", 9, {"prompt": "a", "max_new_tokens": 10}),
        ("max_new_tokens", 9, {"prompt": "a", "min_new_tokens": 10}),
        ("max_logprobs", 1, {"prompt": "a", "logprobs": 2}),
        ("max_stop", 1, {"prompt": "a", "stop": ["a", "b"]}),
        ("max_stop_chars", 3, {"prompt": "a", "stop": ["abcd"]}),
        ("max_logit_bias", 1, {"prompt": "a", "logit_bias": {"1": 1, "2": 1}}),
    ],
)
def test_every_bound_is_a_setting(serve, flag, bound, body):
    live = serve(**{flag: bound})
    assert f"--{flag}" in error_of(live.post("/generate", {"model": "echo", **body}), 400)["message"]


def test_too_long_prompts_are_refused_unless_they_may_be_cut(serve):
    live = serve(max_prompt_tokens=4)
    prompt = "red green blue one two three left right"
    error = error_of(live.post("/generate", {"model": "echo", "prompts": ["red", prompt]}), 413)
    assert error["code"] == "prompt_too_long"
    assert "text 1" in error["message"]
    body = live.post("/generate", {"model": "echo", "prompt": prompt, "truncate": True}).raise_for_status().json()
    assert body["usage"]["prompt_tokens"] == 4
    assert prompt.endswith(body["generations"][0]["text"].strip())


def test_the_engine_s_own_limit_counts_too(live):
    error_of(live.post("/generate", {"model": "echo", "prompt": "red " * 600}), 413)


def test_a_run_that_only_scores_does_not_generate(serve):
    live = serve(engine={"can_generate": False})
    assert error_of(live.post("/generate", {"model": "echo", "prompt": "red"}), 400)["code"] == "model_unfit"


def test_what_the_engine_refuses_is_the_client_s_fault(live):
    assert "never run" in error_of(live.post("/generate", {"model": "echo", "prompt": "refused red"}), 400)["message"]


def test_tgi_body_gets_tgi_answer(live):
    body = {"model": "echo", "inputs": "red green", "parameters": {"max_new_tokens": 30}}
    assert live.post("/generate", body).raise_for_status().json() == {"generated_text": "red green"}
    body["parameters"] |= {"details": True, "seed": 4, "top_n_tokens": 2}
    details = live.post("/generate", body).raise_for_status().json()["details"]
    assert details["finish_reason"] == "eos_token"
    assert details["seed"] == 4
    assert details["generated_tokens"] == len(details["tokens"])
    assert [token["special"] for token in details["tokens"]].count(True) == 1
    assert all(len(others) == 2 for others in details["top_tokens"])


def test_tgi_sampling_is_greedy_unless_asked(live):
    for parameters, temperature in (
        ({}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"temperature": 0.5}, 0.5),
        ({"top_k": 3}, 1.0),
    ):
        live.post("/generate", {"model": "echo", "inputs": "red", "parameters": parameters}).raise_for_status()
        assert live.engine().submitted[-1].params.temperature == temperature


def test_bounds_are_told_by_tgi_s_names(live):
    asked = {"model": "echo", "inputs": "red", "parameters": {"top_n_tokens": 10**6, "details": True}}
    assert error_of(live.post("/generate", asked), 400)["param"] == "parameters.top_n_tokens"


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": "red green blue one two", "parameters": {"truncate": 3}},
        {"prompt": "red green blue one two", "truncate": 3},
        {"prompts": ["red green blue one two"], "truncate": 3},
    ],
)
def test_prompts_are_cut_to_a_number(live, body):
    live.post("/generate", {"model": "echo", **body}).raise_for_status()
    assert len(live.engine().submitted[-1].token_ids) == 3


LONG = "red green blue one two three left right " * 6


@pytest.mark.parametrize(
    ("route", "body", "advice", "cut"),
    [
        ("/generate", {"prompt": LONG}, '"truncate": true', {"truncate": True}),
        ("/generate_stream", {"prompt": LONG}, '"truncate": true', {"truncate": True}),
        ("/generate", {"inputs": LONG}, '"truncate": true in parameters', {"parameters": {"truncate": True}}),
        ("/", {"inputs": LONG}, '"truncate": true in parameters', {"parameters": {"truncate": True}}),
        ("/v1/completions", {"prompt": LONG}, '"truncate_prompt_tokens": -1', {"truncate_prompt_tokens": -1}),
        (
            "/v1/completions",
            {"prompt": LONG, "stream": True},
            '"truncate_prompt_tokens": -1',
            {"truncate_prompt_tokens": 3},
        ),
        ("/score", {"input": LONG}, '"truncate": true', {"truncate": True}),
        ("/rerank", {"query": "red", "texts": [LONG]}, '"truncate": true', {"truncate": True}),
        ("/v1/rerank", {"query": "red", "documents": [LONG]}, '"max_tokens_per_doc": N', {"max_tokens_per_doc": 1}),
        ("/generative_scoring", {"query": LONG, "items": ["red"], "label_token_ids": [5]}, "shorten it", None),
    ],
)
def test_what_is_advised_of_too_long_texts_is_accepted_there(serve, route, body, advice, cut):
    live = serve(max_prompt_tokens=32)
    message = error_of(live.post(route, {"model": "echo", **body}), 413)["message"]
    assert message.endswith(advice)
    if cut is not None:
        live.post(route, {"model": "echo", **body, **cut}).raise_for_status()


def test_typical_p_of_clients_that_always_send_it(live):
    """langchain's endpoint: greedy unless do_sample."""
    sent = {"top_p": 0.95, "typical_p": 0.95, "top_k": None, "truncate": None, "do_sample": False, "watermark": False}
    live.post("/", {"model": "echo", "inputs": "red", "parameters": sent}).raise_for_status()
    params = live.engine().submitted[-1].params
    assert (params.temperature, params.typical_p) == (0.0, 0.95)
    for parameters, temperature in (({"typical_p": 0.5}, 1.0), ({"typical_p": 1.0}, 0.0)):
        live.post("/generate", {"model": "echo", "inputs": "red", "parameters": parameters}).raise_for_status()
        assert live.engine().submitted[-1].params.temperature == temperature


@pytest.mark.parametrize(
    ("field", "value", "neutral"),
    [
        ("best_of", 2, 1),
        ("watermark", True, False),
        ("return_full_text", True, False),
        ("decoder_input_details", True, False),
        ("grammar", {"type": "json"}, None),
        ("adapter_id", "x", None),
    ],
)
def test_tgi_fields_that_cannot_be_honoured_are_refused_by_name(live, field, value, neutral):
    body = {"model": "echo", "inputs": "red"}
    error = error_of(live.post("/generate", {**body, "parameters": {field: value}}), 400)
    assert error["param"] == f"parameters.{field}"
    live.post("/generate", {**body, "parameters": {field: neutral}}).raise_for_status()


def test_the_stream_is_the_answer_in_pieces(live):
    found = events(live.post("/generate_stream", {"model": "echo", "prompt": "red green blue"}))
    assert "".join(event["token"]["text"] for event in found) == found[-1]["generated_text"] == "red green blue"
    assert [event["index"] for event in found] == list(range(1, len(found) + 1))
    assert all(event["generated_text"] is None for event in found[:-1])
    assert found[-1]["details"]["finish_reason"] == "eos_token"
    assert found[-1]["details"]["generated_tokens"] == len(found)
    assert found[-1]["token"]["special"]


def test_the_stream_takes_tgi_bodies(live):
    body = {"model": "echo", "inputs": "red green", "parameters": {"max_new_tokens": 1, "top_n_tokens": 1}}
    found = events(live.post("/generate_stream", body))
    assert found[-1]["details"]["finish_reason"] == "length"
    assert len(found[0]["top_tokens"]) == 1


def test_errors_before_a_stream_have_their_status(live):
    error_of(live.post("/generate_stream", {"model": "nowhere", "prompt": "red"}), 404)
    error_of(live.post("/generate_stream", {"model": "echo", "prompt": "red " * 600}), 413)
    error_of(live.post("/generate_stream", {"model": "echo", "prompts": ["red", "blue"]}), 400)


def test_errors_within_a_stream_are_its_last_event(live):
    found = events(live.post("/generate_stream", {"model": "echo", "prompt": "wrong red"}))
    assert found[-1]["error"]["code"] == "engine_failed"
    assert "secret" not in json.dumps(found)


@pytest.mark.parametrize("field", ["n", "num_beams"])
def test_more_side_by_side_than_an_engine_has_rows(serve, field):
    live = serve(max_rows=2)
    body = {"model": "echo", "prompt": "red", "temperature": 0 if field == "num_beams" else 1, field: 3}
    error = error_of(live.post("/generate", body), 400)
    assert error["param"] == field
    assert "max_rows" in error["message"]
