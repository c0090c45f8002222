"""Exports compute what the run computes, by the readers themselves where they are installed; others are not kept."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from workflow.cli import workflow
from workflow.errors import ConfigError, ModelError
from workflow.models.load import load_seq2seq
from workflow.models.older import write_for_older
from workflow.recipe import export as exporting
from workflow.recipe.export import probabilities

IDS = [5, 9, 12, 7, 1]


def export(model, out, to="hf") -> int:
    return workflow(["export", str(model), "--to", to, "--out", str(out)])


def logits_by_older_rules(folder) -> torch.Tensor:
    """As transformers 4 computes them: the decoder's output is scaled where the configuration says that the head is tied."""
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    start = torch.tensor([[config["decoder_start_token_id"], *IDS[:3]]])
    hidden = model.model if hasattr(model, "model") else model
    states = hidden.encoder(input_ids=torch.tensor([IDS])).last_hidden_state
    found = hidden.decoder(input_ids=start, encoder_hidden_states=states).last_hidden_state
    tied = config["tie_word_embeddings"]
    head = weights["shared.weight" if tied else "lm_head.weight"]
    return (found * (config["d_model"] ** -0.5 if tied else 1.0) @ head.t())[0]


@pytest.mark.parametrize("kind", ["flan_like", "t5_like"])
def test_a_t5_for_transformers_4(kind, request, tmp_path):
    source = request.getfixturevalue(kind)
    assert export(source, tmp_path / "out") == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is (kind == "t5_like")
    assert config["torch_dtype"] == "float32"
    assert "dtype" not in config
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "shared.weight"} <= names
    tokenizer = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert not isinstance(tokenizer.get("extra_special_tokens"), list)
    expected = probabilities(load_seq2seq(str(source)).model, IDS)
    found = logits_by_older_rules(tmp_path / "out").softmax(dim=-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prompt", ["", "   "])
def test_a_prompt_without_tokens_is_refused(prompt, flan_like, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="no tokens"):
        workflow(["export", str(flan_like), "--to", "hf", "--out", str(out), "--prompt", prompt])
    assert not out.exists()


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_heads_that_transformers_4_has_no_key_for(tied, scaled, flan_like, t5_like, tmp_path):
    """Tied and not scaled, its own and scaled: written as a head of its own that holds the factor."""
    loaded = load_seq2seq(str(t5_like if tied else flan_like))
    loaded.model.config.scale_decoder_outputs = scaled
    write_for_older(tmp_path, loaded.model, loaded.tokenizer)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is (tied and scaled)
    expected = probabilities(loaded.model, IDS)
    torch.testing.assert_close(logits_by_older_rules(tmp_path).softmax(dim=-1), expected, rtol=1e-4, atol=1e-6)
    again = load_seq2seq(str(tmp_path)).model
    torch.testing.assert_close(probabilities(again, IDS), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert_like", "gpt2_like"])
def test_a_classifier(kind, request, tmp_path):
    """GPT-2's 64 positions are fewer than the prompts' tokens, which are cut."""
    from workflow.models.classifier import load_classifier

    source = request.getfixturevalue(kind)
    loaded = load_classifier(str(source), problem="binary", labels=["no", "yes"], seed=1)
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    assert export(tmp_path / "model", tmp_path / "out") == 0
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(probabilities(stock, IDS), probabilities(loaded.model, IDS), rtol=1e-5, atol=1e-6)
    with pytest.raises(ModelError, match="no trained head"):
        export(source, tmp_path / "bare")
    assert not (tmp_path / "bare").exists()


def test_what_computes_otherwise_is_deleted(flan_like, tmp_path, monkeypatch):
    def wrong(folder, model, tokenizer):
        write_for_older(folder, model, tokenizer)
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] *= model.config.d_model**-0.5
        from safetensors.torch import save_file

        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(exporting, "write_for_older", wrong)
    with pytest.raises(ModelError, match="computes other probabilities"):
        export(flan_like, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_exists_is_not_written_over(flan_like, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        export(flan_like, tmp_path / "out")


def test_ctranslate2_is_named_where_it_is_absent(flan_like, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install ctranslate2"):
        export(flan_like, tmp_path / "out", to="ctranslate2")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["flan_like", "t5_like"])
def test_ctranslate2_gives_our_probabilities(kind, request, tmp_path, capsys):
    """Its converter would scale every T5 that transformers 5 loads: argmax right, every probability wrong."""
    pytest.importorskip("ctranslate2")
    source = request.getfixturevalue(kind)
    assert export(source, tmp_path / "out", to="ctranslate2") == 0
    assert (tmp_path / "out" / "model.bin").is_file()
    assert "differ by at most" in capsys.readouterr().out
