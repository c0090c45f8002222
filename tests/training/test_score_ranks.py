"""clf training gives the same numbers for any number of ranks, micro-batch size, accumulation and ZeRO stage.

The same combinations as for seq2seq, for every kind of head.
"""

from __future__ import annotations

import pytest

from tests.training.rank_worker import run_group
from tests.training.test_ranks import ACCUMULATION, EXAMPLES, MICRO, STAGES, pairwise

pytestmark = pytest.mark.slow

HEADS = {  # with dropout, but for GPT-2, whose padded batches draw other masks when they are divided in another way
    "t5": {"model": "flan_like", "dropout": 0.1},
    "tied": {"model": "t5_like", "dropout": 0.1},
    "bert": {"model": "bert_like", "dropout": 0.1},
    "gpt2": {"model": "gpt2_like"},
    "multiclass": {
        "model": "bert_like",
        "dropout": 0.1,
        "data": "classes",
        "problem": "multiclass",
        "labels": ["a", "b", "c"],
    },
}


@pytest.fixture(scope="module")
def heads(request, shared_mount):
    """Name -> job."""
    return {
        name: {**job, "task": "clf", "mount": str(shared_mount), "model": str(request.getfixturevalue(job["model"]))}
        for name, job in HEADS.items()
    }


@pytest.fixture(scope="module")
def references(heads, tmp_path_factory):
    """One rank, ZeRO 0, the whole update in one micro-batch."""
    jobs = [{**job, "micro": EXAMPLES} for job in heads.values()]
    return dict(zip(heads, run_group(1, jobs, tmp_path_factory.mktemp("reference")), strict=True))


def test_losses_fall(references):
    assert all(found["losses"][-1] < found["losses"][0] for found in references.values())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_invariance(world_size, heads, references, tmp_path):
    combinations = pairwise(STAGES, MICRO, ACCUMULATION)
    names = [
        name for number in range(len(combinations)) for name in ([*heads] if number < 4 else [[*heads][number % 4]])
    ]
    chosen = [
        combination for number, combination in enumerate(combinations) for _ in range(len(heads) if number < 4 else 1)
    ]
    jobs = [
        {
            **heads[name],
            "deepspeed": stage,
            "micro": micro,
            "accumulation": accumulation,
            "batch": EXAMPLES // accumulation,
        }
        for name, (stage, micro, accumulation) in zip(names, chosen, strict=True)
    ]
    found = run_group(world_size, jobs, tmp_path)
    for name, job, one in zip(names, jobs, found, strict=True):
        what = (name, job["deepspeed"], job["micro"], job["accumulation"])
        assert one["losses"] == pytest.approx(references[name]["losses"], rel=2e-5), what
        assert one["norms"] == pytest.approx(references[name]["norms"], rel=2e-4), what
        assert one["head"] == pytest.approx(references[name]["head"], abs=2e-5), what


def test_the_head_learns_alone_first(heads, references, tmp_path):
    jobs = [
        {**heads[name], "deepspeed": stage, "head_steps": steps, "max_steps": 3}
        for name in ("t5", "bert")
        for stage in STAGES
        for steps in (3, 0)
    ]
    found = run_group(2, jobs, tmp_path)
    start = run_group(1, [{**heads[name], "max_steps": 0} for name in ("t5", "bert")], tmp_path / "start")
    for number, one in enumerate(found):
        before = start[number // 8]
        assert one["head"] != before["head"] or number < 8  # a T5's head learns in its labels' rows only
        assert (one["embeddings"] == before["embeddings"]) == (jobs[number]["head_steps"] == 3), jobs[number]
    for first in (0, 8):
        for one in found[first : first + 8 : 2]:
            assert one["losses"] == pytest.approx(found[first]["losses"], rel=2e-5)


def test_resume_on_other_ranks_and_stages(heads, tmp_path):
    whole = run_group(1, [{**heads["bert"], "deepspeed": "zero0", "max_steps": 6}], tmp_path / "whole")[0]
    saved = {
        **heads["bert"],
        "deepspeed": "zero3",
        "max_steps": 6,
        "save": str(tmp_path / "checkpoint-3"),
        "save_at": 3,
    }
    run_group(2, [saved], tmp_path / "first")
    resumed = {**heads["bert"], "model": saved["save"], "resume": saved["save"], "max_steps": 6}
    for world_size, stage in ((1, "zero0"), (2, "zero1"), (2, "zero3")):
        found = run_group(world_size, [{**resumed, "deepspeed": stage}], tmp_path / f"{world_size}{stage}")[0]
        assert found["losses"] == pytest.approx(whole["losses"][3:], rel=2e-5), (world_size, stage)
