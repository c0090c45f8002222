"""A model that was copied in part is refused wherever one is loaded; what a user changed is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from workflow.errors import ModelError
from workflow.models.classifier import load_classifier
from workflow.models.load import load_seq2seq
from workflow.models.manifest import MANIFEST_FILE, check_hashes, check_written, model_fault, write_manifest

FILES = ["README.md", "adapter/adapter_config.json", "config.json", "generation_config.json", "model.safetensors"]
FILES += ["scoring.json", "tokenizer.json", "tokenizer_config.json", "training_state/state.json"]
OF_MODEL = [name for name in FILES if not name.startswith("training_state/")]


def written(source: Path, folder: Path) -> Path:
    """A checkpoint with all files that runs write, and its manifest."""
    shutil.copytree(source, folder)
    for name in FILES:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        if not file.exists():
            file.write_text("{}\n" if name.endswith(".json") else "text")
    write_manifest(folder, step=3)
    return folder


@pytest.fixture
def checkpoint(flan_like, tmp_path) -> Path:
    return written(flan_like, tmp_path / "m")


@pytest.mark.parametrize("name", OF_MODEL)
def test_a_missing_file_is_refused_by_name(checkpoint, name):
    load_seq2seq(str(checkpoint))
    (checkpoint / name).unlink()
    with pytest.raises(ModelError, match=r"no config\.json here" if name == "config.json" else None) as caught:
        load_seq2seq(str(checkpoint))
    assert name.rpartition("/")[2].split(".")[0].split("_")[0] in str(caught.value) or "no weights" in str(caught.value)
    with pytest.raises(ModelError, match=f"{name} is missing.*copy it again, or delete {MANIFEST_FILE}"):
        check_written(checkpoint)
    assert model_fault(checkpoint) == f"{name} is missing"


@pytest.mark.parametrize("name", OF_MODEL[1:])
def test_a_file_that_is_cut_short_is_refused_by_name(checkpoint, name):
    content = (checkpoint / name).read_bytes()
    for kept in (0, len(content) // 2, len(content.rstrip()) - 1):
        (checkpoint / name).write_bytes(content[:kept])
        with pytest.raises(ModelError, match=f"{name} has {kept:,} bytes, not {len(content):,}"):
            load_seq2seq(str(checkpoint))
        assert model_fault(checkpoint) == f"{name} has {kept:,} bytes, not {len(content):,}"


def test_what_the_model_is_without_may_go(checkpoint):
    shutil.rmtree(checkpoint / "training_state")
    (checkpoint / "README.md").write_text("a longer text about it")
    assert load_seq2seq(str(checkpoint)).notes == ()
    assert model_fault(checkpoint) is None


def test_a_changed_settings_file_is_told(checkpoint):
    """Loaded by commands, as it was changed on purpose; not served, where nobody reads notes."""
    values = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(values | {"dropout_rate": 0.123}))
    (note,) = load_seq2seq(str(checkpoint)).notes
    assert note.startswith("config.json was changed since the checkpoint was written (has ")
    assert model_fault(checkpoint) is not None
    (checkpoint / MANIFEST_FILE).unlink()
    assert load_seq2seq(str(checkpoint)).notes == ()
    assert model_fault(checkpoint) is None


def test_hashes_on_request(checkpoint):
    weights = (checkpoint / "model.safetensors").read_bytes()
    check_hashes(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert model_fault(checkpoint) is None
    with pytest.raises(ModelError, match=r"model.safetensors: not what was written \(the SHA-256 differs\)"):
        check_hashes(checkpoint)
    (checkpoint / MANIFEST_FILE).unlink()
    with pytest.raises(ModelError, match="no hashes to check"):
        check_hashes(checkpoint)


def test_a_manifest_that_is_cut_short(checkpoint):
    (checkpoint / MANIFEST_FILE).write_text('{"step": 3, "fi')
    with pytest.raises(ModelError, match=r"manifest.json cannot be read"):
        load_seq2seq(str(checkpoint))
    assert "cannot be read" in model_fault(checkpoint)


def test_models_with_a_head_are_checked_too(bert_like, tmp_path):
    checkpoint = written(bert_like, tmp_path / "bert")
    (checkpoint / "scoring.json").unlink()
    with pytest.raises(ModelError, match=r"scoring.json is missing"):
        load_classifier(str(checkpoint), problem="binary", labels=("no", "yes"))
