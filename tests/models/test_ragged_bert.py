"""The packed forward of BERT-like models against transformers' own, padded and eager: the same loss, the same gradients.

Without dropout to rounding, with it by count and statistically; for every family, problem, and mix of lengths.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import transformers

from tests.models.test_ragged_training import assert_alike, checkpoint, cosine, gradients, padded, rows_of
from workflow.data.packing import Ragged, token_keys
from workflow.models import dropout, ragged_attention
from workflow.models.dropout import keep_mask
from workflow.models.ragged import ragged_form_of, why_padded
from workflow.models.ragged_bert import RaggedBert
from workflow.training.objectives import score_losses

HIDDEN, HEADS, LAYERS, LONGEST, PAD = 32, 4, 2, 64, 1
SIZES = {
    "vocab_size": 101,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "pad_token_id": PAD,
}
KINDS = {  # positions of a RoBERTa begin behind padding's
    "bert": (transformers.BertConfig, {"max_position_embeddings": LONGEST}),
    "roberta": (transformers.RobertaConfig, {"max_position_embeddings": LONGEST + PAD + 1, "type_vocab_size": 1}),
    "xlm-roberta": (transformers.XLMRobertaConfig, {"max_position_embeddings": LONGEST + PAD + 1}),
    "camembert": (transformers.CamembertConfig, {"max_position_embeddings": LONGEST + PAD + 1, "type_vocab_size": 1}),
    "data2vec": (transformers.Data2VecTextConfig, {"max_position_embeddings": LONGEST + PAD + 1}),
    "electra": (transformers.ElectraConfig, {"max_position_embeddings": LONGEST, "embedding_size": 24}),
    "electra-one-size": (transformers.ElectraConfig, {"max_position_embeddings": LONGEST, "embedding_size": HIDDEN}),
    "distilbert": (transformers.DistilBertConfig, {"max_position_embeddings": LONGEST}),
}
DROPOUTS = {
    "distilbert": ("dropout", "attention_dropout", "seq_classif_dropout"),
    "others": ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
}
MIXES = {
    "one token": [1],
    "alike": [6, 6, 6],
    "mixed": [3, 9, 1, 9, 12, 3],
    "one of the longest": [LONGEST, 4, 1, 30],
}
PROBLEMS = {"binary": 2, "multiclass": 3, "multilabel": 4, "regression": 1}


def make(kind: str, *, labels: int = 2, rates: tuple[float, float, float] = (0.0, 0.0, 0.0)):
    """A model that trains; the rates of dropout are those of states, attention weights and the head."""
    config_class, more = KINDS[kind]
    torch.manual_seed(0)
    names = DROPOUTS.get(kind, DROPOUTS["others"])
    sizes = dict(SIZES)
    if kind == "distilbert":
        for theirs, its in (
            ("hidden_size", "dim"),
            ("num_hidden_layers", "n_layers"),
            ("num_attention_heads", "n_heads"),
            ("intermediate_size", "hidden_dim"),
        ):
            sizes[its] = sizes.pop(theirs)
    config = config_class(**{**sizes, **more}, **dict(zip(names, rates, strict=True)))
    config.num_labels = labels
    model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # larger than they start with, so that every part has a say
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def inputs(mix: str, seed: int = 0):
    """(ids, token types) of each row, as of a pair: a type changes once."""
    rows = rows_of(MIXES[mix], seed)
    return rows, [(torch.arange(len(row)) >= (len(row) + 1) // 2).long() for row in rows]


def takes_types(model) -> bool:
    return hasattr(model.base_model.embeddings, "token_type_embeddings") and model.config.type_vocab_size > 1


def eager(model, rows, types):
    """Logits by transformers' forward of a padded batch."""
    more = {"token_type_ids": padded(types, 0)} if takes_types(model) else {}
    mask = padded([torch.ones_like(row) for row in rows], 0)
    return model(input_ids=padded(rows, PAD), attention_mask=mask, **more).logits.float()


def packed(model, rows, types):
    kinds = torch.cat(types) if takes_types(model) else None
    return Ragged(torch.cat(rows), tuple(map(len, rows)), kinds)


def targets_of(problem: str, count: int) -> torch.Tensor:
    torch.manual_seed(9)
    width = PROBLEMS[problem]
    if problem in ("binary", "multiclass"):
        return (3 * torch.randn(count, width)).softmax(dim=1)  # a loss near zero would be rounding alone
    return torch.rand(count, width) if problem == "multilabel" else torch.randn(count, width)


def assert_each_alike(found, expected):
    """1e-5 of each parameter's own largest, unless rounding is all there is: keys' biases move no weight of attention."""
    assert_alike(found, expected)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        own = float(gradient.abs().max())
        assert float((found[name] - gradient).abs().max()) <= max(1e-5 * own, 1e-6 * largest), name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_transformers(kind, problem, mix, checkpointing):
    rows, types = inputs(mix)
    model = make(kind, labels=PROBLEMS[problem])
    targets = targets_of(problem, len(rows))
    expected_logits = eager(model, rows, types)
    expected_loss = score_losses(problem, expected_logits, targets).sum()
    expected = gradients(model, expected_loss)
    if checkpointing:
        checkpoint(model)
    logits = RaggedBert(model).train()(packed(model, rows, types))
    loss = score_losses(problem, logits, targets).sum()
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert_each_alike(gradients(model, loss), expected)


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_token_types_count(kind):
    rows, types = inputs("mixed")
    model = make(kind)
    form = RaggedBert(model).eval()
    batch = packed(model, rows, types)
    assert not torch.allclose(form(batch), form(Ragged(batch.ids, batch.lengths)), atol=1e-3)


def test_a_padding_token_inside_a_text_has_paddings_position():
    rows, types = inputs("mixed")
    rows[1][3] = rows[4][0] = PAD
    model = make("roberta")
    form = RaggedBert(model).eval()
    torch.testing.assert_close(form(packed(model, rows, types)), eager(model, rows, types), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_without_training_are_those_without_dropout(kind):
    rows, types = inputs("mixed")
    plain, noisy = make(kind), make(kind, rates=(0.3, 0.3, 0.3))
    expected = RaggedBert(plain).train()(packed(plain, rows, types))
    form = RaggedBert(noisy)
    assert not torch.allclose(form.train()(packed(noisy, rows, types)), expected, atol=1e-3)
    with torch.no_grad():
        found = form.eval()(packed(noisy, rows, types))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_gradients_point_where_those_of_fp32_point(kind):
    rows, types = inputs("mixed")
    model = make(kind)
    targets = targets_of("binary", len(rows))
    expected = gradients(model, score_losses("binary", eager(model, rows, types), targets).sum())
    half = copy.deepcopy(model).to(torch.bfloat16)
    logits = RaggedBert(half).train()(packed(half, rows, types))
    assert logits.dtype == torch.float32
    assert cosine(gradients(half, score_losses("binary", logits, targets).sum()), expected) > 0.999


@pytest.fixture
def seen(monkeypatch):
    """(elements, rate) of each dropout so far, in order."""
    found = []

    def counted(keys, width, rate, original=keep_mask):
        found.append((keys.first.numel() * width, rate))
        return original(keys, width, rate)

    for module in (dropout, ragged_attention):
        monkeypatch.setattr(module, "keep_mask", counted)

    def functional(x, p=0.5, training=True, inplace=False, original=torch.nn.functional.dropout):
        if training and p > 0:
            found.append((x.numel(), p))
        return original(x, p, training, inplace)

    monkeypatch.setattr(torch.nn.functional, "dropout", functional)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_stands_where_transformers_has_it(kind, seen):
    """In the last layer, of first tokens alone."""
    rows, types = inputs("alike")
    length = len(rows[0])
    model = make(kind, rates=(0.1, 0.2, 0.3))
    eager(model, rows, types)
    theirs = list(seen)
    seen.clear()
    RaggedBert(model).train()(packed(model, rows, types))
    each = 2 if kind == "distilbert" else 3
    assert len(theirs) == 1 + each * LAYERS + (2 if hasattr(model.classifier, "out_proj") else 1)
    assert {rate for _, rate in theirs} == {0.1, 0.2, 0.3}
    last = slice(1 + each * (LAYERS - 1), 1 + each * LAYERS)
    theirs[last] = [(count // length, rate) for count, rate in theirs[last]]
    assert seen == theirs


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_a_function_of_the_row(kind):
    """Rows alone, and in another order, give the gradients of one pack, dropout on."""
    rows, types = inputs("mixed")
    model = make(kind, rates=(0.2, 0.2, 0.2))
    form = RaggedBert(model).train()
    weights = torch.randn(len(rows), 2)
    numbers = [5, 90, 7, 2, 33, 4]

    def summed(chosen):
        pack = packed(model, [rows[n] for n in chosen], [types[n] for n in chosen])
        keys = torch.from_numpy(token_keys(11, [numbers[n] for n in chosen], pack.lengths))
        return (form(replace(pack, keys=keys)) * weights[chosen]).sum()

    expected = gradients(model, summed([0, 1, 2, 3, 4, 5]))
    assert_alike(gradients(model, summed([4, 1]) + summed([0]) + summed([5, 3, 2])), expected)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_checkpointing_repeats_the_masks(kind):
    rows, types = inputs("mixed")
    model = make(kind, rates=(0.2, 0.2, 0.2))
    form = RaggedBert(model).train()
    weights = torch.randn(len(rows), 2)
    torch.manual_seed(3)
    expected = gradients(model, (form(packed(model, rows, types)) * weights).sum())
    checkpoint(model)
    torch.manual_seed(3)
    assert_alike(gradients(model, (form(packed(model, rows, types)) * weights).sum()), expected)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_losses_spread_as_those_of_transformers(kind):
    rows, types = inputs("mixed")
    model = make(kind, rates=(0.2, 0.2, 0.2))
    form, targets = RaggedBert(model).train(), targets_of("binary", len(rows))
    torch.manual_seed(0)

    def losses(call):
        return torch.stack([score_losses("binary", call(), targets).sum().detach() for _ in range(400)])

    theirs, ours = losses(lambda: eager(model, rows, types)), losses(lambda: form(packed(model, rows, types)))
    error = ((ours.var() + theirs.var()) / 400).sqrt()
    assert abs(ours.mean() - theirs.mean()) < 3.5 * error
    assert 0.75 < ours.std() / theirs.std() < 1.33


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_sequence_too_long_is_told_clearly(kind):
    model = make(kind)
    form = RaggedBert(model).eval()
    with pytest.raises(ValueError, match=f"{LONGEST + 1} tokens, but the model has {LONGEST} positions"):
        form(Ragged(torch.full((LONGEST + 3,), 5), (2, LONGEST + 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_belong_to_the_model_alone(kind):
    model = make(kind)
    before = list(model.state_dict())
    assert why_padded(model) is None
    form = ragged_form_of(model, scores=True)
    assert isinstance(form, RaggedBert)
    assert [name.removeprefix("model.") for name in form.state_dict()] == before == list(model.state_dict())


def test_models_that_it_does_not_know():
    config, more = KINDS["bert"]
    assert "head" in why_padded(transformers.BertModel(config(**SIZES, **more)))
    decoder = make("bert")
    decoder.config.is_decoder = True
    assert "look back" in why_padded(decoder)
    odd = make("bert")
    odd.base_model.encoder.layer[1].attention.self = torch.nn.Identity()
    assert "layers" in why_padded(odd)
    odd = make("bert")
    del odd.base_model.embeddings.position_embeddings
    assert "embeddings" in why_padded(odd)
    same_names = transformers.NystromformerConfig(**SIZES, max_position_embeddings=LONGEST)
    other = transformers.AutoModelForSequenceClassification.from_config(same_names)
    assert "nystromformer" in why_padded(other)
