"""The data plan and tensors of a micro-batch: nothing but the seed changes which rows train."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow.data.packing import IGNORED_LABEL, collate, pad
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
