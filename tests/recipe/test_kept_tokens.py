"""Special tokens of completions on their way: from data to the checkpoint, and from there to every answer."""

from __future__ import annotations

import copy
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from tests.conftest import SMALL
from tests.server.conftest import serving, settings_of
from workflow.config.cascade import Resolved
from workflow.config.settings import Seq2SeqSettings
from workflow.console import make_console
from workflow.data.sources import find_source
from workflow.errors import ModelError
from workflow.models.load import load_seq2seq
from workflow.models.scratch import make_model, write_scratch_model
from workflow.models.shapes import Shape
from workflow.recipe.place import Place
from workflow.recipe.seq2seq_task import Seq2SeqTask
from workflow.recipe.trained import keep_ids
from workflow.runtime import Ranks
from workflow.server.loading import make_loader

PROMPT = "reverse red left"


@pytest.fixture(scope="module")
def place(vocabulary, tmp_path_factory):
    """A mount with `start`, a model whose answers begin with <sep>, and data with and without such completions."""
    mount = tmp_path_factory.mktemp("kept")
    tokenizer = copy.deepcopy(vocabulary)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<sep>"]})
    model = make_model(Shape(**SMALL, first_version=False), tokenizer, seed=1)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    first = model.eval().generate(**inputs, max_new_tokens=1)[0, 1].item()
    with torch.no_grad():
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("<sep>")] = 20 * model.lm_head.weight[first]
    write_scratch_model(mount / "models/start", model, tokenizer, {})
    for name, completion in (("marked", "<sep>red</s>"), ("plain", "red")):
        rows = [{"prompt": PROMPT, "completion": completion}]
        (mount / "data").mkdir(exist_ok=True)
        (mount / f"data/{name}.json").write_text(json.dumps({"train": rows, "eval": rows}))
    return mount


@pytest.fixture(scope="module")
def run(place):
    """What a run on `marked` writes as its checkpoint."""
    settings = Seq2SeqSettings.model_validate(
        {
            "model": {"model_init_name": "start"},
            "data": {"data_name": "marked"},
            "run": {"training_run_name": "run", "mount": place},
        }
    )
    task = Seq2SeqTask(Resolved(settings), Place(Ranks(), "cpu", place, make_console(quiet=True)))
    task.load_model(task.start_model(), trained=False)
    task.load_data(find_source("marked", place))
    folder = place / "models/run/checkpoint-best-ckpt"
    folder.mkdir(parents=True)
    task.write_model(folder, dict(task.loaded.model.named_parameters()), 1)
    return folder


def evaluated(command, place, tmp_path, monkeypatch, model, data):
    monkeypatch.setenv("WORKFLOW_PREDS", str(tmp_path))
    flags = ("--max_new_tokens", 3, "--no_train", "true", "--training_run_name", "out", "--mount", place)
    command("seq2seq", "--model_init_name", model, "--data_name", data, *flags)
    (record,) = json.loads((tmp_path / "out/temperature=0.00_n=1_step=0.json").read_text())
    return record


def test_a_checkpoint_tells_what_its_answers_keep(run):
    found = json.loads((run / "answer_tokens.json").read_text())["tokens"]
    assert found == {"<sep>": {"before": None, "after": "", "between": None}}
    ids = json.loads((run / "token_ids.json").read_text())["ids"]
    tokenizer = AutoTokenizer.from_pretrained(run)
    assert ids
    assert all(tokenizer(text).input_ids == found for text, found in ids.items())


@pytest.mark.parametrize(
    ("model", "data", "kept"), [("start", "plain", 0), ("start", "marked", 1), ("run", "plain", 1)]
)
def test_evaluation_keeps_what_run_or_data_hold(model, data, kept, command, place, run, tmp_path, monkeypatch, capsys):
    record = evaluated(command, place, tmp_path, monkeypatch, model, data)
    assert record["generations"][0]["full_generated"].startswith("<sep>") == bool(kept)
    assert record.get("reference") == ("<sep>red" if data == "marked" else None)
    assert record["orig_d"]["completion"] == ("<sep>red</s>" if data == "marked" else "red")
    assert ("eval: completions hold special tokens, which answers keep: <sep>" in capsys.readouterr().out) == (
        data == "marked"
    )


def test_every_way_to_an_answer_writes_the_same(command, place, run, capsys, tmp_path):
    command("generate", "run", PROMPT, "--mount", place, "--max_new_tokens", 4)
    text = capsys.readouterr().out.removesuffix("\n")
    assert text.startswith("<sep>")
    command("generate", "run", PROMPT, "--mount", place, "--max_new_tokens", 4, "--num_beams", 2)
    assert capsys.readouterr().out.startswith("<sep>")
    settings = settings_of(place / "models", device="cpu")
    with serving(settings, make_loader(settings)) as live:
        body = {"model": "run", "prompt": PROMPT, "max_new_tokens": 4}
        assert live.post("/generate", body).json()["generations"][0]["text"] == text
        assert live.post("/generate", body | {"stop": ["<sep>"]}).json()["generations"][0]["text"] == ""
        found = live.post("/v1/completions", {"model": "run", "prompt": PROMPT, "max_tokens": 4, "temperature": 0})
        assert found.json()["choices"][0]["text"] == text
        lines = live.post("/generate_stream", {"inputs": PROMPT, "parameters": {"max_new_tokens": 4}, "model": "run"})
        events = [json.loads(line[5:]) for line in lines.text.split("\n") if line.startswith("data:")]
        assert events[-1]["generated_text"] == "".join(event["token"]["text"] for event in events) == text
    command("export", "run", "--to", "hf", "--out", tmp_path / "hf", "--mount", place)
    assert (tmp_path / "hf/answer_tokens.json").read_bytes() == (run / "answer_tokens.json").read_bytes()
    command("prune", "run", "--sparsity", 0.1, "--out", tmp_path / "pruned", "--mount", place)
    assert (tmp_path / "pruned/answer_tokens.json").read_bytes() == (run / "answer_tokens.json").read_bytes()


def test_the_card_has_code_that_keeps_them(run):
    code = (run / "README.md").read_text().split("```python\n")[1].split("```")[0]
    found = {}
    exec(code.replace('"."', repr(str(run))).replace("Your prompt", PROMPT), found)
    assert found["answer"].startswith("<sep>")


def test_a_broken_record_is_named(command, place, run, tmp_path):
    shutil.copytree(run, tmp_path / "m")
    (tmp_path / "m/answer_tokens.json").write_text('{"tokens": {"<sep>": 3}}')
    with pytest.raises(ModelError, match=r"answer_tokens\.json: cannot be read"):
        command("generate", tmp_path / "m", PROMPT, "--mount", place)


def test_a_resumed_run_with_adapters_keeps_its_checkpoints_tokens(place, run):
    """Its weights start from the model that it began with, its ids and answers do not."""
    task = SimpleNamespace(loaded=load_seq2seq(str(place / "models/start")))
    assert not task.loaded.answers.marks
    keep_ids(task, str(run))
    assert {*task.loaded.answers.marks} == {"<sep>"}
    assert task.loaded.tokenizer is task.loaded.answers.tokenizer
    assert task.loaded.tokenizer.name_or_path == str(run)
