"""The division of an update: every row once, within the limits, in as many calls on every rank, and evenly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow.data.division import MicroBatchLimits, divide

LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=40)
LIMITS = st.builds(
    MicroBatchLimits, st.none() | st.integers(1, 9), st.none() | st.integers(1, 200), padded=st.booleans()
)


def columns(lengths):
    return (np.array(column, np.int32) for column in zip(*lengths, strict=True))


@given(LENGTHS, st.integers(1, 5), LIMITS)
def test_every_row_once_within_the_limits_in_equal_calls(lengths, world_size, limits):
    sources, targets = columns(lengths)
    hands = divide(100 + np.arange(len(lengths)), sources, targets, world_size=world_size, limits=limits)
    parts = [part for hand in hands for part in hand]
    assert sorted(row for part in parts for row in part) == list(range(100, 100 + len(lengths)))
    assert len(hands) == world_size
    assert len({len(hand) for hand in hands}) == 1
    for part in parts:
        assert limits.rows is None or len(part) <= limits.rows
        found = [lengths[row - 100] for row in part]
        sizes = [sum(pair) for pair in found]
        widest = max((a for a, _ in found), default=0) + max((b for _, b in found), default=0)
        computed = len(part) * widest if limits.padded else sum(sizes)
        assert len(part) <= 1 or limits.tokens is None or computed <= limits.tokens


@given(LENGTHS, st.integers(1, 5), LIMITS)
def test_it_is_a_function_of_the_lengths(lengths, world_size, limits):
    once, again = (
        divide(np.arange(len(lengths)), *columns(lengths), world_size=world_size, limits=limits) for _ in range(2)
    )
    assert once == again


def test_no_more_calls_than_the_examples_need():
    ones = np.ones(64, np.int32)
    assert len(divide(np.arange(64), ones, ones, world_size=4, limits=MicroBatchLimits(rows=4))[0]) == 4
    assert len(divide(np.arange(64), ones, ones, world_size=4, limits=MicroBatchLimits())[0]) == 1
    skewed = np.arange(1, 65, dtype=np.int32) ** 2
    assert len(divide(np.arange(64), skewed, ones, world_size=4, limits=MicroBatchLimits(rows=16))[0]) == 1


@pytest.mark.parametrize("limits", [MicroBatchLimits(rows=4), MicroBatchLimits(tokens=9000), MicroBatchLimits()])
def test_costs_are_balanced_over_ranks(limits):
    sources, targets = np.arange(1, 65, dtype=np.int32), np.ones(64, np.int32)
    costs = sources.astype(np.float64) ** 2
    hands = divide(np.arange(64), sources, targets, world_size=4, limits=limits, costs=costs)
    sums = [sum(costs[row] for part in hand for row in part) for hand in hands]
    assert max(sums) < 1.05 * min(sums)


def test_micro_batches_of_a_rank_are_about_alike():
    sources = np.arange(1, 101, dtype=np.int32)
    hand = divide(np.arange(100), sources, sources, world_size=1, limits=MicroBatchLimits(tokens=6000))[0]
    tokens = [2 * sum(row + 1 for row in part) for part in hand]
    assert len(tokens) == 2
    assert max(tokens) - min(tokens) <= 2 * 100
