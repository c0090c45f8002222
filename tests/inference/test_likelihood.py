"""Likelihoods of given answers are transformers', whoever shares their pass."""

from __future__ import annotations

import pytest
import torch

from workflow.inference.batch import generate_all
from workflow.inference.engine import T5Engine
from workflow.inference.requests import GenerateRequest, Job, LikelihoodRequest, Result, ScoreRequest
from workflow.inference.sampling import SamplingParams
from workflow.models.load import load_seq2seq

PAIRS = [([5, 9, 12, 1], [7, 8, 1]), ([4, 1], [30]), ([6, 7, 8, 9, 10, 11, 1], [1, 5, 5, 5, 40])]


@pytest.fixture(scope="module", params=["flan_like", "t5_like"])
def loaded(request):
    found = load_seq2seq(str(request.getfixturevalue(request.param)))
    found.model.eval()
    return found


def run(engine, requests):
    outcomes = [None] * len(requests)

    def keep(number):
        return lambda outcome: outcomes.__setitem__(number, outcome)

    for number, request in enumerate(requests):
        engine.submit(Job(request, on_done=keep(number)))
    while engine.step():
        pass
    return outcomes


@pytest.mark.parametrize("fuse", [False, True])
def test_they_are_those_of_transformers(loaded, fuse):
    engine = T5Engine(loaded.model, loaded.tokenizer, label_tokens=(3, 4), fuse=fuse)
    requests = [LikelihoodRequest(source, completion=target, num_top=2) for source, target in PAIRS]
    others = [ScoreRequest([4, 5, 1]), GenerateRequest([4, 5, 1], SamplingParams(3))]
    found = run(engine, [*requests, *others])
    assert isinstance(found[-2], tuple)
    assert isinstance(found[-1], Result)
    for (source, target), result in zip(PAIRS, found, strict=False):
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([source]), labels=torch.tensor([target])).logits[0]
        wanted = logits.float().log_softmax(-1)
        (made,) = result.generations
        assert made.token_ids == tuple(target)
        for place, token in enumerate(made.logprobs):
            assert token.token_id == target[place]
            assert token.logprob == pytest.approx(float(wanted[place, target[place]]), abs=2e-5)
            assert [number for number, _ in token.top] == wanted[place].topk(2).indices.tolist()


def test_greedy_answers_have_the_likelihood_that_decoding_told(loaded):
    engine = T5Engine(loaded.model, loaded.tokenizer)
    (made,) = generate_all(engine, [GenerateRequest([5, 9, 1], SamplingParams(6, logprobs=1))])
    told = made.generations[0].logprobs
    completion = [token.token_id for token in told]
    (given,) = run(engine, [LikelihoodRequest([5, 9, 1], completion=completion, num_top=1)])
    for one, other in zip(given.generations[0].logprobs, told, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=2e-5)


def test_an_answer_is_needed(loaded):
    with pytest.raises(ValueError, match="answer"):
        T5Engine(loaded.model, loaded.tokenizer).submit(Job(LikelihoodRequest([5, 1]), on_done=print))
