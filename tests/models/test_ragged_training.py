"""The ragged forward against transformers' own, padded and eager: the same loss, the same gradients.

Without dropout to rounding, with it statistically; for every architecture, and for lengths of every mix.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers

from workflow.data.packing import Ragged
from workflow.models import head_loss
from workflow.models.classifier import LabelRows
from workflow.models.ragged import why_padded
from workflow.models.ragged_training import RaggedScorer, RaggedT5

SIZES = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "vocab_size": 101, "num_layers": 2}
KINDS = {
    "t5": (transformers.T5Config, transformers.T5ForConditionalGeneration, "relu", True),
    "t5-v1.1": (transformers.T5Config, transformers.T5ForConditionalGeneration, "gated-gelu", False),
    "t5-gated-tied": (transformers.T5Config, transformers.T5ForConditionalGeneration, "gated-gelu", True),
    "t5-plain-untied": (transformers.T5Config, transformers.T5ForConditionalGeneration, "relu", False),
    "mt5": (transformers.MT5Config, transformers.MT5ForConditionalGeneration, "gated-gelu", False),
    "umt5": (transformers.UMT5Config, transformers.UMT5ForConditionalGeneration, "gated-gelu", False),
    "umt5-tied": (transformers.UMT5Config, transformers.UMT5ForConditionalGeneration, "gated-gelu", True),
}
MIXES = {
    "one token": ([1], [1]),
    "alike": ([6, 6, 6], [4, 4, 4]),
    "mixed": ([3, 9, 1, 9, 12, 3], [7, 1, 2, 7, 3, 5]),
    "one long": ([200, 4, 1, 30], [1, 150, 3, 2]),
}


def make(kind: str, *, dropout: float = 0.0, seed: int = 0):
    config_class, model_class, act, tied = KINDS[kind]
    torch.manual_seed(seed)
    config = config_class(
        **SIZES,
        num_decoder_layers=3,
        feed_forward_proj=act,
        tie_word_embeddings=tied,
        dropout_rate=dropout,
        decoder_start_token_id=0,
        attn_implementation="eager",
    )
    model = model_class(config)
    if not tied and model.lm_head.weight is model.shared.weight:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
    for name, parameter in model.named_parameters():  # larger than T5 starts with, so that every part has a say
        if parameter.dim() > 1:
            scale = SIZES["d_kv"] if name.endswith("q.weight") else 1  # T5 scales its queries' weights, not its scores
            torch.nn.init.normal_(parameter, std=(parameter.shape[-1] * scale) ** -0.5)
    return model.train()


def checkpoint(model):
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def rows_of(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, SIZES["vocab_size"], (length,), generator=generator) for length in lengths]


def packed(rows):
    return Ragged(torch.cat(rows), tuple(len(row) for row in rows))


def padded(rows, value):
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def eager_loss(model, sources, targets):
    """The sum over labels, by transformers' forward."""
    labels = padded(targets, -100)
    mask = padded([torch.ones_like(row) for row in sources], 0)
    logits = model(input_ids=padded(sources, 0), attention_mask=mask, labels=labels).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")


def eager_logits(model, sources):
    mask = padded([torch.ones_like(row) for row in sources], 0)
    start = torch.zeros(len(sources), 1, dtype=torch.long)
    return model(input_ids=padded(sources, 0), attention_mask=mask, decoder_input_ids=start).logits[:, 0].float()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.float() for name, parameter in model.named_parameters()}


def assert_alike(found, expected, bound=1e-5):
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= bound * largest, name


def cosine(found, expected):
    mine, theirs = (torch.cat([grads[name].flatten() for name in expected]) for grads in (found, expected))
    return float(torch.nn.functional.cosine_similarity(mine, theirs, dim=0))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_transformers(kind, mix, checkpointing):
    sources, targets = (rows_of(lengths, seed) for seed, lengths in enumerate(MIXES[mix]))
    model = make(kind)
    expected_loss = eager_loss(model, sources, targets)
    expected = gradients(model, expected_loss)
    if checkpointing:
        checkpoint(model)
    loss = RaggedT5(model).train()(packed(sources), packed(targets))
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert_alike(gradients(model, loss), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_their_gradients_are_those_of_transformers(kind, mix, checkpointing):
    sources = rows_of(MIXES[mix][0], 0)
    model = make(kind)
    model.lm_head = LabelRows(model.lm_head.weight, [7, 3])
    weights = torch.randn(len(sources), 2)
    expected_logits = eager_logits(model, sources)
    expected = gradients(model, (expected_logits * weights).sum())
    if checkpointing:
        checkpoint(model)
    logits = RaggedScorer(model).train()(packed(sources))
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
    assert_alike(gradients(model, (logits * weights).sum()), expected)


def test_without_gradients_the_loss_of_each_label():
    sources, targets = (rows_of(lengths, seed) for seed, lengths in enumerate(MIXES["mixed"]))
    ragged = RaggedT5(make("t5-v1.1")).eval()
    with torch.no_grad():
        each = ragged(packed(sources), packed(targets))
    for number, part in enumerate(each.split([len(row) for row in targets])):
        expected = eager_loss(ragged.model, [sources[number]], [targets[number]])
        torch.testing.assert_close(part.sum(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["t5", "t5-v1.1", "umt5"])
def test_bf16_gradients_point_where_those_of_fp32_point(kind):
    sources, targets = (rows_of(lengths, seed) for seed, lengths in enumerate(MIXES["mixed"]))
    model = make(kind)
    expected = gradients(model, eager_loss(model, sources, targets))
    half = copy.deepcopy(model).to(torch.bfloat16)
    found = gradients(half, RaggedT5(half).train()(packed(sources), packed(targets)))
    assert cosine(found, expected) > 0.999


def test_logits_of_a_few_labels_at_a_time(monkeypatch):
    sources, targets = (rows_of(lengths, seed) for seed, lengths in enumerate(MIXES["mixed"]))
    ragged = RaggedT5(make("t5")).train()
    expected_loss = ragged(packed(sources), packed(targets))
    expected = gradients(ragged.model, expected_loss)
    monkeypatch.setitem(head_loss.LOGITS_AT_ONCE, "cpu", 4 * SIZES["vocab_size"])
    loss = ragged(packed(sources), packed(targets))
    torch.testing.assert_close(loss, expected_loss)
    assert_alike(gradients(ragged.model, loss), expected)


def test_models_that_it_does_not_know():
    assert why_padded(make("umt5")) is None
    gpt2 = transformers.GPT2Model(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1))
    assert "gpt2" in why_padded(gpt2)
    odd = make("t5")
    odd.encoder.block[0].layer[0].SelfAttention = torch.nn.Identity()
    assert "attention" in why_padded(odd)
