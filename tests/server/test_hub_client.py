"""`huggingface_hub.InferenceClient`, unchanged, speaks to the root, to /generate and to /generate_stream."""

from __future__ import annotations

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient

from tests.server.conftest import FakeLoader, serving, settings_of, write_checkpoint


@pytest.fixture(autouse=True)
def _no_hub_needed(monkeypatch):
    """The client's own offline switch would refuse every address, this machine's too."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def live(tmp_path_factory, vocabulary):
    models = tmp_path_factory.mktemp("served") / "models"
    write_checkpoint(models / "echo" / "checkpoint-best-ckpt")
    with serving(settings_of(models), FakeLoader(vocabulary)) as found:
        yield found


@pytest.fixture(params=["", "/generate?model=echo"])
def client(request, live):
    return InferenceClient(model=live.url + request.param)


def test_a_text(client):
    assert client.text_generation("red green", max_new_tokens=20) == "red green"


def test_details(client):
    made = client.text_generation("red green", details=True, seed=3, top_n_tokens=1, do_sample=True)
    assert made.generated_text == "red green"
    assert made.details.finish_reason == "eos_token"
    assert made.details.seed == 3
    assert made.details.generated_tokens == len(made.details.tokens)


@pytest.mark.parametrize("route", ["", "/generate_stream"])
def test_a_stream(live, route):
    client = InferenceClient(model=live.url + route)
    assert "".join(client.text_generation("red green blue", stream=True)) == "red green blue"
    *_, last = client.text_generation("red green blue", stream=True, details=True, max_new_tokens=2)
    assert last.details.finish_reason == "length"
    assert last.details.generated_tokens == 2


@pytest.mark.parametrize("stream", [False, True])
def test_errors(live, stream):
    client = InferenceClient(model=live.url)
    with pytest.raises(Exception, match=r"watermark|400"):
        list(client.text_generation("red", watermark=True, stream=stream))


def test_the_asynchronous_client(live):
    import asyncio

    async def ask():
        async with AsyncInferenceClient(model=live.url) as client:
            pieces = [piece async for piece in await client.text_generation("red green", stream=True)]
            return await client.text_generation("red green"), "".join(pieces)

    assert asyncio.run(ask()) == ("red green", "red green")
