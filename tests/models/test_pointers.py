"""Checkpoints of a clone without git-lfs: the files that are pointers are named, before anything is loaded."""

import shutil

import pytest

from workflow.errors import ModelError
from workflow.models.classifier import load_classifier
from workflow.models.load import load_seq2seq, load_tokenizer
from workflow.models.nanogpt import read_nanogpt

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345678\n"


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json", "pytorch_model.bin"])
@pytest.mark.parametrize("kind", ["flan_like", "bert_like"])
def test_pointers_are_named(request, tmp_path, kind, file):
    folder = shutil.copytree(request.getfixturevalue(kind), tmp_path / "model")
    if file == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / file).write_text(POINTER)
    named = rf"model: {file} is a Git LFS pointer, not the file itself; `git lfs pull`"
    with pytest.raises(ModelError, match=named):
        if kind == "flan_like":
            load_seq2seq(str(folder))
        else:
            load_classifier(str(folder), problem="binary", labels=("no", "yes"), seed=0)
    with pytest.raises(ModelError, match=named):
        load_tokenizer(str(folder))


def test_a_nanogpt_file_that_is_a_pointer(tmp_path):
    (tmp_path / "ckpt.pt").write_text(POINTER)
    with pytest.raises(ModelError, match=r"ckpt.pt: is a Git LFS pointer"):
        read_nanogpt(tmp_path / "ckpt.pt")
