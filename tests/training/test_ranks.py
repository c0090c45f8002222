"""Training gives the same numbers for any number of ranks, micro-batch size, accumulation and ZeRO stage, dropout on.

One process group a rank count runs all of its combinations, so that this stays in minutes.
"""

from __future__ import annotations

import itertools

import pytest

from tests.training.rank_worker import run_group

pytestmark = pytest.mark.slow

STAGES = ("zero0", "zero1", "zero2", "zero3")
MICRO = (1, 2, 8)
ACCUMULATION = (1, 2, 4)
EXAMPLES = 8


def pairwise(*choices):
    """Few combinations in which every pair of values of two settings occurs (greedy)."""
    wanted = {
        (i, a, j, b) for i, j in itertools.combinations(range(len(choices)), 2) for a in choices[i] for b in choices[j]
    }
    picked = []
    everything = list(itertools.product(*choices))
    while wanted:
        best = max(
            everything,
            key=lambda combo: sum(
                (i, combo[i], j, combo[j]) in wanted for i, j in itertools.combinations(range(len(combo)), 2)
            ),
        )
        picked.append(best)
        wanted -= {(i, best[i], j, best[j]) for i, j in itertools.combinations(range(len(best)), 2)}
    return picked


@pytest.fixture(scope="module")
def job(flan_like, shared_mount):
    return {"model": str(flan_like), "mount": str(shared_mount), "dropout": 0.1}


@pytest.fixture(scope="module")
def reference(job, tmp_path_factory):
    """One rank, ZeRO 0, the whole update in one micro-batch."""
    return run_group(1, [{**job, "micro": EXAMPLES}], tmp_path_factory.mktemp("reference"))[0]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_invariance(world_size, job, reference, tmp_path):
    """F2: no scaling by accumulation or ranks. F1: ZeRO-3 keeps the checkpoint's own head."""
    combinations = pairwise(STAGES, MICRO, ACCUMULATION)
    jobs = [
        {**job, "deepspeed": stage, "micro": micro, "accumulation": parts, "batch": EXAMPLES // parts}
        for stage, micro, parts in combinations
    ]
    for combination, found in zip(combinations, run_group(world_size, jobs, tmp_path), strict=True):
        for name in ("losses", "norms"):
            assert found[name] == pytest.approx(reference[name], rel=1e-5), (world_size, combination, name)
        assert found["head"] == pytest.approx(reference["head"], abs=1e-5), (world_size, combination)
        assert found["own_head"]


def test_losses_fall(reference):
    assert reference["losses"][-1] < reference["losses"][0] - 0.05


def test_a_tied_head_and_gradient_checkpointing(job, t5_like, tmp_path):
    tied = {**job, "model": str(t5_like)}
    jobs = [
        {**tied, "deepspeed": stage, "checkpointing": checkpointing}
        for stage in ("zero0", "zero2", "zero3")
        for checkpointing in (False, True)
    ]
    found = run_group(2, jobs, tmp_path)
    assert not any(one["own_head"] for one in found)
    for one in found[1:]:
        assert one["losses"] == pytest.approx(found[0]["losses"], rel=1e-5)
        assert one["norms"] == pytest.approx(found[0]["norms"], rel=1e-5)


def test_bf16_keeps_fp32_masters(job, reference, tmp_path):
    """F11: at a small learning rate pure bf16 weights would stand still; masters move, and the loss follows fp32's."""
    jobs = [{**job, "deepspeed": stage, "precision": "bf16"} for stage in ("zero1", "zero2", "zero3")]
    for found in run_group(2, jobs, tmp_path):
        assert found["losses"] == pytest.approx(reference["losses"], rel=2e-2)
        assert found["losses"][-1] < found["losses"][0] - 0.05


def test_bf16_gradients_are_summed_in_fp32(job, tmp_path):
    """One example at a time the gradients are the same on any rank; DeepSpeed by itself would round their sums to bf16."""
    jobs = [
        {**job, "deepspeed": stage, "precision": "bf16", "micro": 1, "max_steps": 1}
        for stage in ("zero1", "zero2", "zero3")
    ]
    alone, together = (run_group(world_size, jobs, tmp_path / str(world_size)) for world_size in (1, 2))
    for one, other in zip(alone, together, strict=True):
        assert other["norms"] == pytest.approx(one["norms"], rel=2e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resume_is_bitwise_at_the_same_topology(job, tmp_path, dropout):
    """F17, F19: 6 steps equal 3 steps, a new process, 3 steps; dropout included, for each stage and precision."""
    kinds = [
        ("zero0", "fp32"),
        ("zero1", "fp32"),
        ("zero2", "fp32"),
        ("zero3", "fp32"),
        ("zero1", "bf16"),
        ("zero3", "bf16"),
    ]
    base = [{**job, "deepspeed": stage, "precision": precision, "dropout": dropout} for stage, precision in kinds]
    folders = [tmp_path / f"checkpoint-{number}" for number in range(len(kinds))]
    whole = run_group(
        2,
        [{**one, "save": str(folder), "save_at": 3} for one, folder in zip(base, folders, strict=True)],
        tmp_path / "whole",
    )
    again = run_group(
        2,
        [{**one, "model": str(folder), "resume": str(folder)} for one, folder in zip(base, folders, strict=True)],
        tmp_path / "again",
    )
    for kind, first, second in zip(kinds, whole, again, strict=True):
        assert second["losses"] == first["losses"][3:], kind
        assert second["norms"] == first["norms"][3:], kind


def test_resume_on_other_ranks_and_stages(job, reference, tmp_path):
    """F4, F18: checkpoints are whole tensors by name, so nothing needs converting; here in files written while gathering."""
    saved = {stage: tmp_path / f"checkpoint-{stage}" for stage in ("zero0", "zero2", "zero3")}
    run_group(
        2,
        [
            {**job, "deepspeed": stage, "save": str(folder), "save_at": 3, "shard_bytes": 20_000}
            for stage, folder in saved.items()
        ],
        tmp_path / "first",
    )
    assert all(len(list(folder.glob("model-*-of-*.safetensors"))) > 2 for folder in saved.values())
    for world_size, stages in ((1, ("zero0", "zero1")), (3, ("zero1", "zero3"))):
        jobs = [
            {**job, "deepspeed": stage, "model": str(folder), "resume": str(folder)}
            for stage in stages
            for folder in saved.values()
        ]
        for found in run_group(world_size, jobs, tmp_path / f"then{world_size}"):
            assert found["losses"] == pytest.approx(reference["losses"][3:], rel=1e-5)
            assert found["norms"] == pytest.approx(reference["norms"][3:], rel=1e-4)


def test_adafactor_resumes(job, tmp_path):
    one = {**job, "optimizer": "adafactor"}
    folder = tmp_path / "checkpoint-3"
    whole = run_group(1, [{**one, "save": str(folder), "save_at": 3}], tmp_path / "whole")[0]
    again = run_group(1, [{**one, "model": str(folder), "resume": str(folder)}], tmp_path / "again")[0]
    assert again["losses"] == whole["losses"][3:]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_nonfinite_loss_stops_all_ranks_and_names_rows(job, tmp_path, world_size):
    """F8: nothing hides it, nothing steps on it."""
    jobs = [{**job, "do": "nonfinite", "deepspeed": stage} for stage in ("zero0", "zero3")]
    for found in run_group(world_size, jobs, tmp_path):
        assert found["error"].startswith("step 3: the loss is not finite; training rows")
        assert any(character.isdigit() for character in found["error"].split("at fault: ")[1])


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_evaluation_is_the_same_on_all_ranks_and_stages(job, tmp_path, temperature):
    """No hang under ZeRO-3 (7 rows on 2 and 3 ranks), the same texts, scores and loss; training goes on after it."""
    one = {**job, "do": "evaluate", "temperature": temperature, "n": 1 if temperature == 0 else 2}
    alone = run_group(1, [one], tmp_path / "alone")[0]
    assert len(alone["texts"]) == alone["slices"] == 7
    for world_size in (2, 3):
        for found in run_group(
            world_size, [{**one, "deepspeed": stage} for stage in ("zero0", "zero3")], tmp_path / f"on{world_size}"
        ):
            assert found["texts"] == alone["texts"]
            assert found["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-5)
            for scores, expected in zip(found["scores"], alone["scores"], strict=True):
                assert scores == pytest.approx(expected, abs=1e-5)
