"""Where padding changes a model's scores, inputs of one length alone share a batch, and scores are those of rows alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

from workflow.data.division import MicroBatchLimits, divide
from workflow.data.encoders import INPUT
from workflow.errors import ModelError
from workflow.inference.batch import score_all
from workflow.inference.head_engine import score_engine
from workflow.inference.interface import EngineLimits
from workflow.inference.requests import ScoreRequest
from workflow.models.classifier import load_classifier
from workflow.training.objectives import ScoreLoss

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
FELT = {
    "fnet": {},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16},
    "convbert": {"embedding_size": 32, "conv_kernel_size": 3},
    "yoso": {},
    "funnel": {"block_sizes": [1, 1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48},
}
"""Families whose scores padding changes."""
NOT_FELT = {
    "albert": {"embedding_size": 16},
    "deberta-v2": {},
    "squeezebert": {"embedding_size": 32},
    "mpnet": {},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "big_bird": {"block_size": 4, "num_random_blocks": 1},
    "longformer": {"attention_window": [8, 8]},
}
WORDS = ["red", "green", "blue", "one", "two", "left", "right"]
LENGTHS = (5, 30, 6, 30, 9, 17, 6, 5, 61)


def checkpoint(folder: Path, family: str, tokenizer_of: Path, **more) -> str:
    """A model of a family with larger weights than new ones have, so that every part of it counts."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    sizes = {key: value for key, value in SIZES.items() if family != "funnel" or key == "hidden_size"}
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=300,
        **sizes | more,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.15)
    model.save_pretrained(folder)
    tokenizer.model_max_length = 256
    tokenizer.save_pretrained(folder)
    return str(folder)


def load(name):
    return load_classifier(name, problem="binary", labels=("no", "yes"), dropout=0.0)


def requests(loaded) -> list[ScoreRequest]:
    ids = loaded.tokenizer.convert_tokens_to_ids(WORDS)
    return [ScoreRequest([ids[(row + at) % len(ids)] for at in range(length)]) for row, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("family", [*FELT, *NOT_FELT])
def test_scores_are_those_of_rows_alone(family, bert_like, tmp_path):
    loaded = load(checkpoint(tmp_path, family, bert_like, **(FELT | NOT_FELT)[family]))
    assert loaded.of_one_length == (family in FELT)
    assert any("padding changes the scores" in note for note in loaded.notes) == (family in FELT)
    limits = EngineLimits(max_rows=1, max_encode_tokens=64)
    alone = score_all(score_engine(loaded, limits=limits), requests(loaded), width=2)
    together = score_all(score_engine(loaded), requests(loaded), width=2)
    assert together == pytest.approx(alone, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("family", ["fnet", "mobilebert", "albert"])
def test_an_update_is_the_sum_of_rows_alone_however_it_is_divided(family, bert_like, tmp_path):
    loaded = load(checkpoint(tmp_path, family, bert_like, **(FELT | NOT_FELT)[family]))
    rows = [request.token_ids for request in requests(loaded)]
    loss = ScoreLoss(loaded, Rows(rows), pad_id=loaded.tokenizer.pad_token_id, device=torch.device("cpu"))
    numbers, lengths = np.arange(len(rows)), np.array(LENGTHS, np.int32)

    def total(parts):
        return sum(float(loss.loss_sum(loaded.model, part).detach()) for part in parts)

    expected = total([[row] for row in range(len(rows))])
    for world_size in (1, 3):
        for bound in (None, 2):
            limits = MicroBatchLimits(rows=bound, padded=True, of_one_length=loaded.of_one_length)
            hands = divide(numbers, lengths, np.zeros_like(lengths), world_size=world_size, limits=limits)
            parts = [part for hand in hands for part in hand]
            assert total(parts) == pytest.approx(expected, rel=1e-4)
            if loaded.of_one_length:
                assert all(len({LENGTHS[row] for row in part}) <= 1 for part in parts)


class Rows:
    """Features of some inputs."""

    fields = (INPUT,)

    def __init__(self, rows):
        self.rows = [np.array(row, np.int32) for row in rows]
        self.targets = np.tile(np.array([[0.25, 0.75]], np.float32), (len(rows), 1))

    def __len__(self):
        return len(self.rows)

    def row(self, field, number):
        return self.rows[number]

    def lengths(self, field):
        return np.array([len(row) for row in self.rows], np.int32)


def test_what_attends_sparsely_by_length_attends_in_full(bert_like, tmp_path):
    """transformers would change to full attention for good at the first short batch: scores would depend on those before."""
    loaded = load(checkpoint(tmp_path, "big_bird", bert_like, **NOT_FELT["big_bird"]))
    assert any("attends in full" in note for note in loaded.notes)
    long = requests(loaded)[-1:]
    before = score_all(score_engine(loaded), long, width=2)
    score_all(score_engine(loaded), requests(loaded)[:1], width=2)
    assert score_all(score_engine(loaded), long, width=2) == pytest.approx(before, abs=1e-6)


def test_models_that_cannot_score_any_text_are_refused(bert_like, tmp_path):
    chunks = {"lsh_attn_chunk_length": 8, "local_attn_chunk_length": 8, "num_buckets": 4, "axial_pos_embds": False}
    more = {"attn_layers": ["lsh", "local"], "attention_head_size": 8, "feed_forward_size": 48, "is_decoder": False}
    with pytest.raises(ModelError, match="its scores are drawn at random"):
        load(checkpoint(tmp_path / "a", "reformer", bert_like, **chunks, **more))
    assert load(checkpoint(tmp_path / "b", "reformer", bert_like, **chunks, **more, hash_seed=3)).width == 2
    with pytest.raises(ModelError, match="its forward pass fails on texts of 5 and 17 tokens"):
        load(checkpoint(tmp_path / "c", "nystromformer", bert_like, num_landmarks=8, segment_means_seq_len=64))


def test_packed_models_are_not_tried(bert_like, gpt2_like):
    for folder in (bert_like, gpt2_like):
        assert not load(str(folder)).of_one_length
