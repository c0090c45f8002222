"""nanoGPT checkpoints: the converted GPT-2 computes what nanoGPT computes, and every odd file is refused by name."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from tests.conftest import ROOT
from tests.fixtures.make_nanogpt import make_nanogpt
from workflow.errors import ModelError
from workflow.models.nanogpt import is_nanogpt, read_nanogpt


def nanogpt(content, ids, activation=torch.nn.GELU()):  # noqa: B008
    """(hidden states after the last norm, logits) of nanoGPT, written anew on its own weights."""
    weights = {name.removeprefix("_orig_mod."): weight for name, weight in content["model"].items()}
    width, heads = content["model_args"]["n_embd"], content["model_args"]["n_head"]

    def norm(name, x):
        return functional.layer_norm(x, (width,), weights[f"{name}.weight"], weights.get(f"{name}.bias"), 1e-5)

    def linear(name, x):
        return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    rows, length = ids.shape
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    x = weights["transformer.wte.weight"][ids] + weights["transformer.wpe.weight"][:length]
    for layer in range(content["model_args"]["n_layer"]):
        at = f"transformer.h.{layer}"
        q, k, v = (
            part.view(rows, length, heads, -1).transpose(1, 2)
            for part in linear(f"{at}.attn.c_attn", norm(f"{at}.ln_1", x)).split(width, dim=2)
        )
        scores = (q @ k.transpose(2, 3) / (width // heads) ** 0.5).masked_fill(future, -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, length, width)
        x = x + linear(f"{at}.attn.c_proj", mixed)
        wide = activation(linear(f"{at}.mlp.c_fc", norm(f"{at}.ln_2", x)))
        x = x + linear(f"{at}.mlp.c_proj", wide)
    x = norm("transformer.ln_f", x)
    return x, x @ weights["lm_head.weight"].t()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_converted_model_computes_the_same(bias, compiled, tmp_path):
    file = make_nanogpt(tmp_path, vocab_size=97, bias=bias, compiled=compiled)
    content = torch.load(file, weights_only=True)
    config, weights, _ = read_nanogpt(tmp_path)
    ids = torch.randint(97, (3, 128), generator=torch.Generator().manual_seed(1))
    hidden, logits = nanogpt(content, ids)
    model = GPT2ForSequenceClassification(config).eval()
    report = model.load_state_dict(weights, strict=False)
    assert (report.missing_keys, report.unexpected_keys) == (["score.weight"], [])
    with torch.no_grad():
        assert torch.allclose(model.transformer(ids).last_hidden_state, hidden, atol=1e-5)
        with_head = GPT2LMHeadModel(config).eval()
        with_head.transformer.load_state_dict(model.transformer.state_dict())
        assert torch.allclose(with_head(ids).logits, logits, atol=1e-5)
    assert (config.n_positions, config.vocab_size, config.activation_function) == (128, 97, "gelu")
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.1)


def test_the_exact_activation_is_told_from_the_approximate_one(tmp_path):
    """Witness for the test above: GPT-2's own activation would fail it."""
    content = torch.load(make_nanogpt(tmp_path), weights_only=True)
    config, weights, _ = read_nanogpt(tmp_path)
    config.activation_function = "gelu_new"
    model = GPT2ForSequenceClassification(config).eval()
    model.load_state_dict(weights, strict=False)
    ids = torch.arange(20).view(1, -1)
    with torch.no_grad():
        assert not torch.allclose(model.transformer(ids).last_hidden_state, nanogpt(content, ids)[0], atol=1e-5)


def test_weights_are_fp32_and_their_own(tmp_path):
    file = make_nanogpt(tmp_path, compiled=True)
    change(file, lambda content: content["model"].update({k: v.bfloat16() for k, v in content["model"].items()}))
    _, weights, _ = read_nanogpt(file)
    file.unlink()
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(
        weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes for weight in weights.values()
    )
    assert not weights["transformer.h.1.mlp.c_fc.bias"].any()


def test_masks_and_wrappers_are_known(tmp_path):
    file = make_nanogpt(tmp_path)
    _, plain, _ = read_nanogpt(file)

    def wrap(content):
        content["model"] = {f"module._orig_mod.{name}": weight for name, weight in content["model"].items()}
        for layer in range(2):
            content["model"][f"module._orig_mod.transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 128, 128).tril()

    change(file, wrap)
    _, wrapped, _ = read_nanogpt(file)
    assert plain.keys() == wrapped.keys()
    assert all(torch.equal(plain[name], wrapped[name]) for name in plain)


def test_which_paths_are_meant(tmp_path):
    file = make_nanogpt(tmp_path / "m")
    assert is_nanogpt(file)
    assert is_nanogpt(tmp_path / "m")
    assert not is_nanogpt(tmp_path)
    assert not is_nanogpt(tmp_path / "google/flan-t5-small")
    (tmp_path / "m/config.json").write_text("{}")
    assert not is_nanogpt(tmp_path / "m"), "a checkpoint of transformers that someone put a ckpt.pt into"


def change(file, edit):
    content = torch.load(file, weights_only=True)
    replaced = edit(content)
    torch.save(replaced if isinstance(replaced, list) else content, file)


WTE, NORM = "transformer.wte.weight", "transformer.h.0.ln_1.weight"
BROKEN = {
    "holds a list, not a dict": lambda content: [1],
    "no dict under 'model' ": lambda content: content.pop("model"),
    r"no dict under 'model_args' \(it has model, ": lambda content: content.update(model_args=None),
    "model_args lacks n_head; nanoGPT's": lambda content: content.update(
        model_args={"n_layer": 2, "n_embd": 64, "block_size": 128, "vocab_size": 9, "dropout": 0}
    ),
    "model_args holds rotary, which": lambda content: content["model_args"].update(rotary=True),
    "vocab_size must be a positive whole number, not None": lambda content: content["model_args"].update(
        vocab_size=None
    ),
    "n_layer must be a positive whole number, not 0": lambda content: content["model_args"].update(n_layer=0),
    "n_embd 64 is not divisible by n_head 5": lambda content: content["model_args"].update(n_head=5),
    "bias must be True or False, not 1": lambda content: content["model_args"].update(bias=1),
    "dropout must be a number in": lambda content: content["model_args"].update(dropout=1.5),
    f"lack {NORM}": lambda content: content["model"].pop(NORM),
    "lack transformer.h.2.ln_1.weight, ": lambda content: content["model_args"].update(n_layer=3),
    "lack transformer.ln_f.bias, .*h.1.mlp.c_fc.bias": lambda content: content["model_args"].update(bias=True),
    "has no transformer.h.0.attn.rope": lambda content: content["model"].update(
        {"transformer.h.0.attn.rope": torch.ones(2)}
    ),
    "has no transformer.ln_f.bias": lambda content: content["model"].update({"transformer.ln_f.bias": torch.ones(64)}),
    rf"say: {WTE} \(256x64, not 300x64\)": lambda content: content["model_args"].update(vocab_size=300),
    rf"say: {NORM} \(63, not 64\)": lambda content: content["model"].update({NORM: torch.ones(63)}),
    f"not floating-point numbers: {NORM}": lambda content: content["model"].update({NORM: torch.ones(64).int()}),
    "'lr' is a float, not a tensor": lambda content: content["model"].update(lr=0.1),
    "stands there twice": lambda content: content["model"].update({f"module.{NORM}": torch.ones(64)}),
}


@pytest.mark.parametrize("expected", BROKEN)
def test_odd_checkpoints_are_refused(expected, tmp_path):
    file = make_nanogpt(tmp_path)
    change(file, BROKEN[expected])
    with pytest.raises(ModelError, match=expected) as caught:
        read_nanogpt(tmp_path)
    assert str(caught.value).startswith(f"{file}: ")


class Evil:
    def __reduce__(self):
        return os.system, ("echo ran",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_not_run(legacy, tmp_path, capfd):
    file = make_nanogpt(tmp_path)
    content = torch.load(file, weights_only=True) | {"config": Evil()}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError, match=r"would run code of the file \(posix.system\)"):
        read_nanogpt(tmp_path)
    assert "ran" not in capfd.readouterr().out


def test_old_torch_files_are_read(tmp_path):
    file = make_nanogpt(tmp_path)
    before = read_nanogpt(file)[1]
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    assert all(torch.equal(weight, before[name]) for name, weight in read_nanogpt(file)[1].items())


def test_files_that_are_not_whole(tmp_path):
    file = make_nanogpt(tmp_path)
    whole = file.read_bytes()
    for content in (
        whole[: len(whole) // 2],
        whole[:-30],
        whole[:10],
        b"",
        b"hello, no torch",
        b'{"a": 1}',
        b"\x80\x04N.",
    ):
        file.write_bytes(content)
        with pytest.raises(ModelError, match="cut short, damaged, or no file of torch"):
            read_nanogpt(tmp_path)
    with pytest.raises(ModelError, match="no such file"):
        read_nanogpt(tmp_path / "other.pt")
    with pytest.raises(ModelError, match="no such file"):
        read_nanogpt(tmp_path / "m" / "ckpt.pt")


def test_the_fixture_script_runs_alone(tmp_path):
    script = ROOT / "tests/fixtures/make_nanogpt.py"
    command = [sys.executable, str(script), str(tmp_path / "a"), "--vocab_size", "33", "--bias", "--compiled"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "a/ckpt.pt")
    assert read_nanogpt(tmp_path / "a")[0].vocab_size == 33


def test_early_checkpoints_without_some_arguments(tmp_path):
    """Before `bias` there were biases everywhere and GPT-2's activation; sizes are those of the weights."""
    file = make_nanogpt(tmp_path, vocab_size=97, bias=True)
    whole = torch.load(file, weights_only=True)
    change(
        file,
        lambda content: (
            [content["model_args"].pop(key) for key in ("bias", "dropout", "vocab_size", "n_layer")] and None
        ),
    )
    config, weights, (note,) = read_nanogpt(tmp_path)
    assert "bias True, activation_function gelu_new, dropout 0.0, vocab_size 97, n_layer 2" in note
    ids = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(1))
    hidden, _ = nanogpt(whole, ids, torch.nn.GELU(approximate="tanh"))
    model = GPT2ForSequenceClassification(config).eval()
    model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        assert torch.allclose(model.transformer(ids).last_hidden_state, hidden, atol=1e-5)
    change(file, lambda content: content["model_args"].pop("n_head") and None)
    with pytest.raises(ModelError, match=r"model_args lacks n_head; nanoGPT's train\.py writes"):
        read_nanogpt(tmp_path)
