"""The commands of docs/migrating.md do what the page says, one after the other, on small models and data.

Training commands take fewer steps.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT, example_rows, score_rows
from tests.fixtures.make_nanogpt import make_nanogpt
from tests.forked_commands import Commands
from workflow.models.scratch import write_scratch_model
from workflow.models.scratch_stacks import make_bert, train_wordpiece
from workflow.models.shapes import StackShape

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="commands run in forked children")]

PAGE = (ROOT / "docs/migrating.md").read_text(encoding="utf-8")
FEWER = {"max_steps": 3, "eval_steps": 2, "save_steps": 2, "warmup_steps": 1, "lr_find_steps": 10}
"""What the page's numbers of steps become."""
FEWER_IN_FILES = {
    '"max_steps": 3000': '"max_steps": 4',
    '"eval_steps": 1000': '"eval_steps": 2',
    '"n_trials": 20': '"n_trials": 2',
}


def sections() -> dict[str, list[list[str]]]:
    """Commands on the right-hand sides of each section, in order."""
    found = {}
    for section in PAGE.split("\n## ")[1:]:
        rights = [row.rpartition(" | ")[2] for row in re.findall(r"^\| .* \|$", section, re.MULTILINE)]
        codes = [code for right in rights for code in re.findall(r"`((?:workflow|python3) [^`]+)`", right)]
        found[section.partition("\n")[0]] = [shlex.split(code) for code in codes]
    return found


def words_for_tests(words: list[str]) -> list[str]:
    """The command with fewer steps; matrices and grids over clusters are written, not run."""
    found = list(words)
    for at, word in enumerate(words):
        if (name := word.removeprefix("--")) in FEWER and int(words[at + 1]) > FEWER[name]:
            found[at + 1] = str(FEWER[name])
        if name == "num_epochs":
            found[at + 1] = "0.1"
    if words[:3] == ["workflow", "suite", "transfer"]:
        found.append("--dry_run")
    return found


def write_lines(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory, flan_like, t5_like, gpt2_like):
    """A working directory as those who come from elsewhere have it; the files that the page shows stand in it."""
    here = tmp_path_factory.mktemp("migrating")
    models, data = here / "mount/models", here / "mount/data"
    for folder, model in {
        models / "flan-t5-xxl": flan_like,
        here / "google/flan-t5-xl": flan_like,
        here / "t5-small": t5_like,
        here / "gpt2": gpt2_like,
    }.items():
        shutil.copytree(model, folder)
    write_bert(here / "bert-base-uncased")
    data.mkdir(parents=True)
    rows = example_rows(30)
    for name in ("synthetic_explain", "data"):
        (data / f"{name}.json").write_text(json.dumps({"train": rows[:24], "eval": rows[24:]}))
    scored = score_rows(40)
    (data / "1226verifier_ft_all.json").write_text(json.dumps({"train": scored[:30], "eval": scored[30:]}))
    pairs = [{"sentence1": row["input"], "sentence2": row["input"][::-1], "label": row["id"] % 2} for row in scored]
    (data / "pairs.json").write_text(json.dumps({"train": pairs[:30], "eval": pairs[30:]}))
    write_lines(here / "unlabelled.jsonl", [{"input": row["input"]} for row in scored])
    write_lines(here / "more-pairs.jsonl", [{key: row[key] for key in ("sentence1", "sentence2")} for row in pairs])
    for language in ("english", "spanish"):
        for split, part in (("train", scored[:30]), ("validation", scored[30:])):
            tweets = [
                {"text": row["input"], "text-phoneme": row["input"].upper(), "label": row["id"] % 2} for row in part
            ]
            write_lines(here / f"tweets/{language}/{split}.jsonl", tweets)
    for name in ("text", "phonemes"):
        make_nanogpt(here / "checkpoints" / name, vocab_size=512)
    write_glue(here / "glue/CoLA", scored)
    (here / "jobs").symlink_to(ROOT / "jobs")
    (here / "studies").mkdir()
    (here / "studies/best.json").write_text("{}")
    for name, text in re.findall(r"```json\n// (\S+)\n(.*?)```", PAGE, re.DOTALL):
        for number, fewer in FEWER_IN_FILES.items():
            text = text.replace(number, fewer)
        (here / name).write_text(text)
    return here


def write_bert(folder: Path) -> None:
    """A BERT of four layers, three of which can be made anew."""
    shape = StackShape(
        hidden_size=32, num_layers=4, num_heads=4, intermediate_size=64, num_positions=64, vocab_size=300
    )
    tokenizer = train_wordpiece([row["input"] for row in score_rows(200)], vocab_size=300, num_positions=64)
    write_scratch_model(folder, make_bert(shape, tokenizer, seed=1), tokenizer, {})


def write_glue(folder: Path, rows) -> None:
    folder.mkdir(parents=True)
    lines = [f"s\t{row['id'] % 2}\t\t{row['input']}\n" for row in rows]
    (folder / "train.tsv").write_text("".join(lines[:30]))
    (folder / "dev.tsv").write_text("".join(lines[30:]))
    (folder / "test.tsv").write_text(
        "index\tsentence\n" + "".join(f"{n}\t{row['input']}\n" for n, row in enumerate(rows[:6]))
    )


def test_the_page_has_the_five_practices():
    counts = {name: len(commands) for name, commands in sections().items()}
    assert len(counts) == 5
    assert min(counts.values()) >= 3
    assert sum(counts.values()) > 60


@pytest.mark.parametrize("name", sections())
def test_every_command_does_what_it_says(name, place):
    with Commands() as commands:
        if not (place / "mount/data/cola.json").is_file() and "small data" in name:  # the section before makes it
            assert commands.run(["workflow", "data", "make", "glue", "CoLA", "--glue_dir", "glue"], place)[0] == 0
        for words in sections()[name]:
            code, said = commands.run(words_for_tests(words), place)
            assert code == 0, f"{shlex.join(words)}\n{said[-3000:]}"
