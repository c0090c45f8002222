"""Adapters on a base in NF4: the same numbers on any ranks and stages, evaluated as trained, continued bit for bit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.training.rank_worker import run_group

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.slow

NF4 = {"lora": "lora", "lora_base": "nf4"}


@pytest.fixture(scope="module")
def jobs(flan_like, bert_like, shared_mount):
    flan = {"model": str(flan_like), "mount": str(shared_mount), **NF4}
    return flan, {**flan, "model": str(bert_like), "task": "clf", "targets": "attention"}


def test_numbers_do_not_depend_on_ranks_or_stages(jobs, tmp_path):
    long = [{**job, "max_steps": 12} for job in jobs]
    evaluation = {**jobs[0], "do": "evaluate", "targets": "attention"}
    alone = run_group(
        1,
        [{**job, "micro": 8, "padded": True} for job in long]
        + [{**long[0], "precision": "bf16", "deepspeed": "zero1"}]
        + [{**job, "lora_base": "full"} for job in long[:1]]
        + [evaluation, {**evaluation, "lora_base": "full"}],
        tmp_path / "alone",
    )
    halves = {"batch": 4, "accumulation": 2, "micro": 1}
    shared = run_group(
        2,
        [{**long[0], **halves, "deepspeed": "zero2"}, {**long[1], "deepspeed": "zero2", "checkpointing": True}]
        + [{**long[0], "deepspeed": "zero2", "precision": "bf16"}]
        + [{**evaluation, "deepspeed": stage, "room": room} for stage, room in (("zero2", None), ("zero1", 0))],
        tmp_path / "shared",
    )
    for expected, found in zip(alone[:2], shared[:2], strict=True):
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert found["norms"] == pytest.approx(expected["norms"], rel=1e-4)
        assert found["embeddings"] == expected["embeddings"]
        assert found["state_names"] == expected["state_names"]
        assert all(".lora_" in name or name.startswith(("classifier", "bert.pooler")) for name in found["state_names"])
    flan, _, half, full = alone[:4]
    assert sum(flan["losses"][-3:]) < sum(flan["losses"][:3])
    for found in (half, shared[2]):
        assert found["losses"] == pytest.approx(flan["losses"], rel=0.03)
    assert flan["losses"][0] != pytest.approx(full["losses"][0], rel=1e-5), "it is another base"
    assert flan["losses"] == pytest.approx(full["losses"], rel=0.1)
    expected, plain = alone[4:]
    assert expected["eval_loss"] != pytest.approx(plain["eval_loss"], rel=1e-6)
    for found in shared[3:]:
        assert found["untouched"]
        assert found["texts"] == expected["texts"]
        for name in ("eval_loss", "after"):
            assert found[name] == pytest.approx(expected[name], rel=1e-5)
        for scores, wanted in zip(found["scores"], expected["scores"], strict=True):
            assert scores == pytest.approx(wanted, abs=1e-5)


def test_resume_is_bitwise(jobs, tmp_path):
    """6 steps are 3 steps, a new process, 3 steps; the checkpoint's other linear maps are what the codes stand for."""
    kinds = [("zero2", "fp32", jobs[0]), ("zero1", "bf16", {**jobs[0], "targets": "wo"}), ("zero0", "fp32", jobs[1])]
    base = [
        {**job, "deepspeed": stage, "precision": precision, "dropout": 0.2, "lora_dropout": 0.2}
        for stage, precision, job in kinds
    ]
    folders = [tmp_path / f"checkpoint-{number}" for number in range(len(kinds))]
    saving = [{**one, "save": str(folder), "save_at": 3} for one, folder in zip(base, folders, strict=True)]
    whole = run_group(1, saving, tmp_path / "whole")
    going_on = [{**one, "resume": str(folder)} for one, folder in zip(base, folders, strict=True)]
    again = run_group(1, going_on, tmp_path / "again")
    for kind, first, second in zip(kinds, whole, again, strict=True):
        assert second["losses"] == first["losses"][3:], kind
        assert second["norms"] == first["norms"][3:], kind
    before, after = (load_file(f"{folder}/model.safetensors") for folder in (jobs[0]["model"], folders[1]))
    assert before.keys() == after.keys()
    kept = [name for name in before if torch.equal(before[name].bfloat16().float(), after[name])]
    assert {"lm_head.weight", "shared.weight"} <= {*kept}
    assert not any(name.endswith((".q.weight", ".k.weight", ".wi_0.weight", ".wo.weight")) for name in kept)
