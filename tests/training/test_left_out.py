"""Updates that are not finite are left out: weights and optimizer stay as they were, bit for bit, and the run goes on."""

from __future__ import annotations

import pytest

from tests.training.rank_worker import run_group
from workflow.training.spikes import LEAST, Spikes

pytestmark = pytest.mark.slow

STAGES = {
    1: [("zero0", "fp32"), ("zero1", "bf16"), ("zero2", "bf16"), ("zero3", "bf16")],
    2: [("zero0", "fp32"), ("zero1", "fp32"), ("zero2", "bf16"), ("zero3", "fp32")],
}


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_left_out_update_changes_nothing(flan_like, shared_mount, tmp_path, world_size):
    """The last rank's loss, or its gradient alone, is NaN in update 3; the rest is as in a run that has no update 3."""
    base = {"do": "poisoned", "model": str(flan_like), "mount": str(shared_mount), "step": 3, "skip_nonfinite": 1}
    jobs = [
        {**base, "deepspeed": stage, "precision": precision, "poison": poison}
        for stage, precision in STAGES[world_size]
        for poison in ("loss", "gradient", None)
    ]
    found = run_group(world_size, jobs, tmp_path)
    for number in range(0, len(found), 3):
        what = jobs[number]["deepspeed"]
        *both, without = found[number : number + 3]
        for one, words in zip(both, ("the loss is not finite", "the gradient is not finite"), strict=True):
            assert words in one["told"], what
            assert one["skipped"] == 1
            assert one["before"] == one["after"] == without["before"], what
            assert one["losses"] == [*without["losses"][:2], None, *without["losses"][2:]], what
            assert one["end"] == without["end"], what


def test_spikes_are_told_and_ordinary_noise_is_not():
    noise = [2.0 + 0.05 * ((7 * number) % 11 - 5) for number in range(200)]
    spikes = Spikes()
    assert not [told for loss in noise if (told := spikes.look(loss))]
    assert "stands out" in spikes.look(9.0)
    assert "stands out" in spikes.look(9.0), "one spike does not hide the next"
    assert spikes.look(2.2) is None
    learnt = Spikes()
    assert not [told for loss in [0.0005] * 100 + [0.02] if (told := learnt.look(loss))], "of no weight"
    young = Spikes()
    assert not [told for loss in [*[1.0] * (LEAST - 1), 100.0] if (told := young.look(loss))]
