"""A model that is large beside what a rank should hold: of each weight a rank keeps its share, whatever the file's type."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import example_rows
from tests.training.rank_worker import run_group
from workflow.models.load import load_seq2seq, quiet_transformers
from workflow.models.scratch import make_model, train_vocabulary, write_scratch_model
from workflow.models.shapes import Shape
from workflow.models.stored import stored_dtype, stored_tensors
from workflow.paths import STATE_FOLDER
from workflow.training.checkpoint import INDEX_FILE

SHAPE = Shape(d_model=512, d_kv=64, d_ff=2048, num_heads=8, num_layers=5)
LITTLE = 64 << 20
"""What allocators and the communication keep, and tensors that are under way, generously."""


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """About 190 MB in fp32, with an optimizer's state, and the same in bf16: (folder, folder, bytes in fp32)."""
    quiet_transformers()
    rows = example_rows(300)
    tokenizer = train_vocabulary(iter([row[key] for row in rows for key in ("prompt", "completion")]), vocab_size=200)
    model = make_model(SHAPE, tokenizer, seed=1)
    size = sum(weight.numel() * 4 for weight in model.parameters())
    full, half = (tmp_path_factory.mktemp("big") / name for name in ("full", "half"))
    write_scratch_model(full, model, tokenizer, {})
    state = {
        f"{name}/{key}": torch.zeros_like(weight)
        for name, weight in model.named_parameters()
        for key in ("exp_avg", "exp_avg_sq")
    }
    (full / STATE_FOLDER).mkdir()
    save_file(state, full / STATE_FOLDER / "optimizer-00001.safetensors")
    (full / STATE_FOLDER / INDEX_FILE).write_text(json.dumps(dict.fromkeys(state, "optimizer-00001.safetensors")))
    write_scratch_model(half, model.bfloat16(), tokenizer, {})
    return full, half, size


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_rank_never_holds_the_whole_model(big, flan_like, shared_mount, tmp_path):
    full, half, size = big
    job = {"do": "load", "warm": str(flan_like), "mount": str(shared_mount), "deepspeed": "zero3", "precision": "bf16"}
    jobs = [{**job, "model": str(half)}, {**job, "model": str(full), "resume": str(full)}]
    for found in run_group(2, jobs, tmp_path):
        assert found["whole"] == [[], []], "sharded before DeepSpeed starts, which else converts all of a copy first"
        # In bf16 a rank's share is a quarter of the fp32 size.
        assert max(found["until_sharded"]) < size / 4 + LITTLE < 0.7 * size
        assert max(found.get("to_continue", [0])) < LITTLE, "the state is read a tensor at a time"


def halves(flan_like, folder, dtype, *, suffix="safetensors", but=()):
    """The checkpoint with its weights in another type, all but some."""
    weights = {
        name: weight if name in but else weight.to(dtype)
        for name, weight in load_file(flan_like / "model.safetensors").items()
    }
    folder.mkdir()
    for file in flan_like.iterdir():
        if file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    if suffix == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_keep_their_files_type_where_asked(flan_like, tmp_path, dtype, suffix):
    """Files say it, config.json only claims it (here fp32)."""
    folder = halves(flan_like, tmp_path / "m", dtype, suffix=suffix)
    assert stored_dtype(stored_tensors(str(folder))) == dtype
    stored, whole = (load_seq2seq(str(folder), as_stored=asked).model for asked in (True, False))
    assert {weight.dtype for weight in whole.parameters()} == {torch.float32}
    # transformers keeps one matrix of a layer in fp32 beside fp16.
    assert {weight.dtype for weight in stored.parameters()} <= {dtype, torch.float32}
    assert stored.shared.weight.dtype == dtype
    for (name, one), (other, two) in zip(stored.named_parameters(), whole.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(one.float(), two), name


def test_of_mixed_files_nothing_is_rounded(flan_like, tmp_path):
    folder = halves(flan_like, tmp_path / "m", torch.bfloat16, but=("lm_head.weight",))
    assert stored_dtype(stored_tensors(str(folder))) == torch.float32
    head = load_file(flan_like / "model.safetensors")["lm_head.weight"]
    assert torch.equal(load_seq2seq(str(folder), as_stored=True).model.lm_head.weight, head)


@pytest.mark.slow
def test_half_files_train_alike_at_every_stage(flan_like, t5_like, shared_mount, tmp_path):
    """A bf16 file, fp32 training, own and tied heads, completions and scores: as the same weights in an fp32 file."""
    base = {"mount": str(shared_mount), "max_steps": 2, "micro": 8}
    jobs = []
    for name, model in (("flan", flan_like), ("t5", t5_like)):
        folder = halves(model, tmp_path / name, torch.bfloat16)
        whole = halves(folder, tmp_path / f"{name}-full", torch.float32)
        for task in ("seq2seq", "clf"):
            job = {**base, "task": task}
            jobs += [{**job, "model": str(whole)}]
            jobs += [{**job, "model": str(folder), "deepspeed": stage} for stage in ("zero0", "zero2", "zero3")]
    found = run_group(2, jobs, tmp_path / "group")
    for number in range(0, len(found), 4):
        reference, *others = found[number : number + 4]
        for other in others:
            assert other["own_head"] == reference["own_head"]
            for key in ("losses", "norms", "head", "embeddings"):
                assert other[key] == pytest.approx(reference[key], rel=2e-5, abs=1e-6)
