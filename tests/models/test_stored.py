"""Weight files that lack a tensor, or hold another than the configuration says: refused, never made anew unsaid."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from workflow.errors import ModelError
from workflow.models.classifier import load_classifier
from workflow.models.load import load_seq2seq
from workflow.models.save import INDEX_NAME
from workflow.models.stored import stored_tensors

SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 1, "num_decoder_layers": 1}
FORMS = ("safetensors", "shards", "bin")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rewritten(folder: Path, target: Path, weights: dict[str, torch.Tensor], form: str = "safetensors", **config) -> str:
    """A copy with other weights, in one file, in two, or pickled; keys of its config.json may change (None: are left out)."""
    shutil.copytree(folder, target)
    (target / "model.safetensors").unlink()
    names = sorted(weights)
    if form == "bin":
        torch.save(weights, target / "pytorch_model.bin")
    elif form == "shards":
        files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, part in files.items():
            save_file({name: weights[name] for name in part}, target / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
        (target / INDEX_NAME).write_text(json.dumps(index))
    else:
        save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return str(target)


@pytest.fixture(scope="module")
def families(tmp_path_factory, vocabulary) -> dict[str, Path]:
    """A model with a head of its own of each family."""
    found = {}
    for family in ("t5", "mt5", "umt5"):
        folder = tmp_path_factory.mktemp(family) / "m"
        model = AutoModelForSeq2SeqLM.from_config(
            AutoConfig.for_model(family, vocab_size=256, decoder_start_token_id=0, **SIZES)
        )
        model.lm_head.weight = torch.nn.Parameter(torch.randn(256, 32))
        model.config.tie_word_embeddings = model.config.scale_decoder_outputs = False
        model.save_pretrained(folder, state_dict={name: weight.detach() for name, weight in model.named_parameters()})
        vocabulary.save_pretrained(folder)
        found[family] = folder
    return found


@pytest.mark.parametrize("family", ["t5", "mt5", "umt5"])
@pytest.mark.parametrize("form", FORMS)
def test_a_missing_head_is_not_made_of_the_embeddings(families, family, form, tmp_path):
    weights = weights_of(families[family])
    del weights["lm_head.weight"]
    folder = rewritten(families[family], tmp_path / "m", weights, form)
    with pytest.raises(
        ModelError, match=r"the weights lack lm_head.weight, and config.json \(with tie_word_embeddings"
    ):
        load_seq2seq(folder)
    with pytest.raises(ModelError, match="the weights lack lm_head"):
        load_classifier(folder, problem="binary", labels=("no", "yes"), as_stored=True)


def test_where_a_family_has_a_head_of_its_own_by_default(families, tmp_path):
    weights = weights_of(families["mt5"])
    del weights["lm_head.weight"]
    with pytest.raises(ModelError, match="no tie_word_embeddings, which means false for mt5"):
        load_seq2seq(rewritten(families["mt5"], tmp_path / "m", weights, tie_word_embeddings=None))
    assert not load_seq2seq(
        rewritten(families["mt5"], tmp_path / "said", weights, tie_word_embeddings=True)
    ).has_own_head


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5", "bert_like", "gpt2_like"])
def test_no_tensor_is_made_anew_unsaid(families, kind, tmp_path, request):
    """Without any one of its tensors a model is refused, or is told to have a new head."""
    folder = families.get(kind) or request.getfixturevalue(kind)
    weights = weights_of(folder)
    names = [name for name in weights if kind.endswith("t5") or not re.search(r"layer\.1\.|h\.1\.", name)]
    for number, name in enumerate(names):
        rest = {key: value for key, value in weights.items() if key != name}
        broken = rewritten(folder, tmp_path / str(number), rest)
        if kind in ("bert_like", "gpt2_like"):
            if "cls." in name or "lm_head" in name:  # the pretrained head, which is not used
                continue
            if "pooler." in name:
                loaded = load_classifier(broken, problem="binary", labels=("no", "yes"))
                assert loaded.has_new_head
                assert name in loaded.notes[0]
                continue
            with pytest.raises(ModelError, match="the weights lack"):
                load_classifier(broken, problem="binary", labels=("no", "yes"))
        else:
            with pytest.raises(ModelError, match="the weights lack"):
                load_seq2seq(broken)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(flan_like, bert_like, dtype, form, tmp_path):
    """Read as numbers they would be weights of -128 to 127."""
    weights = weights_of(flan_like)
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    weights[name] = (weights[name] * 100).to(dtype)
    with pytest.raises(ModelError, match=f"{name} is stored as .*8|32.*a quantised checkpoint"):
        load_seq2seq(rewritten(flan_like, tmp_path / "t5", weights, form), as_stored=True)
    weights = weights_of(bert_like)
    name = next(key for key in weights if key.endswith("attention.self.query.weight"))
    weights[name] = (weights[name] * 100).to(dtype)
    with pytest.raises(ModelError, match="a quantised checkpoint"):
        load_classifier(rewritten(bert_like, tmp_path / "bert", weights, form), problem="binary", labels=("no", "yes"))


def test_integers_beside_the_weights_are_harmless(bert_like, gpt2_like, tmp_path):
    """Old BERTs hold their positions, old GPT-2s their masks."""
    for folder, key, value in (
        (bert_like, "bert.embeddings.position_ids", torch.arange(64)[None]),
        (gpt2_like, "transformer.h.0.attn.bias", torch.ones(1, 1, 8, 8, dtype=torch.uint8)),
    ):
        weights = weights_of(folder) | {key: value}
        assert load_classifier(
            rewritten(folder, tmp_path / key, weights), problem="binary", labels=("no", "yes")
        ).has_new_head


def test_a_configuration_that_says_how_weights_were_quantised(flan_like, bert_like, tmp_path):
    said = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    with pytest.raises(ModelError, match=r"a quantised checkpoint \(quantization_config of config.json: gptq\)"):
        load_seq2seq(rewritten(flan_like, tmp_path / "t5", weights_of(flan_like), **said))
    with pytest.raises(ModelError, match="quantization_config"):
        load_classifier(
            rewritten(bert_like, tmp_path / "b", weights_of(bert_like), **said), problem="binary", labels=("no", "yes")
        )


@pytest.mark.parametrize("vocab_size", [216, 320])
@pytest.mark.parametrize("kind", ["flan_like", "t5_like"])
def test_vocabulary_sizes_that_disagree(kind, vocab_size, tmp_path, request):
    folder = request.getfixturevalue(kind)
    rows = len(weights_of(folder)["shared.weight"])
    expected = f"config.json says vocab_size {vocab_size}, shared.weight has {rows} rows"
    with pytest.raises(ModelError, match=expected):
        load_seq2seq(rewritten(folder, tmp_path / "m", weights_of(folder), vocab_size=vocab_size))


def test_a_head_of_another_size_than_the_embeddings(flan_like, bert_like, tmp_path):
    weights = weights_of(flan_like)
    weights["lm_head.weight"] = weights["lm_head.weight"][:-3].contiguous()
    with pytest.raises(ModelError, match=r"config.json says vocab_size \d+, lm_head.weight has \d+ rows"):
        load_seq2seq(rewritten(flan_like, tmp_path / "m", weights))
    with pytest.raises(ModelError, match=r"word_embeddings.weight is \d+x32 in the files, 333x32 by config.json"):
        load_classifier(
            rewritten(bert_like, tmp_path / "b", weights_of(bert_like), vocab_size=333),
            problem="binary",
            labels=("no", "yes"),
        )


def test_two_sets_of_embeddings_are_refused(flan_like, tmp_path):
    weights = weights_of(flan_like)
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"] + 1
    with pytest.raises(ModelError, match=r"shared.weight and the embed_tokens.weight of a stack differ"):
        load_seq2seq(rewritten(flan_like, tmp_path / "m", weights))
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"].clone()
    assert load_seq2seq(rewritten(flan_like, tmp_path / "same", weights)).has_own_head


@pytest.mark.parametrize("family", ["t5", "mt5", "umt5"])
@pytest.mark.parametrize("said", [None, True])
def test_a_head_beside_a_configuration_that_says_nothing_of_it(families, family, said, tmp_path):
    """What plain transformers computes, but for UMT5, whose own head it scales; a note says it."""
    folder = rewritten(
        families[family],
        tmp_path / "m",
        weights_of(families[family]),
        tie_word_embeddings=said,
        scale_decoder_outputs=None,
    )
    loaded = load_seq2seq(folder)
    assert loaded.has_own_head
    (note,) = loaded.notes
    assert ("has no tie_word_embeddings" if said is None else "says tie_word_embeddings true") in note
    ids = torch.arange(3, 9)[None]
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    ours, theirs = (model.eval()(input_ids=ids, decoder_input_ids=ids).logits for model in (loaded.model, plain))
    assert torch.allclose(ours, theirs * (32**0.5 if family == "umt5" else 1), atol=1e-4)
    assert ("are multiplied" in note) == (family == "t5")


def test_a_tie_that_is_no_truth_value(flan_like, tmp_path):
    for number, value in enumerate(["false", 0]):
        with pytest.raises(ModelError, match="tie_word_embeddings must be true or false"):
            load_seq2seq(rewritten(flan_like, tmp_path / str(number), weights_of(flan_like), tie_word_embeddings=value))


def test_tensors_that_are_not_used_are_told(bert_like, flan_like, tmp_path):
    for load, folder in (
        (lambda name: load_classifier(name, problem="binary", labels=("no", "yes")), bert_like),
        (load_seq2seq, flan_like),
    ):
        weights = weights_of(folder) | {"another.weight": torch.zeros(2)}
        notes = load(rewritten(folder, tmp_path / folder.name, weights)).notes
        assert any("not used" in note and "another.weight" in note for note in notes)


def test_headers_tell_what_files_hold(flan_like, tmp_path):
    weights = weights_of(flan_like)
    for form in FORMS:
        found = stored_tensors(rewritten(flan_like, tmp_path / form, weights, form))
        assert {name: tensor.shape for name, tensor in found.items()} == {
            name: tuple(weight.shape) for name, weight in weights.items()
        }
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def test_weights_in_two_formats_are_told(flan_like, tmp_path):
    folder = rewritten(flan_like, tmp_path / "m", weights_of(flan_like))
    torch.save({name: weight + 1 for name, weight in weights_of(flan_like).items()}, tmp_path / "m/pytorch_model.bin")
    loaded = load_seq2seq(folder)
    assert loaded.notes == ("the weights are those of model.safetensors; pytorch_model.bin beside it is not read",)
    assert torch.equal(loaded.model.shared.weight, weights_of(flan_like)["shared.weight"])
