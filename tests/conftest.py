"""Shared fixtures: small checkpoints made from scratch once, a mount, and a way to run the program."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side: threads that wait for each other would crawl
sys.path.insert(0, str(ROOT))


def pytest_collection_modifyitems(items):
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def shared(*parts: str) -> Path:
    """A file of the shared data; the test is skipped where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data not present: {'/'.join(parts)}")
    return path


def example_rows(count: int, seed: int = 0) -> list[dict]:
    """Rows of unlike lengths: the completion spells out the prompt's words backwards."""
    rng = random.Random(seed)
    words = ["red", "green", "blue", "one", "two", "three", "yes", "no", "left", "right"]
    rows = []
    for number in range(count):
        chosen = rng.choices(words, k=rng.randint(1, 9))
        rows.append({"prompt": f"reverse {' '.join(chosen)}", "completion": " ".join(reversed(chosen)), "id": number})
    return rows


def write_data(mount: Path, name: str, *, train: int = 40, evaluation: int = 7, seed: int = 0) -> Path:
    rows = example_rows(train + evaluation, seed)
    path = mount / "data" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"train": rows[:train], "eval": rows[train:]}))
    return path


def score_rows(count: int, seed: int = 0, *, pairs: bool = False) -> list[dict]:
    """Rows whose target is the share of colours among the words; a tenth of them hard 0 or 1."""
    rng = random.Random(seed)
    colours, others = ["red", "green", "blue"], ["one", "two", "three", "left", "right"]
    rows = []
    for number in range(count):
        share = rng.choice([0.0, 0.25, 0.5, 0.75, 1.0])
        words = [rng.choice(colours if rng.random() < share else others) for _ in range(rng.randint(3, 9))]
        row = {"input": f"reverse {' '.join(words)}", "target": share, "id": number}
        if pairs and number % 2:
            row["input_pair"] = " ".join(words[::-1])
        rows.append(row)
    return rows


def write_scores(mount: Path, name: str, *, train: int = 40, evaluation: int = 11, pairs: bool = False, **more) -> Path:
    rows = score_rows(train + evaluation, pairs=pairs)
    for row in rows:
        row |= {key: make(row) for key, make in more.items()}
    path = mount / "data" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"train": rows[:train], "eval": rows[train:]}))
    return path


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    os.environ["WORKFLOW_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def vocabulary():
    """A tokenizer trained on the example rows."""
    from workflow.models.scratch import train_vocabulary

    rows = example_rows(300)
    return train_vocabulary(iter([row[key] for row in rows for key in ("prompt", "completion")]), vocab_size=200)


SMALL = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2}


@pytest.fixture(scope="session")
def flan_like(tmp_path_factory, vocabulary) -> Path:
    """A checkpoint of Flan's shape (gated, own head), small."""
    return _scratch(tmp_path_factory, vocabulary, first_version=False)


@pytest.fixture(scope="session")
def t5_like(tmp_path_factory, vocabulary) -> Path:
    """A checkpoint of T5 1.0's shape (ReLU, tied head), small."""
    return _scratch(tmp_path_factory, vocabulary, first_version=True)


def _scratch(factory, tokenizer, *, first_version: bool) -> Path:
    from workflow.models.load import quiet_transformers
    from workflow.models.scratch import make_model, write_scratch_model
    from workflow.models.shapes import Shape

    quiet_transformers()
    folder = factory.mktemp("models") / ("t5" if first_version else "flan")
    model = make_model(Shape(**SMALL, first_version=first_version), tokenizer, seed=1)
    write_scratch_model(folder, model, tokenizer, {})
    return folder


@pytest.fixture(scope="session")
def shared_mount(tmp_path_factory) -> Path:
    """A mount with data set `toy`, for tests that only read it."""
    mount = tmp_path_factory.mktemp("mount")
    write_data(mount, "toy")
    write_scores(mount, "scored", pairs=True)
    write_scores(mount, "classes", target=lambda row: row["id"] % 3)
    return mount


@pytest.fixture
def mount(tmp_path) -> Path:
    """A mount of one's own with data set `toy`."""
    write_data(tmp_path / "mount", "toy")
    write_scores(tmp_path / "mount", "scored", pairs=True)
    return tmp_path / "mount"


@pytest.fixture(scope="session")
def bert_like(tmp_path_factory) -> Path:
    """A BERT body, small, with a vocabulary of the example rows."""
    from workflow.models.scratch_stacks import make_bert, train_wordpiece

    return _stack(tmp_path_factory, "bert", train_wordpiece, make_bert)


@pytest.fixture(scope="session")
def gpt2_like(tmp_path_factory) -> Path:
    """A GPT-2, small, with a vocabulary of the example rows."""
    from workflow.models.scratch_stacks import make_gpt2, train_byte_pairs

    return _stack(tmp_path_factory, "gpt2", train_byte_pairs, make_gpt2)


def _stack(factory, name: str, train_vocabulary, make) -> Path:
    from workflow.models.load import quiet_transformers
    from workflow.models.scratch import write_scratch_model
    from workflow.models.shapes import StackShape

    quiet_transformers()
    folder = factory.mktemp("models") / name
    texts = [row["input"] for row in score_rows(200)]
    shape = StackShape(
        hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, num_positions=64, vocab_size=300
    )
    tokenizer = train_vocabulary(texts, vocab_size=300, num_positions=64)
    write_scratch_model(folder, make(shape, tokenizer, seed=1), tokenizer, {})
    return folder


def run_program(
    *arguments: object,
    module: str | None = None,
    script: str = "seq2seq.py",
    cwd: Path = ROOT,
    env: dict | None = None,
    timeout: int = 300,
):
    """Runs a script (or a module) as users do; gives the finished process with its texts."""
    program = ["-m", module] if module else [str(ROOT / script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def metrics_lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, tuple[float, float]]:
    """step -> (loss, gradient norm) of a run's metrics.jsonl."""
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in metrics_lines(run) if "loss" in line}


def lines_without_times(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, but for speeds."""
    return [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in metrics_lines(run)]
