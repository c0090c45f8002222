"""Rows to train on in benchmarks: random tokens of some lengths, or a data set's first rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from workflow.data.encoders import INPUT, LengthLimits, Seq2SeqEncoder
from workflow.data.sources import find_source
from workflow.models.classifier import label_tokens


class Vocabulary:
    """As much of a tokenizer as the model's shape and transformers' collator need, where there are no texts."""

    pad_token_id, eos_token_id, padding_side = 0, 1, "right"

    def __len__(self) -> int:
        return 32100


class Rows:
    """Token ids of rows, as `Features` gives them."""

    fields = ("prompt", INPUT, "completion")

    def __init__(self, rows: list[tuple[list[int], list[int]]]) -> None:
        self.rows = [
            {"prompt": np.array(a, np.int32), INPUT: np.array(a, np.int32), "completion": np.array(b, np.int32)}
            for a, b in rows
        ]
        self.targets: np.ndarray | None = None  # [rows, 2]: of no and of yes

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, field: str, row: int) -> np.ndarray:
        """Ids of one field of a row."""
        return self.rows[row][field]

    def lengths(self, field: str) -> np.ndarray:
        """Tokens of each row."""
        return np.array([len(row[field]) for row in self.rows], np.int32)


def instruction_like(count: int) -> Rows:
    """Log-normal lengths: prompts about 60 tokens, up to 512; completions about 30, up to 114."""
    rng = np.random.default_rng(0)
    sources = np.clip(rng.lognormal(4.1, 0.9, count), 4, 512).astype(int)
    targets = np.clip(rng.lognormal(3.4, 0.9, count), 2, 114).astype(int)
    return random_tokens(sources, targets)


def random_tokens(sources: Any, targets: Any) -> Rows:
    """Rows of these lengths."""
    rng = np.random.default_rng(1)
    return Rows(
        [
            (rng.integers(3, 32000, a).tolist(), rng.integers(3, 32000, b).tolist())
            for a, b in zip(sources, targets, strict=True)
        ]
    )


def of_texts(name: str, tokenizer: Any, count: int) -> Rows:
    """The first training rows of a data set."""
    encoder = Seq2SeqEncoder(tokenizer, LengthLimits(512, 512))
    encoded = encoder.encode(first_rows(name, count))
    return Rows(list(zip(encoded["prompt"].ids, encoded["completion"].ids, strict=True)))


def first_rows(name: str, count: int) -> list[dict]:
    """Of the training split."""
    return [row for split, _, row in find_source(name, Path("mount")).rows() if split == "train"][:count]


def of_scores(name: str, tokenizer: Any, count: int) -> Rows:
    """The first training rows of a data set of inputs and targets; their completions are the texts no and yes."""
    no, yes = label_tokens(tokenizer, ("no", "yes"))
    chosen = first_rows(name, count)
    inputs = [tokenizer(row["input"], truncation=True, max_length=512).input_ids for row in chosen]
    targets = np.array([float(row["target"]) for row in chosen], np.float32)
    rows = Rows([(ids, [yes if target > 0.5 else no, 1]) for ids, target in zip(inputs, targets, strict=True)])
    rows.targets = np.stack([1 - targets, targets], axis=1)
    return rows
