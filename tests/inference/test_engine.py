"""The engine: greedy answers equal transformers', samples belong to their request, scores come from raw logits."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import example_rows
from workflow.inference.engine import Request, TransformersEngine, generate_all
from workflow.inference.sampling import SamplingParams, choose, gumbel_noise, keep_likely
from workflow.models.load import load_seq2seq
from workflow.models.verbalizers import no_yes_tokens


@pytest.fixture(scope="module")
def loaded(flan_like):
    return load_seq2seq(str(flan_like))


@pytest.fixture(scope="module")
def engine(loaded):
    return TransformersEngine(loaded.model, loaded.tokenizer, label_tokens=no_yes_tokens(loaded.tokenizer))


@pytest.fixture(scope="module")
def requests(loaded):
    return [
        Request(loaded.tokenizer(row["prompt"]).input_ids, seed=number) for number, row in enumerate(example_rows(9))
    ]


def test_greedy_equals_transformers(engine, loaded, requests):
    results = generate_all(engine, requests, SamplingParams(max_new_tokens=12), batch_size=4)
    for request, result in zip(requests, results, strict=True):
        with torch.no_grad():
            ids = (
                loaded.model.eval()
                .generate(input_ids=torch.tensor([request.token_ids]), max_new_tokens=12, do_sample=False)[0, 1:]
                .tolist()
            )
        ids = ids[: ids.index(1)] if 1 in ids else ids
        assert list(result.generations[0].token_ids) == ids
        assert result.generations[0].finish_reason == ("stop" if len(ids) < 12 else "length")


def test_scores_are_of_raw_logits(engine, loaded, requests):
    """S4: whatever the sampling, the scores are a softmax over the raw first logits of no and yes."""
    for params in (SamplingParams(3), SamplingParams(3, temperature=2.0, top_k=2), SamplingParams(3, num_beams=3)):
        for request, result in zip(requests[:4], generate_all(engine, requests[:4], params, batch_size=3), strict=True):
            with torch.no_grad():
                logits = loaded.model.eval()(
                    input_ids=torch.tensor([request.token_ids]), decoder_input_ids=torch.tensor([[0]])
                ).logits[0, 0]
            expected = logits[list(no_yes_tokens(loaded.tokenizer))].softmax(0)
            assert result.scores == pytest.approx(expected.tolist(), abs=1e-5)
            assert sum(result.scores) == pytest.approx(1)


def test_samples_belong_to_their_request(engine, requests):
    params = SamplingParams(8, temperature=1.5, n=3, top_p=0.95)
    together = generate_all(engine, requests, params, batch_size=9)
    alone = [generate_all(engine, [request], params, batch_size=1)[0] for request in requests]
    backwards = generate_all(engine, requests[::-1], params, batch_size=2)[::-1]
    texts = [[generation.token_ids for generation in result.generations] for result in together]
    assert texts == [[generation.token_ids for generation in result.generations] for result in alone]
    assert texts == [[generation.token_ids for generation in result.generations] for result in backwards]
    assert len({ids for answers in texts for ids in answers}) > 9, "samples differ"


def test_beams(engine, loaded, requests):
    result = engine.generate(requests[:2], SamplingParams(6, num_beams=4))
    with torch.no_grad():
        ids = loaded.model.generate(
            input_ids=torch.tensor([requests[0].token_ids]), max_new_tokens=6, num_beams=4, do_sample=False
        )[0, 1:]
    assert list(result[0].generations[0].token_ids) == [token for token in ids.tolist() if token > 1]


def test_no_requests_and_missing_batches(engine, requests):
    assert engine.generate([], SamplingParams(2)) == []
    assert len(generate_all(engine, requests[:3], SamplingParams(2), batch_size=2, num_batches=5)) == 3


def test_training_mode_is_restored(engine, loaded, requests):
    loaded.model.train()
    engine.generate(requests[:1], SamplingParams(2))
    assert loaded.model.training


def test_without_label_tokens_there_are_no_scores(loaded, requests):
    engine = TransformersEngine(loaded.model, loaded.tokenizer, label_tokens=None)
    assert engine.generate(requests[:1], SamplingParams(2))[0].scores is None


def test_draws_follow_the_softmax():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    params = SamplingParams(1, temperature=1.0)
    draws = torch.stack([choose(logits, params, [(seed, 0)], position=1).argmax() for seed in range(4000)])
    shares = torch.bincount(draws, minlength=4) / len(draws)
    assert torch.allclose(shares, logits.softmax(-1)[0], atol=0.03)


def test_filters():
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    assert keep_likely(logits, top_k=2, top_p=1.0).isfinite().tolist() == [[False, True, True, False]]
    assert keep_likely(logits, top_k=0, top_p=0.5).isfinite().tolist() == [[False, True, False, False]]
    assert keep_likely(logits, top_k=0, top_p=0.7).isfinite().tolist() == [[False, True, True, False]]
    assert keep_likely(logits, top_k=0, top_p=1.0).equal(logits)


def test_noise_depends_on_seed_sample_and_position():
    keys = [(1, 0), (1, 1), (2, 0)]
    noise = gumbel_noise(keys, 3, 5)
    assert noise[1].equal(gumbel_noise([(1, 1)], 3, 5)[0])
    assert len({tuple(row) for row in noise.tolist()}) == 3
    assert not noise.equal(gumbel_noise(keys, 4, 5))


def test_temperatures_below_a_hundredth_are_greedy():
    assert SamplingParams(1, temperature=0.001).greedy
    assert not SamplingParams(1, temperature=0.01).greedy
