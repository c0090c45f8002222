"""`--out` of every command: standard output, FIFOs and links; where an output is no file, nothing stands beside it."""

from __future__ import annotations

import io
import json
import zipfile

import pytest

from tests.conftest import score_rows
from tests.fifo import Fifo
from tests.pages.made_runs import text_run
from workflow.errors import ConfigError

REGISTRY = {
    "english": {
        "topic": {
            "set": {
                "dataset": "set.json",
                "train_features": ["text"],
                "eval_feature": "label",
                "splits": ["train", "eval"],
                "task_type": "classification",
                "classes": 2,
            }
        }
    }
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a finished run, a registry, and predictions for a leaderboard."""
    monkeypatch.chdir(tmp_path)
    text_run(tmp_path / "mount" / "models" / "run")
    rows = [{"text": f"t {number}", "label": str(number % 2)} for number in range(4)]
    (tmp_path / "set.json").write_text(json.dumps({"train": rows, "eval": rows}))
    (tmp_path / "registry.json").write_text(json.dumps(REGISTRY))
    (tmp_path / "rte.jsonl").write_text('{"orig_d": {"input": "x", "index": "0"}, "pred_score": 0.5}\n')
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"input": row["input"]}) + "\n" for row in score_rows(5)))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "reverse red [one]"}\n')
    return tmp_path


def is_a_zip(content: bytes) -> bool:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.namelist() == ["RTE.tsv"]


WRITERS = {
    "results": (["results", "mount/models"], lambda content: content.startswith(b"**")),
    "report": (["report", "run"], lambda content: content.startswith(b"<!doctype html>")),
    "data": (["data", "make", "registry.json", "english"], lambda content: len(json.loads(content)["train"]) == 4),
    "leaderboard": (["leaderboard", "--predictions", "RTE=rte.jsonl", "--unofficial"], is_a_zip),
    "score": (
        ["score", "{scorer}", "--data", "rows.jsonl", "--shard_rows", "2"],
        lambda content: ["pred_score" in json.loads(line) for line in content.splitlines()] == [True] * 5,
    ),
    "generate": (
        ["generate", "{flan}", "--data", "prompts.jsonl", "--max_new_tokens", "4"],
        lambda content: json.loads(content)[0]["prompt"] == "reverse red [one]",
    ),
    "generate of prompts": (
        ["generate", "{flan}", "a prompt", "--max_new_tokens", "4"],
        lambda content: json.loads(content)[0]["prompt"] == "a prompt",
    ),
}


@pytest.mark.parametrize("out", ["-", "fifo", "link"])
@pytest.mark.parametrize("name", WRITERS)
def test_an_output_that_is_no_regular_file(place, command, scorer, flan_like, capfdbinary, name, out):
    arguments, is_whole = WRITERS[name]
    fifo = Fifo(place / "fifo") if out == "fifo" else None
    suffix = {"data": ".json", "leaderboard": ".zip", "score": ".jsonl"}.get(name, "")
    if out == "link":
        out += suffix
        (place / out).symlink_to("real")
    before = sorted(path.name for path in place.iterdir())
    command(*(part.format(scorer=scorer, flan=flan_like) for part in arguments), "--out", out)
    told, _ = capfdbinary.readouterr()
    after = sorted(path.name for path in place.iterdir())
    if out == "-":
        assert is_whole(told)
    elif fifo is not None:
        assert is_whole(fifo.content())
    else:
        assert (place / out).is_symlink()
        assert is_whole((place / "real").read_bytes())
        return
    assert after == before


@pytest.mark.parametrize("out", ["-", "fifo", "rows.jsonl"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "model", "--sparsity", "0.5"],
        ["export", "model", "--to", "hf"],
        ["init-model", "--like", "tiny", "--data_name", "set.json"],
        ["evaluate", "predictions.json"],
        ["lr-find", "--model_init_path", "model", "--data_name", "set.json"],
        ["sweep", "--grid", "grid.json", "--data_name", "set.json"],
    ],
)
def test_a_folder_is_asked_for(place, command, arguments, out):
    if out == "fifo":
        Fifo(place / "fifo")
    with pytest.raises(ConfigError, match=rf"--out {out}: is no folder; name one to write into"):
        command(*arguments, "--out", out)
    assert (place / "rows.jsonl").read_text().count("\n") == 5


def test_answers_never_replace_the_rows(place, command):
    (place / "same.jsonl").symlink_to("prompts.jsonl")
    for out in ("prompts.jsonl", "same.jsonl"):
        with pytest.raises(ConfigError, match="is the file of the rows, which it would replace"):
            command("generate", "model", "--data", "prompts.jsonl", "--out", out)
