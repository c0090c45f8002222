"""A pruned model is a model of its own: what was written of the one it was made from does not bind it."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from workflow.data.scoring import Scoring, read_scoring
from workflow.errors import ModelError
from workflow.models.classifier import load_classifier
from workflow.models.manifest import MANIFEST_FILE, write_manifest
from workflow.paths import SCORING_NAME
from workflow.recipe.prune import prune


def pruned(source, out) -> int:
    return prune(Namespace(model=str(source), out=out, sparsity=0.5, mount=None))


def test_a_checkpoint_with_a_manifest(bert_like, tmp_path):
    loaded = load_classifier(str(bert_like), problem="binary", labels=("no", "yes"))
    loaded.model.save_pretrained(tmp_path / "m")
    loaded.tokenizer.save_pretrained(tmp_path / "m")
    write_manifest(tmp_path / "m", step=2)
    assert pruned(tmp_path / "m", tmp_path / "out") == 0
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()
    assert not load_classifier(str(tmp_path / "out"), problem="binary", labels=("no", "yes")).has_new_head


def test_a_t5_that_scores_goes_on_scoring(flan_like, tmp_path):
    shutil.copytree(flan_like, tmp_path / "m")
    scoring = Scoring("binary", ("bad", "good"), template="Is it good? {input}")
    (tmp_path / "m" / SCORING_NAME).write_text(json.dumps(scoring.as_json()))
    assert pruned(tmp_path / "m", tmp_path / "out") == 0
    assert read_scoring(tmp_path / "out" / SCORING_NAME) == scoring


def test_what_a_file_lacks_is_not_made_anew(bert_like, tmp_path):
    shutil.copytree(bert_like, tmp_path / "m")
    weights = load_file(tmp_path / "m/model.safetensors")
    name = next(key for key in weights if key.endswith("attention.self.key.weight"))
    kept = {key: weight for key, weight in weights.items() if key != name}
    save_file(kept, tmp_path / "m/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="the weights lack 1 tensors"):
        pruned(tmp_path / "m", tmp_path / "out")
    save_file(
        weights | {name: weights[name].to(torch.int8)}, tmp_path / "m/model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(ModelError, match="a quantised checkpoint"):
        pruned(tmp_path / "m", tmp_path / "out")
    assert not (tmp_path / "out").exists()
