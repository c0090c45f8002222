"""Models are written as they are gathered, and plain transformers reads them."""

from __future__ import annotations

import functools
import json
import weakref

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from workflow.models.classifier import LabelRows, load_classifier
from workflow.models.load import load_seq2seq
from workflow.models.save import in_shards, write_model
from workflow.training.checkpoint_reader import weight_files

SHARD_BYTES = 20_000


class Gathered:
    """Weights that come one by one, and how many of their bytes live at once."""

    def __init__(self, model) -> None:
        self.weights = {name: weight.detach() for name, weight in model.named_parameters()}
        self.most, self._alive = 0, []

    def items(self):
        for name, weight in self.weights.items():
            copy = weight.clone()
            self._alive = [reference for reference in self._alive if reference() is not None]
            self._alive.append(weakref.ref(copy))
            self.most = max(self.most, sum(reference().nbytes for reference in self._alive))
            yield name, copy
            del copy


def test_shards_hold_every_tensor_once():
    tensors = [(str(number), torch.zeros(number)) for number in range(1, 9)]
    shards = list(in_shards(iter(tensors), 20))
    assert [list(shard) for shard in shards] == [["1", "2", "3"], ["4", "5"], ["6"], ["7"], ["8"]]
    assert [name for shard in shards for name in shard] == [name for name, _ in tensors]
    assert all(sum(tensor.nbytes for tensor in shard.values()) >= 20 for shard in shards[:-1])
    assert list(in_shards(iter(()), 20)) == []


@pytest.mark.parametrize("kind", ["flan_like", "t5_like", "bert_like", "labels"])
def test_a_big_model_is_written_in_shards(request, tmp_path, kind):
    """Own head, tied head, a classification head, and T5 whose head was cut to its labels' rows."""
    folder = request.getfixturevalue("flan_like" if kind == "labels" else kind)
    reader, loaded = AutoModelForSeq2SeqLM, load_seq2seq
    if kind == "bert_like":
        reader = AutoModelForSequenceClassification
        loaded = functools.partial(load_classifier, problem="binary", labels=("no", "yes"))
    loaded = loaded(str(folder))
    model = loaded.model
    if kind == "labels":
        model.lm_head = LabelRows(model.lm_head.weight, [7, 3])
    gathered = Gathered(model)
    write_model(tmp_path / "sharded", model, loaded.tokenizer, gathered, shard_bytes=SHARD_BYTES)
    write_model(tmp_path / "whole", model, loaded.tokenizer, gathered.weights)
    assert (tmp_path / "whole/model.safetensors").is_file()
    assert not (tmp_path / "sharded/model.safetensors").exists()
    largest = max(weight.nbytes for weight in gathered.weights.values())
    assert gathered.most <= SHARD_BYTES + 2 * largest < sum(weight.nbytes for weight in gathered.weights.values())
    files = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    assert files == [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    assert len(files) > 2
    index = json.loads((tmp_path / "sharded/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in gathered.weights.values())
    assert weight_files(tmp_path / "sharded") == index["weight_map"]
    assert index["weight_map"].keys() == gathered.weights.keys() == weight_files(tmp_path / "whole").keys()
    one, other = (reader.from_pretrained(tmp_path / name).state_dict() for name in ("sharded", "whole"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "sharded" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_full_disk_is_an_os_error(flan_like, tmp_path, monkeypatch):
    """The tokenizers library raises a plain Exception, which would pass for a bug."""
    loaded = load_seq2seq(str(flan_like))
    weights = {name: weight.detach() for name, weight in loaded.model.named_parameters()}
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        write_model(tmp_path, loaded.model, loaded.tokenizer, weights)
