"""`echo` with log-probabilities: what evaluation harnesses add up is the likelihood of a completion behind its context."""

from __future__ import annotations

import shutil

import openai
import pytest
import torch

from tests.conftest import SMALL
from tests.server.conftest import error_of, serving, settings_of
from workflow.models.load import load_seq2seq
from workflow.models.scratch import byte_vocabulary, make_model, write_scratch_model
from workflow.models.shapes import Shape
from workflow.server.loading import make_loader

CONTEXT, COMPLETION = "reverse red green", " green blue red"


@pytest.fixture(scope="module")
def models(tmp_path_factory, flan_like, bert_like):
    root = tmp_path_factory.mktemp("echoed") / "models"
    shutil.copytree(flan_like, root / "flan")
    tokenizer = byte_vocabulary()
    write_scratch_model(
        root / "bytes", make_model(Shape(**SMALL, first_version=False), tokenizer, seed=1), tokenizer, {}
    )
    return root


@pytest.fixture(scope="module")
def live(models):
    settings = settings_of(models, device="cpu", max_queued_tokens=20_000)
    with serving(settings, make_loader(settings)) as found:
        yield found


@pytest.fixture
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module", params=["flan", "bytes"])
def run(request, models):
    return request.param, load_seq2seq(str(models / request.param))


def ids_of(loaded, text):
    return loaded.tokenizer(text, add_special_tokens=False)["input_ids"]


def log_likelihood(loaded, context, completion):
    """By transformers: the encoder reads the context and its end, the decoder is given the completion."""
    source = torch.tensor([[*context, loaded.tokenizer.eos_token_id]])
    with torch.no_grad():
        logits = loaded.model.eval()(input_ids=source, labels=torch.tensor([completion])).logits[0]
    logprobs = logits.float().log_softmax(-1)
    is_greedy = logprobs.argmax(-1).tolist() == completion
    return float(logprobs[range(len(completion)), completion].sum()), is_greedy


def harness(choice, num_context):
    """As lm-evaluation-harness reads a choice: the last token is the one generated."""
    values = choice.logprobs.token_logprobs[num_context:-1]
    tops = choice.logprobs.top_logprobs[num_context:-1]
    return sum(values), all(value == max(top.values()) for value, top in zip(values, tops, strict=True))


def test_any_context_s_completion(client, run):
    name, loaded = run
    ids = ids_of(loaded, CONTEXT + COMPLETION)
    asked = {"model": name, "prompt": [ids, ids[:4]], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    made = client.completions.create(**asked, seed=1234)
    assert [choice.index for choice in made.choices] == [0, 1]
    for choice, row in zip(made.choices, (ids, ids[:4]), strict=True):
        assert len(choice.logprobs.token_logprobs) == len(row) + 1
        assert choice.logprobs.token_logprobs[0] is None
        for begin in range(1, len(row)):
            value, _ = harness(choice, begin)
            assert value == pytest.approx(log_likelihood(loaded, row[:begin], row[begin:])[0], abs=1e-4)


def test_a_single_word_that_decoding_would_write_is_greedy(client, models):
    """Whether a completion is the greedy one is exact for single words."""
    loaded = load_seq2seq(str(models / "flan"))
    context = ids_of(loaded, CONTEXT)
    spaced = [
        number for number in range(len(loaded.tokenizer)) if loaded.tokenizer.convert_ids_to_tokens(number)[0] == "▁"
    ]
    truths = set()
    for number in spaced:
        asked = {"prompt": [*context, number], "max_tokens": 1, "logprobs": 1, "echo": True}
        (choice,) = client.completions.create(model="flan", **asked).choices
        _, wanted = log_likelihood(loaded, context, [number])
        assert harness(choice, len(context))[1] == wanted
        truths.add(wanted)
    assert False in truths


@pytest.mark.parametrize("as_text", [False, True])
def test_behind_an_end_of_sequence_every_token_is_the_decoder_s(client, run, as_text):
    name, loaded = run
    end = loaded.tokenizer.eos_token_id
    ids = ids_of(loaded, f"{CONTEXT}</s>{COMPLETION}")
    begin = ids.index(end) + 1
    prompt = f"{CONTEXT}</s>{COMPLETION}" if as_text else ids
    asked = {"model": name, "prompt": prompt, "max_tokens": 0, "logprobs": 2, "echo": True}
    (choice,) = client.completions.create(**asked).choices
    values, tops = choice.logprobs.token_logprobs, choice.logprobs.top_logprobs
    assert values[:begin] == tops[:begin] == [None] * begin
    wanted, _ = log_likelihood(loaded, ids[: begin - 1], ids[begin:])
    assert sum(values[begin:]) == pytest.approx(wanted, abs=1e-4)
    assert all(value <= 0 and len(top) in (2, 3) for value, top in zip(values[begin:], tops[begin:], strict=True))
    assert choice.finish_reason == "length"


@pytest.mark.parametrize("prompt", ["reverse red green", "naïve  «€» {red}\nblue ", "red"])
@pytest.mark.parametrize("stream", [False, True])
def test_prompt_and_answer_are_one_text(client, run, prompt, stream):
    name, _ = run
    asked = {"model": name, "prompt": prompt, "max_tokens": 5, "n": 2, "temperature": 1, "seed": 3, "logprobs": 1}
    plain = client.completions.create(**asked).choices
    made = client.completions.create(**asked, echo=True, stream=stream)
    parts = [part for event in made for part in event.choices] if stream else made.choices
    for choice in plain:
        mine = [part for part in parts if part.index == choice.index]
        text = "".join(part.text for part in mine)
        assert text == prompt + choice.text
        tokens = [token for part in mine for token in part.logprobs.tokens]
        offsets = [offset for part in mine for offset in part.logprobs.text_offset]
        assert b"".join(map(_bytes, tokens)) == text.encode()
        for token, offset in zip(tokens, offsets, strict=True):
            assert token.startswith("bytes:") or text[offset : offset + len(token)] == token


def _bytes(token):
    if token.startswith("bytes:"):
        return bytes(int(part, 16) for part in token.removeprefix("bytes:").split("\\x")[1:])
    return token.encode()


def test_an_echo_without_logprobs(client, live):
    (choice,) = client.completions.create(model="flan", prompt="red green", max_tokens=0, echo=True).choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == ("red green", "length", None)
    body = {"model": "flan", "prompt": "red", "max_tokens": 0}
    assert "echo" in error_of(live.post("/v1/completions", body), 400)["message"]


def test_long_prompts_are_refused_by_what_they_cost(live):
    body = {"model": "flan", "prompt": "red " * 200, "max_tokens": 1, "logprobs": 1, "echo": True}
    assert "max_queued_tokens" in error_of(live.post("/v1/completions", body), 400)["message"]
