"""The data plan and the division of an update: nothing but the seed changes which rows train."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow.data.packing import IGNORED_LABEL, collate, divide, pad
from workflow.data.plan import DataPlan, steps_for_epochs


@given(st.integers(1, 50), st.integers(1, 70), st.integers(0, 5))
def test_every_epoch_has_every_row_once(num_rows, update_size, seed):
    plan = DataPlan(num_rows, update_size, seed)
    stream = np.concatenate([plan.rows(step) for step in range(1, 3 * num_rows // update_size + 3)])
    for epoch in range(len(stream) // num_rows):
        assert sorted(stream[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


def test_a_step_is_a_pure_function():
    plan = DataPlan(100, 16, seed=3)
    forward = [plan.rows(step).tolist() for step in range(1, 30)]
    backward = [plan.rows(step).tolist() for step in range(29, 0, -1)]
    assert forward == backward[::-1]
    assert DataPlan(100, 16, seed=3).rows(17).tolist() == forward[16]
    assert DataPlan(100, 16, seed=4).rows(17).tolist() != forward[16]
    assert forward[0] == [84, 45, 22, 1, 34, 23, 87, 42, 72, 96, 49, 81, 67, 46, 98, 35], (
        "the order of data changed: resumed runs break"
    )


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 9))
def test_divide_deals_every_row_once_in_equal_calls(num_rows, world_size, micro_batch_size):
    rows = np.arange(100, 100 + num_rows)
    costs = np.random.default_rng(num_rows).integers(1, 99, num_rows).astype(np.int32)
    hands = divide(rows, costs, world_size=world_size, micro_batch_size=micro_batch_size)
    assert sorted(row for hand in hands for part in hand for row in part) == rows.tolist()
    assert len({len(hand) for hand in hands}) == 1
    assert all(len(part) <= micro_batch_size for hand in hands for part in hand)


def test_divide_balances_costs():
    costs = np.arange(1, 65, dtype=np.int32) ** 2
    sums = [
        sum(costs[row] for part in hand for row in part)
        for hand in divide(np.arange(64), costs, world_size=4, micro_batch_size=4)
    ]
    assert max(sums) < 1.05 * min(sums)


class Rows:
    def row(self, field, row):
        return np.arange(1, row + 2 if field == "prompt" else 4 - row, dtype=np.int32)


def test_collate_pads_and_masks():
    batch = collate(Rows(), [0, 2], pad_id=0)
    assert batch.input_ids.tolist() == [[1, 0, 0], [1, 2, 3]]
    assert batch.attention_mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch.labels.tolist() == [[1, 2, 3], [1, IGNORED_LABEL, IGNORED_LABEL]]
    assert (batch.rows, batch.num_source_tokens) == ((0, 2), 4)


def test_an_empty_batch_counts_for_nothing():
    batch = collate(Rows(), [], pad_id=0)
    assert batch.labels.eq(IGNORED_LABEL).all()
    assert (batch.rows, batch.num_source_tokens, tuple(batch.input_ids.shape)) == ((), 0, (1, 1))
    assert batch.attention_mask.any(), "attention over nothing would be NaN"


def test_pad():
    assert pad([np.array([1], np.int32)], 7).tolist() == [[1]]


@pytest.mark.parametrize(("epochs", "rows", "size", "steps"), [(4, 100, 16, 25), (1, 3, 16, 1), (0.5, 100, 16, 4)])
def test_steps_for_epochs(epochs, rows, size, steps):
    assert steps_for_epochs(epochs, rows, size) == steps
