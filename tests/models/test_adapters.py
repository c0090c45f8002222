"""Adapters: ragged training has peft's numbers, what is written is what peft reads, merged is the same as beside."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers
from peft import AutoPeftModelForSeq2SeqLM, AutoPeftModelForSequenceClassification, PeftModel

from tests.models import test_ragged_bert as berts
from tests.models import test_ragged_training as t5s
from tests.models.test_ragged_training import MIXES, packed, rows_of
from workflow.errors import ConfigError, ModelError
from workflow.models.adapters import AdapterPlan, add_adapters, target_names
from workflow.models.classifier import LabelRows
from workflow.models.ragged_bert import RaggedBert
from workflow.models.ragged_training import RaggedScorer, RaggedT5
from workflow.models.save import write_model
from workflow.models.trainable import train_only
from workflow.training.objectives import score_losses

# peft asks transformers for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
LORA_KINDS = ("lora", "rslora", "dora")
LEAVES = {
    "t5": {"attention": "qkvo", "all": ["q", "k", "v", "o", "wi", "wo"]},
    "t5-v1.1": {"attention": "qkvo", "all": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]},
    "bert": {"attention": ["query", "key", "value", "dense"], "all": ["query", "key", "value", "dense"]},
}


def adapted(model, *, targets=("all",), kind="lora", dropout=0.0, new=(), size=0.05):
    """(the model with adapters that do something, its adapters, the model as it was)."""
    before = copy.deepcopy(model)
    plan = AdapterPlan(rank=3, alpha=5.0, dropout=dropout, targets=targets, kind=kind)
    adapters = add_adapters(model, plan, start="base", new_weights=new, seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=size)
            elif "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
    return model, adapters, before


def of_peft(before, adapters, model, folder):
    """The adapters, written and loaded by peft upon the model as it was."""
    adapters.write(folder / "adapter", dict(model.named_parameters()))
    return PeftModel.from_pretrained(before, folder / "adapter", is_trainable=True).train()


def gradients(model, loss):
    """Of what trains, by the names of the plain model with adapters."""
    model.zero_grad()
    loss.backward()
    return {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", ""): parameter.grad.float()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    t5s.assert_alike(found, expected)
    assert all(float(gradient.abs().max()) > 0 for gradient in found.values())


@pytest.mark.parametrize("lora_kind", LORA_KINDS)
@pytest.mark.parametrize("targets", ["attention", "all"])
@pytest.mark.parametrize("kind", ["t5", "t5-v1.1", "umt5"])
def test_loss_and_gradients_of_a_t5_are_those_of_peft(kind, targets, lora_kind, tmp_path):
    sources, targets_ = (rows_of(lengths, seed) for seed, lengths in enumerate(MIXES["mixed"]))
    model, adapters, before = adapted(t5s.make(kind), targets=(targets,), kind=lora_kind)
    theirs = of_peft(before, adapters, model, tmp_path)
    expected_loss = t5s.eager_loss(theirs, sources, targets_)
    loss = RaggedT5(model).train()(packed(sources), packed(targets_))
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert_same(gradients(model, loss), gradients(theirs, expected_loss))


@pytest.mark.parametrize("lora_kind", LORA_KINDS)
@pytest.mark.parametrize("targets", [("attention",), ("all",), ("k",), ("EncDecAttention.v",), ("wi_*", "wo")])
def test_scores_of_a_t5_are_those_of_peft(targets, lora_kind, tmp_path):
    """Absorbed cross-attention reads bare weights: it must step aside where queries, keys or values have adapters."""
    sources = rows_of(MIXES["mixed"][0], 0)
    model = t5s.make("t5-v1.1")
    model.lm_head = LabelRows(model.lm_head.weight, [7, 3])
    model, adapters, before = adapted(model, targets=targets, kind=lora_kind)
    theirs = of_peft(before, adapters, model, tmp_path)
    weights = torch.randn(len(sources), 2)
    expected = t5s.eager_logits(theirs, sources)
    form = RaggedScorer(model).train()
    assert form.is_absorbed == (targets == ("wi_*", "wo"))
    logits = form(packed(sources))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    found, wanted = (gradients(one, (logits * weights).sum()) for one, logits in ((model, logits), (theirs, expected)))
    # One key has no say in its own weight: the decoder's self-attention gives its queries and keys no gradient.
    idle = [
        name for name in wanted if ".SelfAttention." in name and name.startswith("decoder") and not wanted[name].any()
    ]
    for name in idle:
        assert not found.pop(name).any()
        wanted.pop(name)
    assert len(idle) < len(wanted) or targets == ("k",)
    assert_same(found, wanted)


@pytest.mark.parametrize("lora_kind", LORA_KINDS)
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_loss_and_gradients_of_a_bert_are_those_of_peft(kind, lora_kind, tmp_path):
    rows, types = berts.inputs("mixed")
    targets = berts.targets_of("multiclass", len(rows))
    model = berts.make(kind, labels=3)
    pooler = [name for name, _ in model.named_parameters() if ".pooler." in name]
    heads = [name for name, _ in model.named_parameters() if "classifier" in name]
    model, adapters, before = adapted(model, kind=lora_kind, new=pooler)
    theirs = of_peft(before, adapters, model, tmp_path)
    expected_logits = berts.eager(model, rows, types)
    peft_logits = berts.eager(theirs.get_base_model(), rows, types)
    torch.testing.assert_close(peft_logits, expected_logits, rtol=1e-5, atol=1e-5)
    expected = gradients(theirs, score_losses("multiclass", peft_logits, targets).sum())
    logits = RaggedBert(model).train()(berts.packed(model, rows, types))
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
    found = gradients(model, score_losses("multiclass", logits, targets).sum())
    assert found.keys() == expected.keys()
    assert {name for name in found if ".lora_" not in name} == {*pooler, *heads}
    t5s.assert_alike(found, expected)


@pytest.mark.parametrize("lora_kind", LORA_KINDS)
@pytest.mark.parametrize("kind", ["flan_like", "t5_like", "bert_like", "gpt2_like"])
def test_what_is_written_is_a_plain_model_and_an_adapter(kind, lora_kind, request, tmp_path):
    """Merged logits, those of peft upon the base, and those in training are the same."""
    from workflow.models.classifier import load_classifier
    from workflow.models.load import load_seq2seq

    start = str(request.getfixturevalue(kind))
    is_t5 = kind in ("flan_like", "t5_like")
    loaded = load_seq2seq(start) if is_t5 else load_classifier(start, problem="binary", labels=["no", "yes"], seed=3)
    model, adapters, before = adapted(loaded.model, kind=lora_kind, new=loaded.new_weights, size=0.2)
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    write_model(folder, model, loaded.tokenizer, dict(model.named_parameters()), adapters=adapters)
    if is_t5:
        plain = load_seq2seq(str(folder)).model
    else:
        again = load_classifier(str(folder), problem="binary", labels=["no", "yes"])
        assert not again.has_new_head
        plain = again.model
    ids = torch.randint(5, model.config.vocab_size, (3, 7), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs |= {"decoder_input_ids": ids[:, :4]} if is_t5 else {}
    beside = PeftModel.from_pretrained(before, folder / "adapter")
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        for other in (plain, beside):
            torch.testing.assert_close(other.eval()(**inputs).logits, expected, rtol=1e-5, atol=1e-5)
    assert all(float((layer.merged() - layer.base).detach().abs().max()) > 1e-3 for layer in adapters.layers)
    stock = transformers.AutoModelForSeq2SeqLM if is_t5 else transformers.AutoModelForSequenceClassification
    names = {*dict(stock.from_pretrained(folder).named_parameters())}
    assert not any("lora" in name or "base_layer" in name for name in names)


@pytest.mark.parametrize("kind", ["flan_like", "bert_like", "gpt2_like"])
def test_peft_chooses_the_class_by_the_adapter_alone(kind, request, tmp_path):
    """As servers and endpoints do, which know the adapter's folder and nothing else."""
    from workflow.models.classifier import load_classifier
    from workflow.models.load import load_seq2seq

    start, is_t5 = str(request.getfixturevalue(kind)), kind == "flan_like"
    loaded = load_seq2seq(start) if is_t5 else load_classifier(start, problem="binary", labels=["no", "yes"], seed=3)
    model = loaded.model
    adapters = add_adapters(
        model, AdapterPlan(rank=2, alpha=4.0, targets=("all",)), start=start, seed=1, new_weights=loaded.new_weights
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    adapters.write(tmp_path / "adapter", dict(model.named_parameters()))
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["task_type"], config["inference_mode"]) == ("SEQ_2_SEQ_LM" if is_t5 else "SEQ_CLS", True)
    kinds = AutoPeftModelForSeq2SeqLM if is_t5 else AutoPeftModelForSequenceClassification
    more = {} if is_t5 else {"pad_token_id": model.config.pad_token_id}
    found = kinds.from_pretrained(tmp_path / "adapter", **more)
    ids = torch.arange(6, 12)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | ({"decoder_input_ids": ids} if is_t5 else {})
    with torch.no_grad():
        expected, theirs = (one.eval()(**inputs).logits for one in (model, found))
    torch.testing.assert_close(theirs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", LEAVES)
def test_targets_by_family(kind):
    model = berts.make("bert") if kind == "bert" else t5s.make(kind)
    for target, leaves in LEAVES[kind].items():
        names = target_names(model, [target])
        assert {name.rpartition(".")[2] for name in names} == {*leaves}
        assert not any(name.startswith(("lm_head", "classifier")) or "pooler" in name for name in names)
    if kind == "bert":
        assert len(target_names(model, ["attention"])) == 4 * 2
        assert len(target_names(model, ["all"])) == 6 * 2


def test_targets_by_pattern():
    model = t5s.make("t5-v1.1")
    assert target_names(model, ["decoder.*.EncDecAttention.k"]) == [
        f"decoder.block.{number}.layer.1.EncDecAttention.k" for number in range(3)
    ]
    assert target_names(model, ["wo", "wi_?"]) == [name for name in target_names(model, ["all"]) if "Dense" in name]
    with pytest.raises(ConfigError, match=r"--lora_targets wi: matches no linear map.*wi_0, wi_1"):
        target_names(model, ["q", "wi"])
    with pytest.raises(ConfigError, match="matches no linear map"):
        target_names(model, ["lm_head"])


def test_only_adapters_and_heads_train_and_heads_stay():
    model = t5s.make("t5-v1.1")
    head = model.lm_head.weight.detach().clone()
    model, adapters, _ = adapted(model)
    assert adapters.trained == {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(".lora_" in name for name in adapters.trained)
    assert torch.equal(adapters.merged(dict(model.named_parameters()))["lm_head.weight"], head)


def test_adapters_of_another_base_are_refused(tmp_path):
    model, adapters, _ = adapted(t5s.make("t5-v1.1"))
    adapters.write(tmp_path / "adapter", dict(model.named_parameters()))
    again, same, _ = adapted(t5s.make("t5-v1.1"))
    with torch.no_grad():
        for name in adapters.trained:
            again.get_parameter(name).zero_()
    same.load(tmp_path / "adapter", again)
    for name in adapters.trained:
        assert torch.equal(again.get_parameter(name), model.get_parameter(name))
    other, others, _ = adapted(t5s.make("t5-v1.1", seed=1))
    with pytest.raises(ModelError, match=r"belong to another model \(base\)"):
        others.load(tmp_path / "adapter", other)
    for settings, text in (
        ({"kind": "rslora"}, "adapters of other settings"),
        ({"targets": ("attention",)}, "other linear maps"),
    ):
        one, ones, _ = adapted(t5s.make("t5-v1.1"), **settings)
        with pytest.raises(ModelError, match=text):
            ones.load(tmp_path / "adapter", one)


def test_dropout_of_adapters_acts_in_training_alone():
    sources, targets = (rows_of(lengths, seed) for seed, lengths in enumerate(MIXES["mixed"]))
    model, _, _ = adapted(t5s.make("t5-v1.1"), dropout=0.5)
    form = RaggedT5(model)
    with torch.no_grad():
        one, other = (form.train()(packed(sources), packed(targets)) for _ in range(2))
        assert not torch.equal(one, other)
        one, other = (form.eval()(packed(sources), packed(targets)) for _ in range(2))
        assert torch.equal(one, other)


# ---- some of a model's own weights


def test_bitfit_and_patterns():
    model = berts.make("bert")
    train_only(model, ["bias", "norm", "head"])
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert "classifier.weight" in trained
    assert "bert.embeddings.LayerNorm.weight" in trained
    assert all(name.endswith(".bias") or "LayerNorm" in name or "classifier" in name for name in trained)
    assert all(weight.requires_grad == (name in trained) for name, weight in model.named_parameters())
    train_only(model, ["encoder.layer.1.*.query.*"], always=["classifier.bias"])
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
        "bert.encoder.layer.1.attention.self.query.weight",
        "bert.encoder.layer.1.attention.self.query.bias",
        "classifier.bias",
    }


def test_the_name_of_a_module_means_what_it_holds():
    model = t5s.make("t5-v1.1")
    train_only(model, ["wo", "encoder.block.1"])
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {
        name for name, _ in model.named_parameters() if ".wo." in name or name.startswith("encoder.block.1.")
    }


def test_a_tied_head_is_one_weight_by_any_name():
    model = t5s.make("t5")
    train_only(model, ["head"])
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == ["shared.weight"]


def test_patterns_that_match_nothing_name_near_ones():
    model = t5s.make("t5-v1.1")
    with pytest.raises(
        ConfigError, match=r"--train_only bias: matches no parameter of this t5; near are: .*relative_attention_bias"
    ):
        train_only(model, ["norm", "bias"])
    with pytest.raises(ConfigError, match=r"near are: .*layer_norm"):
        train_only(model, ["*.layer_norn.*"])


def test_a_frozen_head_costs_no_product():
    sources, targets = (rows_of(lengths, seed) for seed, lengths in enumerate(MIXES["mixed"]))
    model = t5s.make("t5-v1.1")
    whole = t5s.gradients(model, RaggedT5(model).train()(packed(sources), packed(targets)))
    train_only(model, ["norm"])
    model.zero_grad()
    RaggedT5(model).train()(packed(sources), packed(targets)).backward()
    assert model.lm_head.weight.grad is None
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert found
    t5s.assert_alike(found, {name: whole[name] for name in found})
