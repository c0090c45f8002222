"""The range test: its rates, when it ends, what it suggests, and its figure."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from workflow.errors import Stopped
from workflow.evaluation.range_plot import write_range_plot
from workflow.evaluation.range_test import RangeTest
from workflow.training.schedule import range_test_rate
from workflow.training.trainer import Fault, Update


def test_rates_rise_by_equal_factors():
    rates = [range_test_rate(step, low=1e-6, high=1e-1, steps=51) for step in range(1, 52)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[-1] == pytest.approx(1e-1)
    assert all(after / before == pytest.approx(10**0.1) for before, after in zip(rates, rates[1:], strict=False))
    assert range_test_rate(1, low=1e-3, high=1.0, steps=1) == 1e-3


def valley(steps=200) -> RangeTest:
    """A loss that falls fastest at 1e-4, is least near 1e-2, and rises after it."""
    found = RangeTest()
    for step in range(1, steps + 1):
        rate = range_test_rate(step, low=1e-7, high=1.0, steps=steps)
        power = math.log10(rate)
        found.add(rate, 2 - math.tanh(2 * (power + 4)) + 0.5 * max(0.0, power + 2) ** 2)
    return found


def test_suggestions_are_by_their_conventions():
    steepest, least = valley().suggestions()
    assert 0.7e-4 < steepest.rate < 3e-4  # the mean comes some updates late
    assert 0.5e-3 < least.rate < 2e-3
    assert RangeTest().suggestions() == []
    rising = RangeTest()
    for step in range(20):
        rising.add(10.0 ** (step - 20), 1.0 + step)
    assert rising.suggestions() == []


def test_the_mean_has_no_bias_and_four_times_the_least_ends_it():
    found = RangeTest()
    for _ in range(5):
        found.add(1e-3, 2.0)
    assert found.smoothed == pytest.approx([2.0] * 5)
    found.add(1e-3, 8.0)
    assert not found.has_diverged
    found.add(1e-3, 100.0)
    assert found.has_diverged


UPDATE = Update(
    step=1, loss=1.0, grad_norm=1.0, lr=1e-3, examples=1, source_tokens=1, target_tokens=1, flops=0.0, seconds=1.0
)


def test_updates_end_where_the_loss_does():
    from workflow.recipe.lr_find import watch

    said: list[str] = []
    losses = {1: 1.0, 2: 0.9, 3: math.nan}
    found = watch(lambda step: replace(UPDATE, loss=losses[step]), 10, say=said.append)
    assert found.losses == [1.0, 0.9]
    assert said[-1] == "stopped at update 3 of 10: the loss has diverged"
    found = watch(lambda step: replace(UPDATE, skipped=Fault("x", ()) if step == 2 else None), 10, say=said.append)
    assert len(found.losses) == 1
    with pytest.raises(Stopped):
        watch(lambda step: replace(UPDATE, stop=15), 10, say=said.append)


def test_the_figure_is_the_same_again(tmp_path):
    found = valley(40)
    for folder in ("a", "b"):
        write_range_plot(
            tmp_path / folder, found.rates, found.losses, found.smoothed, found.suggestions(), title="\u6f22 t"
        )
    assert (tmp_path / "a/lr_find.svg").read_bytes() == (tmp_path / "b/lr_find.svg").read_bytes()
    assert (tmp_path / "a/lr_find.png").read_bytes()[:4] == b"\x89PNG"
    write_range_plot(tmp_path / "none", [], [], [], [], title="nothing")
