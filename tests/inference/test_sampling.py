"""Draws follow the filtered softmax, belong to (seed, sample, position), and penalties do what their papers say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from workflow.inference.sampling import SamplingParams, changed_logits, draw, keep_typical, likely_tokens, uniform


def test_draws_follow_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    params = SamplingParams(1, temperature=1.0)
    draws = torch.tensor([draw(logits, params, seed=seed, sample=0, position=1) for seed in range(4000)])
    shares = torch.bincount(draws, minlength=4) / len(draws)
    assert torch.allclose(shares, logits.softmax(-1), atol=0.03)


@given(
    st.lists(st.integers(-64, 64).map(lambda number: number / 8), min_size=2, max_size=12, unique=True),
    st.floats(0.1, 3),
    st.integers(0, 12),
    st.one_of(st.floats(0.05, 0.99), st.just(1.0)),
    st.sampled_from([0.0, 0.1, 0.5]),
)
@settings(max_examples=200, deadline=None)
def test_filters_are_those_of_transformers(values, temperature, top_k, top_p, min_p):
    logits = torch.tensor(values)
    params = SamplingParams(1, temperature=temperature, top_k=top_k, top_p=top_p)
    expected = TemperatureLogitsWarper(temperature)(None, logits[None])
    if 0 < top_k < len(values):
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    tokens, shares = likely_tokens(logits, params)
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    # At the border of the nucleus the two sum in another order: one token may differ there.
    assert len(drawn(tokens, shares, logits / temperature) ^ drawn_by(expected[0], logits / temperature)) <= 1
    params = SamplingParams(1, temperature=temperature, min_p=min_p)
    tokens, shares = likely_tokens(logits, params)
    warped = MinPLogitsWarper(min_p)(None, (logits / temperature)[None]) if min_p else logits[None]
    assert len(drawn(tokens, shares, logits / temperature) ^ drawn_by(warped[0], logits / temperature)) <= 1


def drawn(tokens, shares, scaled) -> set[int]:
    """Tokens that may be drawn, but for those whose share may be rounded to nothing."""
    return set(tokens[(shares > 0) & (scaled.softmax(-1) > 1e-20)[tokens]].tolist())


def drawn_by(warped, scaled) -> set[int]:
    return set((warped.isfinite() & (scaled.softmax(-1) > 1e-20)).nonzero()[:, 0].tolist())


def test_penalties():
    logits = torch.tensor([2.0, -2.0, 1.0, 0.5])
    params = SamplingParams(9, repetition_penalty=1.5)
    theirs = RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([[0, 1, 1]]), logits[None].clone())[0]
    assert changed_logits(logits, params, [0, 1, 1], end_token=3).tolist() == pytest.approx(theirs.tolist())
    params = SamplingParams(9, presence_penalty=0.5, frequency_penalty=0.25)
    assert changed_logits(logits, params, [0, 1, 1], end_token=3).tolist() == pytest.approx([1.25, -3.0, 1.0, 0.5])
    params = SamplingParams(9, logit_bias=((2, 7.0),), min_new_tokens=2)
    assert changed_logits(logits, params, [0], end_token=3).tolist() == pytest.approx([2.0, -2.0, 8.0, -torch.inf])
    assert changed_logits(logits, params, [0, 0], end_token=3)[3] == 0.5
    assert logits.tolist() == [2.0, -2.0, 1.0, 0.5], "the given logits stay"


def test_numbers_belong_to_seed_sample_and_position():
    numbers = [uniform(seed, sample, position) for seed in range(9) for sample in range(9) for position in range(9)]
    assert len(set(numbers)) == 9**3
    assert all(0 <= number < 1 for number in numbers)
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.04
    assert uniform(3, 1, 4) == 0.7483332667564667, "texts of a seed must not change between releases"


def test_temperatures_below_a_hundredth_are_greedy():
    assert SamplingParams(1, temperature=0.001).greedy
    assert not SamplingParams(1, temperature=0.01).greedy


@pytest.mark.parametrize("mass", [0.2, 0.5, 0.9, 0.999])
def test_typical_tokens_are_those_of_transformers(mass):
    for seed in range(5):
        logits = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 3
        wanted = TypicalLogitsWarper(mass)(torch.zeros(1, 1, dtype=torch.long), logits[None])[0].softmax(dim=-1)
        shares = logits.softmax(dim=-1)
        keep_typical(shares, mass)
        assert torch.allclose(shares / shares.sum(), wanted, atol=1e-6)


def test_only_typical_tokens_are_drawn():
    """The most likely token may be none of them."""
    logits = torch.tensor([0.4, 0.2, 0.2, 0.2]).log()
    params = SamplingParams(1, temperature=1.0, typical_p=0.5)
    drawn = {draw(logits, params, seed=seed, sample=0, position=0) for seed in range(40)}
    assert drawn <= {1, 2, 3}
    assert len(drawn) > 1
    both = SamplingParams(1, temperature=1.0, typical_p=0.5, top_k=1)
    assert draw(logits, both, seed=1, sample=0, position=0) == 0
