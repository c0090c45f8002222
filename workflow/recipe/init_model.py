"""`workflow init-model`: a T5, BERT or GPT-2 from scratch, its vocabulary trained on a data set or taken from elsewhere.

Knows nothing of training. The same command twice makes nothing twice; another recipe in the same place is refused.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from workflow import paths as names
from workflow.console import make_console
from workflow.data.sources import Row, Source, find_source
from workflow.errors import ConfigError, DataError, ModelError, did_you_mean
from workflow.models.load import load_tokenizer, quiet_transformers
from workflow.models.scratch import (
    WORD_START,
    byte_vocabulary,
    existing_recipe,
    make_model,
    train_vocabulary,
    write_scratch_model,
)
from workflow.models.scratch_stacks import (
    load_bert_tokenizer,
    load_gpt2_tokenizer,
    make_bert,
    make_gpt2,
    train_byte_pairs,
    train_wordpiece,
)
from workflow.models.shapes import SHAPES_BY_ARCH, Shape, StackShape

TEXT_KEYS = ("prompt", "completion", "input", "input_pair", "sentence1", "sentence2", "sentence")
BEFORE_ARCHITECTURES: dict[str, Any] = {"arch": "t5", "labels": []}
"""What a recipe written before it named these was made with."""
MAKE: dict[str, Callable[..., Any]] = {"t5": make_model, "bert": make_bert, "gpt2": make_gpt2}


def init_model(given: Namespace) -> int:
    """Makes the model unless it is there already."""
    _check(given)
    shape, console = SHAPES_BY_ARCH[given.arch][given.like], make_console()
    mount = names.find_mount(given.mount)
    source = find_source(given.data_name, mount, given.quoting) if given.data_name else None
    vocab_size = given.vocab_size or shape.vocab_size
    recipe = {
        "arch": given.arch,
        "like": given.like,
        "seed": given.seed,
        "tokenizer": given.tokenizer or "trained",
        "vocab_size": vocab_size if source else None,
        "data_hash": source.data_hash if source else None,
        "labels": list(given.labels),
    }
    before = existing_recipe(given.out)
    if before is not None and BEFORE_ARCHITECTURES | before == recipe:
        console.print(f"{given.out} is there already, made by the same recipe")
        return 0
    if before is not None:
        raise ModelError(f"{given.out} holds a model made by another recipe ({before}); choose another --out")
    quiet_transformers()
    tokenizer = (
        _tokenizer_of(given.arch, given.tokenizer) if source is None else _trained(given, source, shape, vocab_size)
    )
    model = MAKE[given.arch](shape, tokenizer, seed=given.seed)
    write_scratch_model(given.out, model, tokenizer, recipe)
    count = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"{given.out}: {given.arch} {given.like} from scratch, {count / 1e6:.2f} M parameters, {len(tokenizer)} tokens"
    )
    return 0


def _check(given: Namespace) -> None:
    """Refuses flags that do not go together before anything heavy is loaded. Raises ConfigError."""
    shapes = SHAPES_BY_ARCH[given.arch]
    if given.like not in shapes:
        others = [arch for arch, known in SHAPES_BY_ARCH.items() if given.like in known]
        advice = f"; pass --arch {others[0]} for it" if others else did_you_mean(given.like, shapes)
        raise ConfigError(
            f"workflow init-model: --like {given.like} is no shape of {given.arch}, which has {', '.join(shapes)}{advice}"
        )
    if given.vocab_size is not None and given.vocab_size < 1:
        raise ConfigError(f"workflow init-model: --vocab_size must be at least 1, not {given.vocab_size}")
    if given.tokenizer == "byt5" and given.arch != "t5":
        raise ConfigError(
            f"workflow init-model: --tokenizer byt5 is for --arch t5; pass the folder of a {given.arch}'s"
        )
    if given.labels and (given.arch != "t5" or not given.data_name):
        raise ConfigError("workflow init-model: --labels is for --arch t5 and a vocabulary trained by --data_name")
    for word in given.labels:
        if word.split() != [word] or WORD_START in word:
            raise ConfigError(f"workflow init-model: --labels: {word!r} is not one word; write it without spaces")


def _trained(given: Namespace, source: Source, shape: Shape | StackShape, vocab_size: int) -> Any:
    """A tokenizer trained on the data set."""
    texts = TrainingTexts(source)
    texts.check()
    if isinstance(shape, Shape):
        return train_vocabulary(iter(texts), vocab_size=vocab_size, labels=given.labels)
    train = train_wordpiece if given.arch == "bert" else train_byte_pairs
    return train(texts, vocab_size=vocab_size, num_positions=shape.num_positions)


def _tokenizer_of(arch: str, name: str) -> Any:
    if arch == "t5":
        return byte_vocabulary() if name == "byt5" else load_tokenizer(name)
    return load_bert_tokenizer(name) if arch == "bert" else load_gpt2_tokenizer(name)


@dataclass(frozen=True)
class TrainingTexts:
    """Every text of the training rows that a model would read or write, as often as it is iterated over.

    The data set may be for any task: it is the keys of its rows that tell what its texts are.
    """

    source: Source

    def check(self) -> None:
        """Reads all rows of all splits once. Raises DataError for a row without texts, and where no row is to train on."""
        rows = 0
        for split, index, row in self.source.rows():
            if problem := _row_problem(row):
                raise DataError(f"{self.source.label}: {split}[{index}]: {problem}")
            rows += split == "train"
        if not rows:
            raise DataError(f"{self.source.label}: no training rows to make a vocabulary from")

    def __iter__(self) -> Iterator[str]:
        for split, _, row in self.source.rows():
            if split == "train":
                yield from _texts(row).values()


def _texts(row: Row) -> dict[str, str]:
    return {key: row[key] for key in TEXT_KEYS if isinstance(row.get(key), str)}


def _row_problem(row: Row) -> str | None:
    texts = _texts(row)
    if not texts:
        return (
            f"no text under any of {', '.join(TEXT_KEYS)} (the row has {', '.join(map(json.dumps, row)) or 'no keys'})"
        )
    for key, text in texts.items():
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            return f'"{key}" holds half a surrogate pair, which is no character'
    return None
