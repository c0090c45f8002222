"""ONNX exports compute what the run computes, by onnxruntime, also at sizes that were not traced."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import torch

from workflow.cli import workflow
from workflow.data.scoring import Scoring
from workflow.errors import ConfigError, ModelError, install_command
from workflow.models import onnx_graphs
from workflow.models.classifier import load_classifier
from workflow.models.load import load_seq2seq
from workflow.models.onnx_graphs import Graphs, missing_packages, write_seq2seq
from workflow.recipe import export as exporting

installed = pytest.mark.skipif(
    bool(missing_packages()), reason=f"{install_command('onnx')}: " + ", ".join(missing_packages())
)
exports = [installed, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the exporter and onnxruntime
SIZES = [(1, 1, 1), (1, 7, 2), (3, 33, 5), (5, 4, 20)]
"""Rows, tokens, decoder positions; 2, 5 and 3 are traced."""


def export(model, out) -> int:
    return workflow(["export", str(model), "--to", "onnx", "--out", str(out)])


def batch(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and a mask that leaves a third of the last row out."""
    ids = torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[-1, length - length // 3 :] = 0
    return ids, mask


def check_seq2seq(folder, model) -> None:
    graphs = Graphs(folder)
    for rows, length, positions in SIZES:
        ids, mask = batch(rows, length)
        targets, _ = batch(rows, positions)
        with torch.no_grad():
            expected = model.eval()(input_ids=ids, attention_mask=mask, decoder_input_ids=targets).logits
        torch.testing.assert_close(graphs.logits(ids, mask, targets), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=exports) for kind in ("flan_like", "t5_like")])
def test_a_t5_at_other_sizes(kind, request, tmp_path, capsys):
    """One that scores, which keeps its whole head."""
    source = shutil.copytree(request.getfixturevalue(kind), tmp_path / "model")
    (source / "scoring.json").write_text(json.dumps(Scoring().as_json()))
    assert export(source, tmp_path / "out") == 0
    assert "differ by at most" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "encoder_model.onnx",
        "decoder_model.onnx",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
    } <= names
    sessions = Graphs(tmp_path / "out").sessions
    inputs = {file: [value.name for value in session.get_inputs()] for file, session in sessions.items()}
    assert inputs == {
        "encoder_model.onnx": ["input_ids", "attention_mask"],
        "decoder_model.onnx": ["input_ids", "encoder_hidden_states", "encoder_attention_mask"],
    }
    outputs = [session.get_outputs()[0].name for session in sessions.values()]
    assert outputs == ["last_hidden_state", "logits"]
    check_seq2seq(tmp_path / "out", load_seq2seq(str(source)).model)


@installed
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_umt5_and_large_weights_beside_their_graph(tmp_path, monkeypatch):
    """UMT5 has a bias in each layer, and scales by another key of its configuration; 2 GB are told by a lower limit."""
    import transformers

    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
    torch.manual_seed(1)
    config = transformers.UMT5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=60, decoder_start_token_id=0
    )
    model = transformers.UMT5ForConditionalGeneration(config)
    write_seq2seq(tmp_path, model)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{part}_model.onnx{ending}" for part in ("encoder", "decoder") for ending in ("", ".data")
    }
    check_seq2seq(tmp_path, model)
    assert b"site-packages" not in (tmp_path / "decoder_model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        pytest.param("bert_like", ["input_ids", "attention_mask", "token_type_ids"], marks=exports),
        pytest.param("gpt2_like", ["input_ids", "attention_mask"], marks=exports),
    ],
)
def test_a_classifier_at_other_sizes(kind, inputs, request, tmp_path):
    loaded = load_classifier(str(request.getfixturevalue(kind)), problem="binary", labels=["no", "yes"], seed=1)
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    assert export(tmp_path / "model", tmp_path / "out") == 0
    graphs = Graphs(tmp_path / "out")
    assert [value.name for value in graphs.sessions["model.onnx"].get_inputs()] == inputs
    for rows, length, _ in SIZES:
        ids, mask = batch(rows, length)
        with torch.no_grad():
            expected = loaded.model.eval()(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(graphs.logits(ids, mask), expected, rtol=1e-4, atol=1e-4)


@installed
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_computes_otherwise_is_deleted(t5_like, tmp_path, monkeypatch):
    def unscaled(folder, model):
        model.config.scale_decoder_outputs = False
        write_seq2seq(folder, model)
        model.config.scale_decoder_outputs = True

    monkeypatch.setattr(exporting, "write_seq2seq", unscaled)
    with pytest.raises(ModelError, match="onnx computes other probabilities"):
        export(t5_like, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_a_packages_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "not_installed").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(onnx_graphs, "PACKAGES", ("json", "not_installed", "not_there"))
    assert missing_packages() == ["not_installed", "not_there"]


def test_packages_that_are_absent_are_named(flan_like, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        onnx_graphs.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found("json")
    )
    with pytest.raises(ConfigError, match=r"not installed: onnxscript; pip install -e '\.\[onnx\]'") as refused:
        export(flan_like, tmp_path / "out")
    assert refused.value.exit_code == 2
    assert not (tmp_path / "out").exists()
