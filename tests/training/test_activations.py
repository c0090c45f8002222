"""Activations by formula against the tensors that a forward pass really keeps, and against peaks of whole passes."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers

from tests.training.allocations import Allocations
from workflow.data.packing import Ragged
from workflow.models.classifier import LabelRows
from workflow.models.model_shape import num_parameters, shape_of
from workflow.models.ragged_training import RaggedScorer, RaggedT5
from workflow.training.activations import Kinds, Rows, activations

SIZES = {
    "d_model": 64,
    "d_kv": 16,
    "num_heads": 4,
    "d_ff": 160,
    "vocab_size": 300,
    "num_layers": 4,
    "num_decoder_layers": 3,
}
LENGTHS = ([90, 17, 64, 90, 3, 41], [60, 5, 33, 20, 48, 9])
TOLERANCE = 0.1
KINDS = [
    ("gated-gelu", 0.1, "fp32"),
    ("gated-gelu", 0.0, "fp32"),
    ("gated-gelu", 0.1, "bf16"),
    ("relu", 0.1, "fp32"),
    ("relu", 0.0, "bf16"),
]


def make(act, dropout, precision, *, scorer=False, lengths=LENGTHS):
    """(what training calls, its arguments, its shape)."""
    torch.manual_seed(0)
    raw = {**SIZES, "feed_forward_proj": act, "dropout_rate": dropout}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**raw, decoder_start_token_id=0)).train()
    if precision == "bf16":
        model = model.bfloat16()
    if scorer:
        model.lm_head = LabelRows(model.lm_head.weight, [3, 4])
    packs = [Ragged(torch.randint(1, 300, (sum(each),)), tuple(each)) for each in lengths]
    shape = shape_of({**raw, "model_type": "t5"}, name="x")
    return (RaggedScorer(model), packs[:1], shape) if scorer else (RaggedT5(model), packs, shape)


def rows() -> Rows:
    sources, targets = LENGTHS
    pairs = [
        sum(a * b for a, b in zip(*both, strict=True)) for both in ((sources, sources), (targets, targets), LENGTHS)
    ]
    places = sum(length**2 for lengths in LENGTHS for length in set(lengths))
    return Rows(len(sources), sum(sources), sum(targets), *pairs, places)


def saved_bytes(form, arguments=(), **more) -> int:
    """Of tensors saved for the backward pass, every storage once, weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in form.parameters()}
    found = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        form(*arguments, **more)
    return sum(storage.nbytes() for storage in found.values())


def pass_bytes(form, arguments) -> tuple[int, int]:
    """(kept after the forward pass, the most during forward and backward, gradients of weights among it)."""
    with Allocations() as allocations:
        for parameter in form.parameters():
            allocations.see(parameter.data)
        before = allocations.now
        loss = form(*arguments).sum()
        kept = allocations.now - before
        loss.backward()
    return kept, allocations.peak - before


def checkpoint(model) -> None:
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@pytest.mark.parametrize(("act", "dropout", "precision"), KINDS)
@pytest.mark.parametrize("scorer", [False, True])
def test_what_is_saved(act, dropout, precision, scorer):
    """Rows of unlike lengths: padding inside groups is not counted, which the tolerance takes."""
    form, arguments, shape = make(act, dropout, precision, scorer=scorer)
    kinds = Kinds.of(precision, "cpu", dropout=dropout)
    planned = activations(shape, rows(), kinds, checkpointing=False, scores_only=scorer)
    assert planned.kept == pytest.approx(saved_bytes(form, arguments), rel=TOLERANCE)


@pytest.mark.parametrize(("act", "dropout", "precision"), KINDS)
@pytest.mark.parametrize("scorer", [False, True])
def test_what_is_saved_of_rows_of_one_length(act, dropout, precision, scorer):
    """As `Job` asks for them: nothing is padded, so that every byte is accounted for, but for small change of the scorer."""
    form, arguments, shape = make(act, dropout, precision, scorer=scorer, lengths=([90] * 12, [60] * 12))
    kinds = Kinds.of(precision, "cpu", dropout=dropout)
    planned = activations(shape, Rows.alike(12, 90, 60), kinds, checkpointing=False, scores_only=scorer)
    assert planned.kept == pytest.approx(saved_bytes(form, arguments), rel=0.02 if scorer else 0.001)


@pytest.mark.parametrize(("act", "dropout", "precision"), KINDS)
def test_what_checkpointing_keeps(act, dropout, precision):
    form, arguments, shape = make(act, dropout, precision)
    checkpoint(form.model)
    kinds = Kinds.of(precision, "cpu", dropout=dropout)
    planned = activations(shape, rows(), kinds, checkpointing=True)
    kept, _ = pass_bytes(form, arguments)
    assert planned.kept == pytest.approx(kept, rel=TOLERANCE)
    assert planned.kept < activations(shape, rows(), kinds, checkpointing=False).kept / 5


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("act", "dropout", "precision"), KINDS)
def test_peaks_are_not_above_the_plan(act, dropout, precision, checkpointing):
    """Gradients of weights are counted among the states."""
    form, arguments, shape = make(act, dropout, precision)
    if checkpointing:
        checkpoint(form.model)
    kinds = Kinds.of(precision, "cpu", dropout=dropout)
    planned = activations(shape, rows(), kinds, checkpointing=checkpointing)
    _, peak = pass_bytes(form, arguments)
    weight = 2 if precision == "bf16" else 4
    assert peak <= planned.peak * (1 + TOLERANCE) + weight * num_parameters(shape)
    assert planned.peak <= peak * 1.5


def test_gpus_keep_masks_as_bytes():
    _, _, shape = make("gated-gelu", 0.1, "bf16")
    on_gpu, on_cpu = (
        activations(shape, rows(), Kinds.of("bf16", device, dropout=0.1), checkpointing=False)
        for device in ("cuda", "cpu")
    )
    assert on_gpu.kept < on_cpu.kept


@pytest.mark.parametrize("kind", ["Bert", "GPT2"])
@pytest.mark.parametrize("dropout", [0.1, 0.0])
def test_what_a_stack_saves(kind, dropout):
    """Explicit attention; torch's fused one keeps less without dropout."""
    if kind == "Bert":
        sizes = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 256}
        rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    else:
        sizes = {"n_embd": 64, "n_layer": 6, "n_head": 4, "pad_token_id": 0}
        rates = {"resid_pdrop": dropout, "attn_pdrop": dropout, "embd_pdrop": dropout}
    config = getattr(transformers, f"{kind}Config")(**sizes, **rates, vocab_size=300, attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).train()
    shape = shape_of(config.to_dict(), name="x")
    ids = torch.randint(1, 300, (12, 90))
    kinds = Kinds.of("fp32", "cpu", dropout=dropout)
    planned = activations(shape, Rows.alike(12, 90, 0), kinds, checkpointing=False)
    mask = torch.ones_like(ids)
    mask[0, 80:] = 0
    assert planned.kept == pytest.approx(saved_bytes(model, input_ids=ids, attention_mask=mask), rel=TOLERANCE)
