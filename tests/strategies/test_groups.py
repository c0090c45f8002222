"""Which rate each part of a model gets, and that each parameter stands in exactly one group."""

from __future__ import annotations

import pytest
import torch
import transformers

from workflow.config.strategy_settings import Freeze as FreezeSettings
from workflow.config.strategy_settings import GroupedLayerwiseLrd as GroupedSettings
from workflow.config.strategy_settings import LayerwiseLrd as LayerwiseSettings
from workflow.config.strategy_settings import Reinit as ReinitSettings
from workflow.config.strategy_settings import Swa as SwaSettings
from workflow.errors import ConfigError
from workflow.models.adapters import AdapterPlan, add_adapters
from workflow.models.layer_stack import parts_of
from workflow.models.load import head_names
from workflow.strategies.composed import Composed
from workflow.strategies.freeze import Freeze
from workflow.strategies.grouped_layerwise_lrd import GroupedLayerwiseLrd
from workflow.strategies.layerwise_lrd import LayerwiseLrd
from workflow.strategies.reinit import Reinit
from workflow.strategies.weight_averaging import Swa
from workflow.training.optim import groups_record, make_optimizer, optimizer_groups, planned_groups, rates_text, set_lr

WIDTHS = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}


def t5(*, tied=False, layers=2, decoder_layers=3):
    config = transformers.T5Config(
        d_model=8,
        d_kv=4,
        d_ff=8,
        num_heads=2,
        vocab_size=20,
        decoder_start_token_id=0,
        num_layers=layers,
        num_decoder_layers=decoder_layers,
    )
    model = transformers.T5ForConditionalGeneration(config)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def bert(layers=4, kind="Bert", **more):
    config = getattr(transformers, f"{kind}Config")(num_hidden_layers=layers, **WIDTHS, **more)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config)


def gpt2():
    config = transformers.GPT2Config(n_embd=8, n_layer=3, n_head=2, vocab_size=20, bos_token_id=1, eos_token_id=1)
    return transformers.GPT2ForSequenceClassification(config)


def distilbert():
    config = transformers.DistilBertConfig(dim=8, n_layers=3, n_heads=2, hidden_dim=8, vocab_size=20)
    return transformers.DistilBertForSequenceClassification(config)


MODELS = {
    "t5": (t5, {"encoder": 2, "decoder": 3}, {"embeddings", "encoder.final", "decoder.final", "head"}),
    "tied t5": (lambda: t5(tied=True), {"encoder": 2, "decoder": 3}, {"embeddings", "encoder.final", "decoder.final"}),
    "bert": (bert, {"encoder": 4}, {"embeddings", "pooler", "head"}),
    "roberta": (lambda: bert(kind="Roberta"), {"encoder": 4}, {"embeddings", "head"}),
    "electra": (lambda: bert(kind="Electra", embedding_size=4), {"encoder": 4}, {"embeddings", "head"}),
    "distilbert": (distilbert, {"layers": 3}, {"embeddings", "head"}),
    "gpt2": (gpt2, {"layers": 3}, {"embeddings", "layers.final", "head"}),
}


def groups_of(model, *strategies, lr=1e-3, weight_decay=0.01):
    composed = Composed(strategies)
    plain = planned_groups(
        model, lr=lr, weight_decay=weight_decay, head=frozenset(head_names(model)), by_layer=composed.by_layer
    )
    return composed.param_groups(plain, lr=lr)


def rates(groups):
    return {group.name.partition(",")[0]: group.initial_lr for group in groups}


@pytest.mark.parametrize("name", MODELS)
def test_parts_come_from_the_model(name):
    make, stacks, others = MODELS[name]
    parts = parts_of(make())
    layers = {f"{stack}.{number}" for stack, count in stacks.items() for number in range(count)}
    assert {str(part) for part in parts.values()} == layers | others


def test_a_relative_bias_belongs_to_its_layer_and_embeddings_lie_lowest():
    parts = parts_of(t5())
    bias = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert str(parts[bias]) == "decoder.0"
    assert parts["shared.weight"].depth == 3
    assert parts["encoder.block.1.layer.0.SelfAttention.q.weight"].depth == 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("strategy", [None, LayerwiseLrd(LayerwiseSettings()), GroupedLayerwiseLrd(GroupedSettings())])
def test_every_parameter_is_in_exactly_one_group_and_trains(name, strategy):
    """The practice that this comes from had its head in no group: it was never trained, and nobody saw it."""
    model = MODELS[name][0]()
    groups = groups_of(model, *([strategy] if strategy else []))
    listed = [parameter for group in groups_record(groups) for parameter in group["parameters"]]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    optimizer = make_optimizer("adamw", optimizer_groups(model, groups))
    set_lr(optimizer, 1.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_groups_that_lack_or_repeat_a_parameter_are_refused():
    model = bert()
    groups = groups_of(model)
    with pytest.raises(AssertionError, match="not in exactly one group"):
        optimizer_groups(model, groups[:-1])
    with pytest.raises(AssertionError, match="classifier"):
        optimizer_groups(model, [*groups, groups[-1]])


def test_layerwise_decay():
    found = rates(groups_of(bert(), LayerwiseLrd(LayerwiseSettings(top_lr=3.5e-6))))
    expected = {"head": 3.6e-6, "pooler": 3.6e-6, "embeddings": 3.5e-6 * 0.9**4}
    expected |= {f"encoder.{number}": 3.5e-6 * 0.9 ** (3 - number) for number in range(4)}
    assert found == pytest.approx(expected)
    both = rates(groups_of(t5(), LayerwiseLrd(LayerwiseSettings(decay=0.5, head_lr=7.0)), lr=8.0))
    assert both == {
        "embeddings": 1.0,
        "decoder.0": 2.0,
        "decoder.1": 4.0,
        "decoder.2": 8.0,
        "decoder.final": 8.0,
        "encoder.0": 4.0,
        "encoder.1": 8.0,
        "encoder.final": 8.0,
        "head": 7.0,
    }


def test_thirds():
    found = rates(groups_of(bert(layers=12), GroupedLayerwiseLrd(GroupedSettings(base_lr=1e-6))))
    assert found["embeddings"] == found["encoder.0"] == found["encoder.3"] == pytest.approx(1e-6)
    assert found["encoder.4"] == found["encoder.7"] == pytest.approx(1.75e-6)
    assert found["encoder.8"] == found["encoder.11"] == pytest.approx(3.5e-6)
    assert found["head"] == found["pooler"] == pytest.approx(3.6e-6)
    few = rates(groups_of(bert(layers=2), GroupedLayerwiseLrd(GroupedSettings()), lr=1.0))
    assert (few["encoder.0"], few["encoder.1"]) == (1.0, 1.75)


def test_norms_and_biases_do_not_decay():
    groups = groups_of(t5(), LayerwiseLrd(LayerwiseSettings()))
    for group in groups:
        plain = [name for name in group.parameters if "layer_norm" in name or "relative" in name]
        assert plain == ([] if group.weight_decay else list(group.parameters))


def test_adapters_belong_to_their_layer():
    model = bert()
    add_adapters(model, AdapterPlan(2, 4.0), start="x", seed=0)
    found = groups_of(model, LayerwiseLrd(LayerwiseSettings()), lr=1.0)
    of_layer = {name: group.name for group in found for name in group.parameters}
    assert of_layer["bert.encoder.layer.2.attention.self.query.lora_A.default.weight"] == "encoder.2"
    assert of_layer["classifier.weight"] == "head"
    assert not any("base_layer" in name for name in of_layer)


def test_the_head_first_then_layer_after_layer():
    freeze = Freeze(FreezeSettings(head=2, every=3))
    freeze.plan(20)
    groups = {group.name: group for group in groups_of(bert(), freeze)}

    def learning(step):
        rate = Composed([freeze]).rates(0.5, step=step, highest=1.0)
        return {name for name, group in groups.items() if "," not in name and rate(group.part) == 0.5}

    heads = {"head", "pooler"}
    assert learning(1) == learning(2) == heads
    assert learning(3) == heads | {"encoder.3"}
    assert learning(6) == heads | {"encoder.3", "encoder.2"}
    assert "embeddings" not in learning(14)
    assert learning(15) == {name for name in groups if "," not in name}


def test_freezing_that_cannot_be_is_refused():
    late = Freeze(FreezeSettings(head=0.5, every=4))
    late.plan(20)
    with pytest.raises(ConfigError, match=r"after 26 updates, and this run has 20"):
        groups_of(bert(), late)
    head = Freeze(FreezeSettings())
    head.plan(20)
    with pytest.raises(ConfigError, match=r"no head that trains by itself"):
        groups_of(t5(tied=True), head)


def test_an_own_rate_keeps_proportions_and_what_is_frozen():
    swa = Swa(SwaSettings(start=5, lr=2.0))
    swa.plan(10)
    composed = Composed([swa])
    assert composed.rates(0.25, step=4, highest=8.0)(None) == 0.25
    assert composed.rates(0.25, step=5, highest=8.0)(None) == 0.25 * 1.0  # 2 / 8
    assert composed.rates(0.9, step=10, highest=8.0)(None) == 0.25
    assert composed.rates(0.0, step=10, highest=8.0)(None) == 0.0


def test_rates_are_shown_from_the_top():
    text = rates_text(groups_of(bert(layers=2), LayerwiseLrd(LayerwiseSettings(top_lr=1e-3, decay=0.5))))
    assert text == "0.00103 head pooler; 0.001 encoder.1; 0.0005 encoder.0; 0.00025 embeddings"


def test_layers_that_share_their_weights_are_told():
    """ALBERT: one set of weights is all twelve layers, so no strategy can treat them one by one."""
    albert, plain = bert(12, "Albert", embedding_size=8), bert(2)
    for strategy in (
        LayerwiseLrd(LayerwiseSettings()),
        GroupedLayerwiseLrd(GroupedSettings()),
        Freeze(FreezeSettings()),
    ):
        (note,) = Composed([strategy]).prepare_model(albert, seed=0)
        assert f"the 12 layers of this albert are 1 set of weights, so --{strategy.name} does not" in note
        assert Composed([strategy]).prepare_model(plain, seed=0) == []
    assert len(Reinit(ReinitSettings(layers=1)).prepare_model(plain, seed=0)) == 1
    notes = Reinit(ReinitSettings(layers=1)).prepare_model(albert, seed=0)
    assert "so --reinit.layers 1 starts each layer anew that has them" in notes[-1]
    assert len(Reinit(ReinitSettings(layers=0)).prepare_model(albert, seed=0)) == 1
    with pytest.raises(ConfigError, match=r"has 1 encoder layers \(the 12 layers of this albert"):
        Reinit(ReinitSettings(layers=2)).prepare_model(albert, seed=0)
    assert not any("shared" in note for note in Composed([Swa(SwaSettings(start=1))]).prepare_model(albert, seed=0))
