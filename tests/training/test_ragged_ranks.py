"""Ragged training gives the numbers of padded training, by transformers' own forward, at every ZeRO stage."""

from __future__ import annotations

import pytest

from tests.training.rank_worker import run_group
from tests.training.test_ranks import STAGES
from workflow.runtime import seeded

pytestmark = pytest.mark.slow

MODELS = {
    "flan": ("flan_like", "seq2seq"),
    "tied": ("t5_like", "seq2seq"),
    "scores": ("flan_like", "clf"),
    "bert": ("bert_like", "clf"),
    "roberta": ("roberta_like", "clf"),
}


@pytest.fixture
def roberta_like(bert_like, tmp_path):
    """A RoBERTa body, small, with the tokenizer of the BERT."""
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    tokenizer = AutoTokenizer.from_pretrained(bert_like)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "type_vocab_size": 1}
    with seeded(1):
        RobertaModel(RobertaConfig(**sizes, **vocabulary)).save_pretrained(tmp_path / "roberta")
    tokenizer.save_pretrained(tmp_path / "roberta")
    return tmp_path / "roberta"


@pytest.mark.parametrize("kind", MODELS)
def test_the_numbers_are_those_of_padded_training(kind, request, shared_mount, tmp_path):
    fixture, task = MODELS[kind]
    job = {"model": str(request.getfixturevalue(fixture)), "mount": str(shared_mount), "task": task}
    padded = run_group(1, [{**job, "padded": True}], tmp_path / "padded")[0]
    jobs = [{**job, "deepspeed": stage} for stage in STAGES] + [{**job, "deepspeed": "zero3", "checkpointing": True}]
    for world_size in (1, 2):
        for one, found in zip(jobs, run_group(world_size, jobs, tmp_path / f"on{world_size}"), strict=True):
            assert found["losses"] == pytest.approx(padded["losses"], rel=1e-5), one
            assert found["norms"] == pytest.approx(padded["norms"], rel=1e-4), one
