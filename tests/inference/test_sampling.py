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

from workflow.inference import sampling
from workflow.inference.sampling import (
    SamplingParams,
    changed_logits,
    draw,
    keep_likely,
    keep_typical,
    pick,
    shares_of,
    uniform,
)


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
    # At the border of the nucleus the two sum in another order: one token may differ there.
    assert len(drawn(logits, params) ^ drawn_by(expected[0], logits / temperature)) <= 1
    params = SamplingParams(1, temperature=temperature, min_p=min_p)
    warped = MinPLogitsWarper(min_p)(None, (logits / temperature)[None]) if min_p else logits[None]
    assert len(drawn(logits, params) ^ drawn_by(warped[0], logits / temperature)) <= 1


def drawn(logits, params) -> set[int]:
    """Tokens that may be drawn, but for those whose share may be rounded to nothing."""
    shares = shares_of(logits[None], [params.temperature])[0, : len(logits)]
    keep_likely(shares, params)
    return set(((shares > 0) & ((logits / params.temperature).softmax(-1) > 1e-20)).nonzero()[:, 0].tolist())


def drawn_by(warped, scaled) -> set[int]:
    return set((warped.isfinite() & (scaled.softmax(-1) > 1e-20)).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("spread", [0.0, 1e-4, 1.0, 8.0])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.9999])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_a_sort(spread, top_p):
    logits = spread * torch.randn(5003, generator=torch.Generator().manual_seed(3))
    shares = shares_of(logits[None], [1.0])[0, :5003]
    ordered, order = shares.double().sort(descending=True, stable=True)
    needed = order[ordered.cumsum(0) - ordered < top_p * ordered.sum()]
    keep_likely(shares, SamplingParams(1, temperature=1.0, top_p=top_p))
    assert abs(int((shares > 0).sum()) - len(needed)) <= 1
    assert set((shares > 0).nonzero()[:, 0].tolist()) ^ set(needed.tolist()) <= {int(needed[-1])}


def test_a_draw_does_not_depend_on_the_rows_beside_it():
    logits = 3 * torch.randn(9, 1003, generator=torch.Generator().manual_seed(5))
    temperatures = [0.5 + row / 7 for row in range(9)]
    numbers = [uniform(7, row, 2) for row in range(9)]
    together = shares_of(logits, temperatures)
    alone = [shares_of(logits[row : row + 1], temperatures[row : row + 1]) for row in range(9)]
    assert all(torch.equal(together[row], alone[row][0]) for row in range(9))
    assert pick(together, numbers) == [pick(found, [number])[0] for found, number in zip(alone, numbers, strict=True)]


@pytest.mark.parametrize("number", [0.0, 0.25, 0.5, 1 - 2**-53])
def test_what_has_no_share_is_never_drawn(number):
    shares = torch.zeros(1, 4 * sampling.BLOCK)
    possible = [3, sampling.BLOCK - 1, 2 * sampling.BLOCK + 5]
    shares[0, possible] = torch.tensor([0.2, 1e-12, 0.3])
    assert pick(shares, [number])[0] in possible
    cumulative = shares[0].double().cumsum(0)
    expected = min(int((cumulative <= number * cumulative[-1]).sum()), possible[-1])
    assert pick(shares, [number])[0] == expected


def test_nothing_is_sorted_without_a_filter(monkeypatch):
    """A sort of 32,000 numbers takes longer than a small model's step."""
    for name in ("sort", "topk", "argsort"):
        monkeypatch.setattr(torch.Tensor, name, None)
    logits = torch.randn(32128, generator=torch.Generator().manual_seed(1))
    draw(logits, SamplingParams(1, temperature=1.0), seed=1, sample=0, position=0)
    draw(logits, SamplingParams(1, temperature=1.0, min_p=0.1), seed=1, sample=0, position=0)


def test_a_nucleus_sorts_its_border_alone(monkeypatch):
    sizes = []
    real = torch.Tensor.sort

    def sort(tensor, *args, **more):
        sizes.append(len(tensor))
        return real(tensor, *args, **more)

    monkeypatch.setattr(torch.Tensor, "sort", sort)
    logits = torch.randn(32128, generator=torch.Generator().manual_seed(1))
    draw(logits, SamplingParams(1, temperature=1.0, top_p=0.9), seed=1, sample=0, position=0)
    assert len(sizes) == 1
    assert sizes[0] < 2000


def test_penalties():
    logits = torch.tensor([2.0, -2.0, 1.0, 0.5])
    params = SamplingParams(9, repetition_penalty=1.5)
    theirs = RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([[0, 1, 1]]), logits[None].clone())[0]
    assert changed_logits(logits, params, [0, 1, 1], end_tokens=(3,)).tolist() == pytest.approx(theirs.tolist())
    params = SamplingParams(9, presence_penalty=0.5, frequency_penalty=0.25)
    assert changed_logits(logits, params, [0, 1, 1], end_tokens=(3,)).tolist() == pytest.approx([1.25, -3.0, 1.0, 0.5])
    params = SamplingParams(9, logit_bias=((2, 7.0),), min_new_tokens=2)
    assert changed_logits(logits, params, [0], end_tokens=(3,)).tolist() == pytest.approx([2.0, -2.0, 8.0, -torch.inf])
    assert changed_logits(logits, params, [0, 0], end_tokens=(3,))[3] == 0.5
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
