"""The loop in one process: the loss is transformers' own, dropout is on, and twenty steps give the golden losses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.training.rank_worker import run_group

GOLDEN = Path(__file__).with_name("golden_losses.json")


@pytest.fixture(scope="module")
def job(flan_like, shared_mount):
    return {"model": str(flan_like), "mount": str(shared_mount)}


@pytest.mark.slow
def test_golden_losses(job, tmp_path):
    """A refactor must not move these. To accept a change on purpose: WORKFLOW_ACCEPT=1 .venv/bin/python -m pytest -k golden tests/training/test_trainer.py."""
    found = run_group(1, [{**job, "max_steps": 20}], tmp_path)[0]["losses"]
    if os.environ.get("WORKFLOW_ACCEPT") == "1":
        GOLDEN.write_text(json.dumps([round(loss, 7) for loss in found]) + "\n")
    assert found == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4), "the training loss of the golden run moved"


@pytest.mark.slow
def test_dropout_changes_the_loss(job, tmp_path):
    """F16: from_pretrained leaves dropout off, and DeepSpeed does not turn it on."""
    without, with_dropout, again = run_group(1, [job, {**job, "dropout": 0.3}, {**job, "dropout": 0.3}], tmp_path)
    assert with_dropout["losses"][0] != pytest.approx(without["losses"][0], rel=1e-4)
    assert with_dropout["losses"] == again["losses"], "the same seed drops the same units"


@pytest.mark.slow
def test_the_first_loss_is_transformers_own(job, tmp_path):
    """The sum over label tokens divided by their number, whatever the padding: F2's normalisation, checked from outside."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from workflow.data.plan import DataPlan

    found = run_group(1, [{**job, "micro": 3}], tmp_path)[0]["losses"][0]
    model, tokenizer = (
        AutoModelForSeq2SeqLM.from_pretrained(job["model"]).eval(),
        AutoTokenizer.from_pretrained(job["model"]),
    )
    rows = json.loads((Path(job["mount"]) / "data/toy.json").read_text())["train"]
    total = tokens = 0
    for row in DataPlan(len(rows), 8, 0).rows(1):
        labels = tokenizer(rows[row]["completion"], return_tensors="pt").input_ids
        with torch.no_grad():
            loss = model(**tokenizer(rows[row]["prompt"], return_tensors="pt"), labels=labels).loss
        total, tokens = total + float(loss) * labels.numel(), tokens + labels.numel()
    assert found == pytest.approx(total / tokens, rel=1e-5)
