"""/score, /generative_scoring and /rerank: whose labels and template count, and what is shown."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from tests.server.conftest import error_of, until
from workflow.data.scoring import Scoring
from workflow.evaluation.calibration import fit_calibration
from workflow.models.verbalizers import single_token


def softmax(values):
    shares = [math.exp(value - max(values)) for value in values]
    return [share / sum(shares) for share in shares]


def score(live, **body):
    return live.post("/score", {"model": "echo", **body}).raise_for_status().json()


def test_a_seq2seq_run_scores_no_and_yes_by_default(live, vocabulary):
    body = score(live, input="red green")
    request = live.engine().submitted[-1]
    assert request.label_tokens == tuple(single_token(vocabulary, word) for word in ("no", "yes"))
    assert body["logits"] == list(live.engine().logits(request))
    assert body["score"] == pytest.approx(softmax(body["logits"])[1])
    assert body["probabilities"] == pytest.approx(softmax(body["logits"]))
    assert body["labels"] == ["no", "yes"]
    assert body["calibrated"] is None
    assert body["usage"]["prompt_tokens"] == len(request.token_ids)


def test_labels_and_template_may_be_given(live, vocabulary):
    body = score(live, input={"a": "green", "b": 3}, labels=["red", "blue", "left"], template="red {a} {b}")
    request = live.engine().submitted[-1]
    assert request.label_tokens == tuple(single_token(vocabulary, word) for word in ("red", "blue", "left"))
    assert vocabulary.decode(request.token_ids, skip_special_tokens=True).startswith("red green")
    assert body["score"] == pytest.approx(softmax(body["logits"]))
    assert len(body["labels"]) == 3


def test_several_inputs(live):
    body = score(live, inputs=["red", "blue", {"sentence1": "one", "sentence2": "two"}])
    assert [row["model"] for row in body["results"]] == ["echo"] * 3
    assert body["usage"]["prompt_tokens"] == sum(row["usage"]["prompt_tokens"] for row in body["results"])
    assert body["results"][1] == score(live, input="blue")


def test_a_text_fills_a_template_s_only_field(live, vocabulary):
    score(live, input="green", template="red {other}")
    assert vocabulary.decode(live.engine().submitted[-1].token_ids, skip_special_tokens=True) == "red green"


def test_words_that_are_not_one_token_are_refused(live):
    error = error_of(live.post("/score", {"model": "echo", "input": "red", "labels": ["no", "maybe not"]}), 400)
    assert error["param"] == "labels"
    assert "single token" in error["message"]


def test_a_run_s_own_labels_and_template_may_only_be_repeated(serve):
    own = Scoring(labels=("left", "right"), template="one {input}")
    live = serve(texts={"scoring": own, "own_scoring": True})
    body = score(live, input="red")
    assert body["labels"] == ["left", "right"]
    assert score(live, input="red", labels=["left", "right"], template="one {input}") == body
    asked = {"model": "echo", "input": "red"}
    assert error_of(live.post("/score", {**asked, "labels": ["no", "yes"]}), 400)["param"] == "labels"
    assert error_of(live.post("/score", {**asked, "template": "two {input}"}), 400)["param"] == "template"


def test_calibrated_where_the_run_has_a_calibration(serve):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 2))
    targets = (rng.random(200) < 1 / (1 + np.exp(3 * (logits[:, 0] - logits[:, 1])))).astype(float)
    calibration = fit_calibration("binary", logits, targets, seed=0)
    live = serve(texts={"scoring": Scoring(), "own_scoring": True, "calibration": calibration})
    body = score(live, input="red")
    assert body["calibrated"] == pytest.approx(float(calibration.apply(np.array([body["logits"]]))[0]))


def test_a_calibration_is_not_used_with_other_labels(serve):
    calibration = fit_calibration("binary", np.zeros((5, 2)), np.zeros(5), seed=0)
    live = serve(texts={"calibration": calibration})
    assert score(live, input="red")["calibrated"] is not None
    assert score(live, input="red", labels=["left", "right"])["calibrated"] is None


def test_a_target_range_shows_in_the_prediction_alone(serve):
    live = serve(texts={"scoring": Scoring(low=1, high=5), "own_scoring": True})
    body = score(live, input="red")
    assert body["prediction"] == pytest.approx(1 + 4 * body["score"])


def test_regression_and_multilabel_heads(serve):
    for problem, labels in (("regression", ("a", "b")), ("multilabel", ("a", "b"))):
        live = serve(
            texts={"scoring": Scoring(problem=problem, labels=labels), "own_scoring": True, "ends_in_eos": False}
        )
        live.load.engines.clear()
        body = score(live, input="red")
        if problem == "regression":
            assert body["score"] == body["logits"][0]
            assert body["labels"] == []
            assert body["probabilities"] is None
        else:
            assert body["score"] == pytest.approx([1 / (1 + math.exp(-value)) for value in body["logits"]])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"input": "a", "inputs": ["a"]}, None),
        ({"input": ""}, "input"),
        ({"inputs": []}, "inputs"),
        ({"input": {"other": "a"}}, "input"),
        ({"inputs": ["a", {"other": "a"}]}, "inputs.1"),
        ({"input": {"input": 5}}, "input"),
        ({"input": "a", "labels": ["yes"]}, "labels"),
        ({"input": "a", "labels": ["yes", "yes"]}, "labels"),
        ({"input": "a", "template": "no field"}, "template"),
        ({"input": "a", "template": "{a.b}"}, "template"),
        ({"input": "a", "template": "{"}, "template"),
        ({"input": "a", "template": "{input!r}"}, "template"),
        ({"input": "a", "lables": ["no", "yes"]}, "lables"),
    ],
)
def test_wrong_bodies_are_refused_by_field(live, body, param):
    assert error_of(live.post("/score", {"model": "echo", **body}), 400)["param"] == param


def test_too_long_inputs_are_refused_unless_they_may_be_cut(serve):
    live = serve(max_prompt_tokens=4, max_labels=2)
    asked = {"model": "echo", "input": "red green blue one two three left right"}
    assert error_of(live.post("/score", asked), 413)["code"] == "prompt_too_long"
    assert score(live, **asked, truncate=True)["usage"]["prompt_tokens"] == 4
    error_of(live.post("/score", {**asked, "labels": ["red", "blue", "left"]}), 400)


def test_logits_that_are_no_numbers_are_the_engine_s_fault(serve):
    live = serve(engine={"nan": True})
    assert error_of(live.post("/score", {"model": "echo", "input": "red"}), 500)["code"] == "not_finite"
    live.post("/generate", {"model": "echo", "prompt": "red"}).raise_for_status()


def test_generative_scoring_among_the_labels(live):
    body = {"model": "echo", "query": "red ", "items": ["green", "blue"], "label_token_ids": [5, 6]}
    answer = live.post("/generative_scoring", body).raise_for_status().json()
    wanted = [softmax(live.engine().logits(request))[0] for request in live.engine().submitted[-2:]]
    assert [row["score"] for row in answer["data"]] == pytest.approx(wanted)
    assert [row["index"] for row in answer["data"]] == [0, 1]
    assert answer["object"] == "list"
    first = live.engine().submitted[-1].token_ids
    live.post("/generative_scoring", {**body, "item_first": True}).raise_for_status()
    assert live.engine().submitted[-1].token_ids != first


def test_generative_scoring_over_the_vocabulary(live):
    body = {"model": "echo", "query": [5], "items": [[7, 8]], "label_token_ids": [9, 6], "apply_softmax": False}
    answer = live.post("/generative_scoring", body).raise_for_status().json()
    chosen = 5  # the engine echoes, with a log-probability of -0.5
    label, other = live.engine().logits(live.engine().submitted[-1])
    assert live.engine().submitted[-1].label_tokens == (9, chosen)
    assert list(live.engine().submitted[-1].token_ids) == [5, 7, 8, 1]
    assert answer["data"][0]["score"] == pytest.approx(math.exp(min(0, label - other - 0.5)))


@pytest.mark.parametrize(
    "change",
    [
        {"label_token_ids": []},
        {"label_token_ids": [5, 5]},
        {"label_token_ids": [99999]},
        {"items": [[5]]},
        {"items": []},
        {"query": [5]},
        {"query": [99999], "items": [[5]]},
    ],
)
def test_generative_scoring_refuses(live, change):
    body = {"model": "echo", "query": "red ", "items": ["green"], "label_token_ids": [5, 6], **change}
    error_of(live.post("/generative_scoring", body), 400)


def test_rerank_orders_documents_by_the_run_s_template(serve, vocabulary):
    live = serve(texts={"scoring": Scoring(template="{query} {document}"), "own_scoring": True})
    documents = ["red", {"text": "green"}, "blue one"]
    body = {"model": "echo", "query": "left", "documents": documents}
    answer = live.post("/rerank", body).raise_for_status().json()
    read = [vocabulary.decode(made.token_ids, skip_special_tokens=True) for made in live.engine().submitted[-3:]]
    assert read == ["left red", "left green", "left blue one"]
    values = [row["relevance_score"] for row in answer["results"]]
    assert values == sorted(values, reverse=True)
    assert sorted(row["index"] for row in answer["results"]) == [0, 1, 2]
    assert answer["results"][0]["document"]["text"] in ("red", "green", "blue one")
    short = live.post("/rerank", {**body, "top_n": 1, "return_documents": False}).raise_for_status().json()
    assert len(short["results"]) == 1
    assert "document" not in short["results"][0]


def test_rerank_needs_one_score_and_known_fields(serve):
    body = {"model": "echo", "query": "left", "documents": ["red"]}
    live = serve(texts={"scoring": Scoring("multiclass", ("no", "yes", "left")), "own_scoring": True})
    error_of(live.post("/rerank", body), 400)
    live = serve(texts={"scoring": Scoring(template="{weather}"), "own_scoring": True})
    assert "{weather}" in error_of(live.post("/rerank", body), 400)["message"]


RANKER = {"scoring": Scoring(template="{query} {document}"), "own_scoring": True}


@pytest.mark.parametrize("route", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank_in_the_words_of_cohere_and_jina(serve, vocabulary, route):
    """What cohere's two clients, and litellm for Cohere and Jina, send and read."""
    live = serve(texts=RANKER)
    documents = ["red", {"text": "green", "title": "left", "id": "7", "more": None}, {"title": "blue", "text": "one"}]
    body = {"model": "echo", "query": "left", "documents": documents, "top_n": 3, "max_chunks_per_doc": 10}
    answer = live.post(route, {**body, "return_documents": True}).raise_for_status().json()
    found = {row["index"]: row["document"] for row in answer["results"]}
    assert found == {0: {"text": "red"}, 1: documents[1], 2: documents[2]}
    assert answer["meta"]["tokens"]["input_tokens"] == answer["usage"]["total_tokens"] > 0
    named = {**body, "documents": documents[1:], "rank_fields": ["title", "text"], "return_documents": False}
    answer = live.post(route, named).raise_for_status().json()
    assert all(set(row) == {"index", "relevance_score"} for row in answer["results"])
    read = [vocabulary.decode(made.token_ids, skip_special_tokens=True) for made in live.engine().submitted[-2:]]
    assert read == ["left left green", "left blue one"]
    missing = error_of(live.post(route, {**body, "rank_fields": ["body"], "documents": documents[1:]}), 400)
    assert missing["param"] == "documents.0"
    assert "'body'" in missing["message"]
    for change in ({"priority": 1}, {"relevant_spans": {}}, {"instruction": "rank"}, {"texts_": []}):
        (name,) = change
        assert name in error_of(live.post(route, {**body, **change}), 400)["message"]


def test_rerank_cuts_documents_where_it_is_asked(serve, vocabulary):
    live = serve(texts=RANKER, max_prompt_tokens=12)
    body = {"model": "echo", "query": "left", "documents": ["red green blue one two three " * 3]}
    told = error_of(live.post("/v2/rerank", body), 413)["message"]
    assert "max_tokens_per_doc" in told
    live.post("/v2/rerank", {**body, "max_tokens_per_doc": 3}).raise_for_status()
    cut = vocabulary.decode(live.engine().submitted[-1].token_ids, skip_special_tokens=True)
    live.post("/rerank", {**body, "truncate_prompt_tokens": 5, "truncation_side": "right"}).raise_for_status()
    assert len(live.engine().submitted[-1].token_ids) == 5
    assert cut.startswith("left red")
    assert len(vocabulary(cut.removeprefix("left "), add_special_tokens=False)["input_ids"]) == 3


def test_rerank_in_the_words_of_text_embeddings_inference(serve, vocabulary):
    live = serve(texts=RANKER, default_model="echo", max_prompt_tokens=12)
    body = {
        "query": "left",
        "texts": ["red", "green", "blue one"],
        "raw_scores": False,
        "truncation_direction": "Right",
    }
    answer = live.post("/rerank", body).raise_for_status().json()
    plain = live.post("/rerank", {"query": "left", "documents": body["texts"]}).raise_for_status().json()
    assert answer == [{"index": row["index"], "score": row["relevance_score"]} for row in plain["results"]]
    raw = live.post("/rerank?model=echo", {**body, "raw_scores": True, "return_text": True}).raise_for_status().json()
    for row in raw:
        assert row["text"] == body["texts"][row["index"]]
        score = next(other["score"] for other in answer if other["index"] == row["index"])
        assert 1 / (1 + np.exp(-row["score"])) == pytest.approx(score)
    long = {**body, "texts": ["red green blue one two three " * 3]}
    assert '"truncate": true' in error_of(live.post("/rerank", long), 413)["message"]
    for direction, kept in (("Right", "left red green"), ("Left", "two three")):
        cut = {**long, "truncate": True, "truncation_direction": direction}
        live.post("/rerank", cut).raise_for_status()
        read = vocabulary.decode(live.engine().submitted[-1].token_ids, skip_special_tokens=True)
        assert kept in read
        assert len(live.engine().submitted[-1].token_ids) == 12


WHOLE = {"model": "echo", "query": [5], "items": [[7, 8]], "label_token_ids": [9, 6], "apply_softmax": False}


def test_prompts_that_are_read_twice_are_counted_once(serve):
    live = serve()
    live.post("/generative_scoring", WHOLE).raise_for_status()
    assert len(live.engine().submitted) == 2
    tokens = len(live.engine().submitted[0].token_ids)
    assert live.metric("vllm:prompt_tokens_total", model_name="echo") == tokens
    assert live.metric("vllm:request_success_total", model_name="echo", finished_reason="stop") == 1


def test_a_place_is_held_until_the_engine_is_done(serve):
    live = serve(timeout_s=0.3)
    engine = live.engine()
    engine.hold()
    assert live.post("/generative_scoring", WHOLE).status_code == 504
    queue = live.state.registry.lanes["echo"].queue
    assert queue.num_requests == 1
    engine.go()
    until(lambda: queue.num_requests == 0)


@pytest.mark.parametrize(
    ("reads", "given", "told"),
    [
        (
            "pairs",
            {"sentence1": "a", "sentense2": "b"},
            'missing "sentence2", the second text.*; did you mean "sentense2"',
        ),
        ("pairs", {"input": "a"}, 'missing "input_pair", the second text: this run reads pairs'),
        ("pairs", "a", 'missing "input_pair", the second text: this run reads pairs, "input" and "input_pair"'),
        (
            "texts",
            {"sentence1": "a", "sentence2": "b"},
            '"sentence2" is a second text, and this run reads single texts',
        ),
    ],
)
def test_rows_of_another_kind_than_the_run_was_trained_on_are_refused(serve, reads, given, told):
    live = serve(texts={"scoring": Scoring(reads=reads), "own_scoring": True})
    error = error_of(live.post("/score", {"model": "echo", "input": given}), 400)
    assert re.search(told, error["message"])
    assert error["param"] == "input"
    good = {"pairs": {"sentence1": "red", "sentence2": ""}, "texts": "red"}[reads]
    assert score(live, input=good)["usage"]["prompt_tokens"]


def test_a_run_of_single_texts_ranks_no_pairs(serve):
    live = serve(texts={"scoring": Scoring(reads="texts"), "own_scoring": True})
    body = {"model": "echo", "query": "red", "documents": ["blue", "green"]}
    assert "this run reads single texts" in error_of(live.post("/rerank", body), 400)["message"]
