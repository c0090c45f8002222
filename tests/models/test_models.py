"""Loading, saving and making models: heads stay what they are, and every refusal is one clear sentence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.conftest import SMALL, shared
from workflow.errors import ModelError
from workflow.models.load import check_folder, is_path, load_seq2seq
from workflow.models.save import write_model
from workflow.models.scratch import byte_vocabulary, existing_recipe, make_model, train_vocabulary, write_scratch_model
from workflow.models.shapes import SHAPES, Shape
from workflow.models.verbalizers import no_yes_tokens, pieces, single_token


def save_again(loaded, folder):
    weights = {name: parameter.detach() for name, parameter in loaded.model.named_parameters()}
    folder.mkdir()
    write_model(folder, loaded.model, loaded.tokenizer, weights, max_new_tokens=17)
    return folder


def logits(model):
    ids = torch.arange(3, 12).view(1, -1)
    with torch.no_grad():
        return model.eval()(input_ids=ids, decoder_input_ids=ids).logits


@pytest.mark.parametrize("kind", ["flan_like", "t5_like"])
def test_a_saved_checkpoint_is_the_model(kind, request, tmp_path):
    """F6: the embedding is written once. F7: other readers are told whether the head is tied."""
    loaded = load_seq2seq(str(request.getfixturevalue(kind)))
    folder = save_again(loaded, tmp_path / "m")
    own_head = kind == "flan_like"
    assert loaded.has_own_head == own_head
    with safe_open(folder / "model.safetensors", "pt") as file:
        keys = set(file.keys())
    assert ("lm_head.weight" in keys) == own_head
    assert not {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"} & keys
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is not own_head
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert torch.equal(logits(reloaded), logits(loaded.model))
    assert reloaded.generation_config.max_new_tokens == 17  # F12: generate() alone would stop after 20
    assert AutoTokenizer.from_pretrained(folder)("red").input_ids == loaded.tokenizer("red").input_ids


@pytest.mark.parametrize("family", ["mt5", "umt5"])
def test_the_multilingual_families(family, vocabulary, tmp_path):
    """mT5 and UMT5 (a relative bias in every layer) keep their own head through loading, saving and reloading."""
    from transformers import AutoConfig

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
    config = AutoConfig.for_model(family, vocab_size=256, decoder_start_token_id=0, **sizes)
    model = AutoModelForSeq2SeqLM.from_config(config)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(256, 32))
    model.config.tie_word_embeddings = False
    model.save_pretrained(
        tmp_path / "m", state_dict={name: weight.detach() for name, weight in model.named_parameters()}
    )
    vocabulary.save_pretrained(tmp_path / "m")
    loaded = load_seq2seq(str(tmp_path / "m"))
    assert loaded.has_own_head
    assert torch.equal(logits(loaded.model), logits(model))
    folder = save_again(loaded, tmp_path / "again")
    assert torch.equal(logits(load_seq2seq(str(folder)).model), logits(model))
    # Plain transformers 5.23 takes every UMT5 for tied and scales its logits by d_model**-0.5: only the order holds.
    plain = logits(AutoModelForSeq2SeqLM.from_pretrained(folder))
    scale = 32**0.5 if family == "umt5" else 1.0
    assert torch.allclose(plain * scale, logits(model), atol=1e-5)


def test_an_own_head_that_equals_the_embeddings_stays_its_own(flan_like, tmp_path):
    """transformers ties whatever looks equal; the configuration says what is meant."""
    loaded = load_seq2seq(str(flan_like))
    with torch.no_grad():
        loaded.model.lm_head.weight.copy_(loaded.model.shared.weight)
    assert load_seq2seq(str(save_again(loaded, tmp_path / "m"))).has_own_head


def test_a_bf16_checkpoint_is_trained_in_fp32(flan_like, tmp_path):
    """F11: pure bf16 weights would not move at usual learning rates."""
    AutoModelForSeq2SeqLM.from_pretrained(flan_like, dtype=torch.bfloat16).save_pretrained(tmp_path / "m")
    shutil.copy(flan_like / "tokenizer.json", tmp_path / "m")
    shutil.copy(flan_like / "tokenizer_config.json", tmp_path / "m")
    assert {parameter.dtype for parameter in load_seq2seq(str(tmp_path / "m")).model.parameters()} == {torch.float32}


def test_dropout_is_settable(flan_like):
    assert load_seq2seq(str(flan_like)).model.config.dropout_rate == 0.1
    model = load_seq2seq(str(flan_like), dropout=0.25).model
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}


def as_bin(flan_like, folder):
    shutil.copytree(flan_like, folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(flan_like)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return model


def test_bin_weights_are_read(flan_like, tmp_path):
    model = as_bin(flan_like, tmp_path / "m")
    assert torch.equal(logits(load_seq2seq(str(tmp_path / "m")).model), logits(model))


class Evil:
    def __reduce__(self):
        return (print, ("code of a checkpoint ran",))


def test_bin_weights_cannot_run_code(flan_like, tmp_path, capsys):
    as_bin(flan_like, tmp_path / "m")
    torch.save({"shared.weight": Evil()}, tmp_path / "m/pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot read its weights"):
        load_seq2seq(str(tmp_path / "m"))
    assert "ran" not in capsys.readouterr().out


def test_a_file_that_this_user_may_not_read(flan_like, tmp_path, monkeypatch):
    """transformers says of such a file that it is not there."""
    shutil.copytree(flan_like, tmp_path / "m")
    weights = tmp_path / "m/model.safetensors"
    weights.write_bytes(b"")
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != weights and real(path, mode))
    with pytest.raises(ModelError, match="safetensors may not be read by this user"):
        load_seq2seq(str(tmp_path / "m"))


def test_refusals_are_clear(flan_like, tmp_path):
    def broken(name, change):
        folder = tmp_path / name
        shutil.copytree(flan_like, folder)
        change(folder)
        return str(folder)

    def config(**values):
        return lambda folder: (folder / "config.json").write_text(
            json.dumps({**json.loads((folder / "config.json").read_text()), **values})
        )

    cases = {
        "no such folder": str(tmp_path / "nowhere"),
        "no config.json": broken("a", lambda folder: (folder / "config.json").unlink()),
        "no weights here": broken("b", lambda folder: (folder / "model.safetensors").unlink()),
        "no tokenizer here": broken("c", lambda folder: [file.unlink() for file in folder.glob("token*")]),
        "a bert model; this program": broken("d", config(model_type="bert")),
        "disagree about shapes": broken("e", config(d_ff=96)),
        "the weights lack": broken("f", config(num_layers=3)),
        "do not belong together": broken("g", config(vocab_size=3)),
        "cannot read its configuration": broken("h", lambda folder: (folder / "config.json").write_text("{")),
        "cannot read its weights": broken(
            "i", lambda folder: (folder / "model.safetensors").write_bytes(b"12345678 not tensors")
        ),
    }
    for expected, folder in cases.items():
        with pytest.raises(ModelError, match=expected):
            load_seq2seq(folder)


def test_a_tokenizer_without_its_vocabulary(flan_like, tmp_path):
    """transformers would make one of four tokens, and everything would be unknown."""
    shutil.copytree(flan_like, tmp_path / "m")
    (tmp_path / "m/tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer here"):
        load_seq2seq(str(tmp_path / "m"))


def test_a_checkpoints_penalties_do_not_leak_into_generation(flan_like, tmp_path):
    shutil.copytree(flan_like, tmp_path / "m")
    settings = json.loads((tmp_path / "m/generation_config.json").read_text())
    settings |= {"repetition_penalty": 3.0, "no_repeat_ngram_size": 2, "max_new_tokens": 33}
    (tmp_path / "m/generation_config.json").write_text(json.dumps(settings))
    found = load_seq2seq(str(tmp_path / "m")).model.generation_config
    assert (found.max_new_tokens, found.repetition_penalty, found.no_repeat_ngram_size) == (33, None, None)


def test_hub_names_are_not_paths():
    assert not is_path("t5-small")
    assert not is_path("google/flan-t5-xl")
    assert is_path("./t5-small")
    assert is_path("/a/b")
    check_folder("google/flan-t5-xl")
    with pytest.raises(ModelError, match="is there a network"):
        load_seq2seq("google/flan-t5-small-that-is-not-there")


def test_a_trained_vocabulary_has_label_words():
    tokenizer = train_vocabulary(iter(["aaa bbb", "ccc 12 nothing yesterday"] * 30), vocab_size=60)
    no, yes = no_yes_tokens(tokenizer)
    assert tokenizer.convert_ids_to_tokens([no, yes]) == ["\u2581no", "\u2581yes"]
    assert len(pieces(tokenizer, "12")) >= 2, "digits stand alone"


def test_label_words_are_resolved_through_the_vocabulary(vocabulary):
    assert single_token(vocabulary, "red") != vocabulary.unk_token_id
    with pytest.raises(ModelError, match="pieces"):
        single_token(vocabulary, "redgreen")
    assert no_yes_tokens(byte_vocabulary()) is None


def test_label_words_of_the_real_vocabulary():
    """F14: 150 and 4273 hold for T5 and Flan alone."""
    tokenizer = AutoTokenizer.from_pretrained(shared("t5-tokenizer"))
    assert no_yes_tokens(tokenizer) == (150, 4273)
    from workflow.data.checks import lost_characters

    assert {"{", "}", "<", "\n"} <= lost_characters(tokenizer, "a {b}\n<c")


def test_shapes_have_the_published_sizes():
    """Counted on the meta device against the official checkpoints' sizes."""
    from transformers import T5Config, T5ForConditionalGeneration

    published = {
        "t5-small": 60.5e6,
        "flan-t5-small": 77e6,
        "flan-t5-base": 248e6,
        "flan-t5-large": 783e6,
        "flan-t5-xl": 2850e6,
        "flan-t5-xxl": 11135e6,
    }
    for name, expected in published.items():
        shape = SHAPES[name]
        with torch.device("meta"):
            config = T5Config(
                vocab_size=32128,
                d_model=shape.d_model,
                d_kv=shape.d_kv,
                d_ff=shape.d_ff,
                num_heads=shape.num_heads,
                num_layers=shape.num_layers,
                feed_forward_proj="relu" if shape.first_version else "gated-gelu",
            )
            model = T5ForConditionalGeneration(config)
        count = sum(parameter.numel() for parameter in model.parameters()) + (
            0 if shape.first_version else 32128 * shape.d_model
        )
        assert count == pytest.approx(expected, rel=0.01), name


def test_models_from_scratch_depend_on_the_seed_alone(vocabulary):
    shape = Shape(**SMALL)
    one, same, other = (make_model(shape, vocabulary, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.shared.weight, other.shared.weight)
    assert one.lm_head.weight.detach().std().item() == pytest.approx(32**-0.5, rel=0.1)


def test_tiny_is_about_a_million_parameters(vocabulary):
    assert (
        0.7e6
        < sum(parameter.numel() for parameter in make_model(SHAPES["tiny"], vocabulary, seed=0).parameters())
        < 1.3e6
    )


def test_nothing_is_overwritten(tmp_path, vocabulary):
    assert existing_recipe(tmp_path / "m") is None
    write_scratch_model(tmp_path / "m", make_model(Shape(**SMALL), vocabulary, seed=0), vocabulary, {"seed": 0})
    assert existing_recipe(tmp_path / "m") == {"seed": 0}
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match="not made by init-model"):
        existing_recipe(tmp_path / "other")
    assert not list(tmp_path.glob(".tmp-*"))
