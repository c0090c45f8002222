"""Adapters and frozen weights: the same numbers at every ZeRO stage and rank count, merged for a while, continued."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.training.rank_worker import run_group, sharded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def job(flan_like, shared_mount):
    return {"model": str(flan_like), "mount": str(shared_mount)}


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("flan_like", {"lora": "dora"}),
        ("flan_like", {"lora": "lora", "task": "clf"}),
        ("bert_like", {"lora": "dora", "task": "clf"}),
        ("flan_like", {"train_only": ["norm", "q"]}),
        ("bert_like", {"train_only": ["bias"], "task": "clf"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_numbers_do_not_depend_on_ranks_or_stages(model, more, request, shared_mount, tmp_path):
    job = {"model": str(request.getfixturevalue(model)), "mount": str(shared_mount), **more}
    expected = run_group(1, [{**job, "micro": 8, "padded": True}], tmp_path / "alone")[0]
    assert expected["losses"][-1] != pytest.approx(expected["losses"][0], rel=1e-4)
    halves = {"batch": 4, "accumulation": 2, "micro": 1}
    jobs = [
        {**job, **halves, "deepspeed": "zero1"},
        {**job, "deepspeed": "zero0"},
        {**job, **halves, "deepspeed": "zero2"},
    ]
    jobs += [{**job, "deepspeed": "zero3"}, {**job, "deepspeed": sharded(tmp_path), "checkpointing": True}]
    for world_size, some in ((1, jobs[:1]), (2, jobs[1:])):
        for one, found in zip(some, run_group(world_size, some, tmp_path / f"on{world_size}"), strict=True):
            assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5), one
            assert found["norms"] == pytest.approx(expected["norms"], rel=1e-4), one
            assert found["embeddings"] == expected["embeddings"], "a frozen weight moved"
            assert found["state_names"] == expected["state_names"]
            assert found["state_names"], "something trains"
            assert all(_trains(name, more) for name in found["state_names"])


def _trains(name: str, more: dict) -> bool:
    if "lora" in more:
        return ".lora_" in name or name.startswith(("classifier", "bert.pooler"))
    return any(part in name for part in (".q.", "norm", "bias", "classifier", "pooler"))


@pytest.mark.parametrize("more", [{"lora": "lora"}, {"train_only": ["norm", "wo"]}], ids=str)
def test_resume_is_bitwise(job, more, tmp_path):
    """6 steps are 3 steps, a new process, 3 steps; under bf16 the masters of adapters are continued."""
    kinds = [("zero0", "fp32"), ("zero2", "fp32"), ("zero3", "bf16")]
    base = [
        {
            **job,
            **more,
            "deepspeed": stage,
            "precision": precision,
            "dropout": 0.2,
            "lora_dropout": 0.2 * ("lora" in more),
        }
        for stage, precision in kinds
    ]
    folders = [tmp_path / f"checkpoint-{number}" for number in range(len(kinds))]
    saving = [{**one, "save": str(folder), "save_at": 3} for one, folder in zip(base, folders, strict=True)]
    whole = run_group(2, saving, tmp_path / "whole")
    start = "model" if "lora" in more else "resume"
    going_on = [
        {**one, "resume": str(folder), "model": one["model"] if start == "model" else str(folder)}
        for one, folder in zip(base, folders, strict=True)
    ]
    again = run_group(2, going_on, tmp_path / "again")
    for kind, first, second in zip(kinds, whole, again, strict=True):
        assert second["losses"] == first["losses"][3:], kind
        assert second["norms"] == first["norms"][3:], kind


def test_a_checkpoint_continues_on_other_ranks_and_holds_the_same_model(job, tmp_path):
    job = {**job, "lora": "dora"}
    stages = ("zero0", "zero3")
    saved = [tmp_path / f"checkpoint-{stage}" for stage in stages]
    saving = [
        {**job, "deepspeed": stage, "save": str(folder), "save_at": 3}
        for stage, folder in zip(stages, saved, strict=True)
    ]
    first = run_group(2, saving, tmp_path / "first")
    models = [load_file(folder / "model.safetensors") for folder in saved]
    base = load_file(f"{job['model']}/model.safetensors")
    assert all(model.keys() == base.keys() for model in models)
    changed = {name for name in base if not torch.equal(models[0][name], base[name])}
    assert changed
    assert all(
        name.rpartition(".")[0].rpartition(".")[2] in ("q", "k", "v", "o", "wi_0", "wi_1", "wo") for name in changed
    )
    for model in models[1:]:
        for name, weight in model.items():
            torch.testing.assert_close(weight, models[0][name], rtol=1e-4, atol=1e-5)
    then = [{**job, "deepspeed": stage, "resume": str(folder)} for stage in ("zero1", "zero0") for folder in saved[1:]]
    for found in run_group(1, then, tmp_path / "then"):
        assert found["losses"] == pytest.approx(first[0]["losses"][3:], rel=1e-5)


def test_evaluation_sees_the_adapters_and_leaves_the_weights_alone(job, tmp_path):
    one = {**job, "do": "evaluate", "lora": "lora"}
    kinds = [{}, {"deepspeed": "zero1", "precision": "bf16"}, {"deepspeed": sharded(tmp_path)}]
    alone = run_group(1, [{**one, **kind} for kind in kinds], tmp_path / "alone")
    plain = run_group(1, [{**job, "do": "evaluate"}], tmp_path / "plain")[0]
    assert all(found["untouched"] for found in alone)
    assert alone[0]["eval_loss"] != pytest.approx(plain["eval_loss"], rel=1e-5)
    assert alone[2]["texts"] == alone[0]["texts"]
    assert alone[2]["eval_loss"] == pytest.approx(alone[0]["eval_loss"], rel=1e-5)
    jobs = [{**one, "deepspeed": stage} for stage in ("zero2", sharded(tmp_path))]
    for found in run_group(2, jobs, tmp_path / "on2"):
        assert found["untouched"]
        assert found["texts"] == alone[0]["texts"]
        for name in ("eval_loss", "after"):
            assert found[name] == pytest.approx(alone[0][name], rel=1e-5)
        for scores, expected in zip(found["scores"], alone[0]["scores"], strict=True):
            assert scores == pytest.approx(expected, abs=1e-5)
