"""Both clients against a live server: answers, streams, errors, keys."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import socket
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.server.conftest import until
from workflow import AsyncClient, Client
from workflow import client as package
from workflow.client import ClientError, KeyRefused, NoAnswer, NotFound, RequestRefused, ServerFailed, answers
from workflow.client.wire import Sampling
from workflow.errors import ConfigError, WorkflowError
from workflow.server import openai_schemas, ranking_schemas, schemas

# ---- answers


def test_generate(client, live):
    answer = client.generate("red green", model="echo", n=2, logprobs=1, seed=3, stop=["blue"], logit_bias={5: -1.0})
    assert answer.text == "red green"
    assert [made.index for made in answer.generations] == [0, 1]
    assert answer.generations[0].finish_reason == "stop"
    assert answer.generations[0].logprobs[0].top[0].logprob == -0.5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    params = live.engine().submitted[-1].params
    assert (params.n, params.stop, params.logit_bias) == (2, ("blue",), ((5, -1.0),))


def test_generate_several(client):
    answer = client.generate(["red", "blue green"], model="echo")
    assert answer.texts == ["red", "blue green"]
    assert answer.model == "echo"


def test_a_stream(client):
    pieces = list(client.generate_stream("red green blue", model="echo", max_new_tokens=20, seed=9))
    assert "".join(piece.text for piece in pieces) == "red green blue"
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert (pieces[-1].num_tokens, pieces[-1].seed) == (len(pieces), 9)


def test_a_stream_that_is_left_ends_on_the_server(connect, serve):
    live = serve(engine={"step_s": 0.02, "endless": True})
    stream = connect(live.url).generate_stream("red green", model="echo")
    next(stream)
    stream.close()
    until(lambda: live.load.engines["echo"].cancelled)


def test_score(client, live):
    answer = client.score("red green", model="echo")
    assert dataclasses.asdict(answer) == live.post("/score", {"model": "echo", "input": "red green"}).json()
    given = client.score({"a": "red"}, model="echo", labels=["red", "blue", "left"], template="one {a}")
    assert given.labels == ["red", "blue", "left"]
    assert len(given.probabilities) == 3


def test_score_several(client):
    answer = client.score(["red", {"sentence1": "one", "sentence2": "two"}], model="echo")
    assert answer.results[0] == client.score("red", model="echo")
    assert len(answer.results) == 2


def test_rerank(client):
    answer = client.rerank("red", ["one", "two", "three"], model="echo", top_n=2)
    assert [found.document.text for found in answer.results] == [
        ["one", "two", "three"][found.index] for found in answer.results
    ]
    assert len(answer.results) == 2
    assert client.rerank("red", ["one"], model="echo", return_documents=False).results[0].document is None


def test_models_and_info(client, live):
    assert {model.id for model in client.models()} == {"echo", "other"}
    live.engine()
    info = client.info()
    assert {run.name: run for run in info.models}["echo"].can_generate is True
    assert info.bounds["max_n"] == 32


def test_health(client, connect, serve):
    assert (client.health().ok, client.health().status, client.ready().status) == (True, "ok", "ready")
    live = serve(preload=["echo"], grace_s=1)
    until(lambda: connect(live.url).ready().ok)
    live.state.dead = True
    assert connect(live.url).health() == answers.Health(ok=False, status="dead")


# ---- errors


@pytest.mark.parametrize(
    ("ask", "kind", "status", "param", "code"),
    [
        (lambda c: c.generate("red", model="ecko"), NotFound, 404, "model", "model_not_found"),
        (lambda c: c.generate("red", model="echo", n=99), RequestRefused, 400, "n", "invalid_request"),
        (lambda c: c.generate("red " * 600, model="echo"), RequestRefused, 413, None, "prompt_too_long"),
        (lambda c: c.score("red", model="echo", labels=["no", "maybe not"]), RequestRefused, 400, "labels", None),
        (lambda c: list(c.generate_stream("", model="echo")), RequestRefused, 400, "prompt", "invalid_request"),
        (lambda c: c.generate("wrong", model="echo"), ServerFailed, 500, None, "engine_failed"),
        (lambda c: c.generate("red"), RequestRefused, 400, "model", "model_required"),
        (lambda c: c.score("\ud800", model="echo"), RequestRefused, 400, None, "invalid_json"),
    ],
)
def test_errors_are_the_server_s_words(client, ask, kind, status, param, code):
    with pytest.raises(kind) as caught:
        ask(client)
    error = caught.value
    assert (error.status, error.param) == (status, param)
    assert code in (None, error.code)
    assert error.message == str(error)
    assert error.type
    assert error.request_id
    assert isinstance(error, WorkflowError)


def test_an_error_within_a_stream(client):
    with pytest.raises(ServerFailed, match="engine failed") as caught:
        list(client.generate_stream("wrong", model="echo"))
    assert caught.value.status == 200


def test_what_is_no_json_is_not_sent(client):
    with pytest.raises(ClientError, match="JSON"):
        client.generate("red", model="echo", temperature=float("nan"))


def test_nobody_there(connect):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(NoAnswer):
        connect(url).models()


def test_too_late(connect, serve):
    live = serve()
    live.engine().hold()
    with pytest.raises(NoAnswer, match="in time"):
        connect(live.url, timeout_s=0.2).generate("red", model="echo")
    live.engine().go()


# ---- keys


def test_keys(connect, serve, tmp_path, monkeypatch):
    (tmp_path / "keys").write_text("a-good-key\n")
    live = serve(api_key_file=str(tmp_path / "keys"))
    with pytest.raises(KeyRefused) as caught:
        connect(live.url, api_key="a-wrong-key").models()
    assert "a-wrong-key" not in repr(caught.value) + str(caught.value)
    assert connect(live.url, api_key="a-good-key\n").models()
    monkeypatch.setenv("WORKFLOW_API_KEY", "a-good-key")
    assert connect(live.url).models()
    with pytest.raises(KeyRefused):
        connect(live.url, api_key="").models()
    assert connect(live.url).health().ok


def test_keys_are_nowhere_to_be_seen(connect, live, caplog):
    caplog.set_level(logging.DEBUG)
    client = connect(live.url, api_key="a-secret-key")
    client.generate("red", model="echo")
    assert "a-secret-key" not in caplog.text + repr(client)
    with pytest.raises(ConfigError) as caught:
        connect(live.url, api_key="a-secret-key\r\nX: y")
    assert "a-secret-key" not in str(caught.value)


# ---- in step with the server, and with each other


@pytest.mark.parametrize(
    ("ours", "theirs", "without"),
    [
        (answers.GenerateAnswer, schemas.GenerateAnswer, set()),
        (answers.GenerateAnswers, schemas.GenerateAnswers, set()),
        (answers.Generation, schemas.Generation, set()),
        (answers.TokenLogprobs, schemas.TokenLogprobs, set()),
        (answers.ScoreAnswer, schemas.ScoreAnswer, set()),
        (answers.ScoreAnswers, schemas.ScoreAnswers, set()),
        (answers.RerankAnswer, ranking_schemas.RerankAnswer, {"meta"}),
        (answers.RankedDocument, ranking_schemas.RankedDocument, set()),
        (answers.Model, openai_schemas.ModelCard, {"object", "owned_by"}),
        (answers.Info, schemas.InfoAnswer, set()),
        (answers.Run, schemas.ModelRow, set()),
        (answers.Usage, schemas.Usage, set()),
    ],
)
def test_answers_have_the_server_s_fields(ours, theirs, without):
    assert {field.name for field in dataclasses.fields(ours)} == set(theirs.model_fields) - without


def test_sampling_has_the_server_s_fields():
    assert set(Sampling.__annotations__) == set(schemas.Sampling.model_fields)


def test_both_clients_have_the_same_methods():
    def methods(kind):
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in vars(kind).items()
            if inspect.isfunction(method) and not name.startswith("__")
        }

    ours, theirs = methods(Client), methods(AsyncClient)
    ours["aclose"] = ours.pop("close")
    assert ours == theirs


def test_the_package_is_light_until_a_client_is_wanted():
    code = (
        "import sys, workflow\n"
        "assert not {'httpx', 'pydantic', 'torch'} & set(sys.modules)\n"
        "from workflow import Client\n"
        "assert 'httpx' in sys.modules and 'torch' not in sys.modules and 'fastapi' not in sys.modules\n"
        "assert Client is workflow.client.Client\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    with pytest.raises(AttributeError, match="Cleint"):
        import workflow

        workflow.Cleint  # noqa: B018
    assert set(package.__all__) <= set(dir(package))


def test_clients_are_context_managers(live):
    import asyncio

    with Client(live.url) as client:
        assert client.health().ok

    async def ask():
        async with AsyncClient(live.url) as client:
            return [piece.text async for piece in client.generate_stream("red green", model="echo")]

    assert "".join(asyncio.run(ask())) == "red green"
