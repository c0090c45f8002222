"""Parameters counted from configurations are exactly those of the models that transformers makes."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from workflow.errors import ModelError
from workflow.models.model_shape import num_factored, num_parameters, shape_of
from workflow.models.published import PUBLISHED, published_config

SMALL = {"d_model": 24, "d_kv": 8, "num_heads": 3, "d_ff": 40, "vocab_size": 77, "num_layers": 2}
FAMILIES = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}


def t5(config: dict):
    """On the meta device; the head of its own where the configuration says so, as the loader has it."""
    prefix = FAMILIES[config["model_type"]]
    kind, settings = (getattr(transformers, prefix + end) for end in ("ForConditionalGeneration", "Config"))
    options = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model = kind(settings(**options))
        if not config["tie_word_embeddings"]:
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    return model


def numel(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("act", ["relu", "gated-gelu"])
@pytest.mark.parametrize("tied", [True, False])
def test_small_t5s(family, act, tied):
    config = {
        "model_type": family,
        **SMALL,
        "num_decoder_layers": 3,
        "feed_forward_proj": act,
        "tie_word_embeddings": tied,
    }
    assert num_parameters(shape_of(config, name="x")) == numel(t5(config))


@pytest.mark.parametrize("name", ["flan-t5-xxl", "t5-11b", "mt5-small", "umt5-base", "byt5-large"])
def test_published_t5s(name):
    config = published_config(name)
    assert num_parameters(shape_of(config, name=name)) == numel(t5(config))


def test_published_numbers():
    """As the models' pages give them."""
    counts = {name: num_parameters(shape_of(config, name=name)) for name, config in PUBLISHED.items()}
    assert counts["flan-t5-xxl"] == 11_135_332_352
    assert counts["t5-small"] == 60_506_624
    assert counts["mt5-xxl"] == 12_921_057_280
    assert published_config("google/flan-t5-xxl") == published_config("flan-t5-xxl")
    assert published_config("somebody/flan-t5-xxl") is None


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("Bert", {"type_vocab_size": 2}),
        ("Roberta", {"type_vocab_size": 1, "pad_token_id": 1}),
        ("XLMRoberta", {"type_vocab_size": 1, "pad_token_id": 1}),
        ("GPT2", {}),
    ],
)
@pytest.mark.parametrize("labels", [2, 5])
def test_stacks(kind, more, labels):
    sizes = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "vocab_size": 70,
        "intermediate_size": 50,
    }
    if kind == "GPT2":
        sizes = {"n_embd": 24, "n_layer": 3, "n_head": 2, "vocab_size": 70, "n_positions": 31}
    config = getattr(transformers, f"{kind}Config")(**sizes, **more, num_labels=labels)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    assert num_parameters(shape_of(config.to_dict(), name="x", num_labels=labels)) == numel(model)


@pytest.mark.parametrize("name", ["bert-base-uncased", "bert-large-cased", "gpt2-xl"])
def test_published_stacks(name):
    config = published_config(name)
    prefix = "GPT2" if name.startswith("gpt2") else "Bert"
    with torch.device("meta"):
        model = getattr(transformers, f"{prefix}ForSequenceClassification")(
            getattr(transformers, f"{prefix}Config")(
                **{key: value for key, value in config.items() if key != "model_type"}
            )
        )
    assert num_parameters(shape_of(config, name=name)) == numel(model)


def test_what_adafactor_keeps():
    from transformers.optimization import Adafactor

    config = {"model_type": "t5", **SMALL, "feed_forward_proj": "relu", "tie_word_embeddings": True}
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**{k: v for k, v in config.items() if k != "model_type"})
    )
    optimizer = Adafactor(model.parameters(), scale_parameter=False, relative_step=False, warmup_init=False, lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = (value for state in optimizer.state.values() for value in state.values() if getattr(value, "ndim", 0))
    assert sum(value.numel() for value in kept) == num_factored(shape_of(config, name="x"))


def test_checkpoints_of_every_head(flan_like, t5_like, bert_like):
    """Configurations as they are saved."""
    for folder, kind in ((flan_like, "Seq2SeqLM"), (t5_like, "Seq2SeqLM"), (bert_like, "SequenceClassification")):
        config = json.loads((folder / "config.json").read_text())
        model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder)
        assert num_parameters(shape_of(config, name="x")) == numel(model)


def test_what_is_not_known():
    with pytest.raises(ModelError, match="a llama model; plans are made for t5"):
        shape_of({"model_type": "llama"}, name="x")
    with pytest.raises(ModelError, match="wrong kind"):
        shape_of({"model_type": "t5", "num_heads": "many", "d_kv": None}, name="x")
