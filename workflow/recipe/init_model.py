"""`workflow init-model`: a T5 from scratch, its vocabulary trained on a data set or taken from elsewhere.

Knows nothing of training. The same command twice makes nothing twice; another recipe in the same place is refused.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from workflow import paths as names
from workflow.console import make_console
from workflow.data.examples import SEQ2SEQ, load_examples
from workflow.data.sources import Source, find_source
from workflow.errors import DataError, ModelError
from workflow.models.load import load_tokenizer, quiet_transformers
from workflow.models.scratch import byte_vocabulary, existing_recipe, make_model, train_vocabulary, write_scratch_model
from workflow.models.shapes import SHAPES


def init_model(given: Namespace) -> int:
    """Makes the model unless it is there already."""
    shape, console = SHAPES[given.like], make_console()
    source = find_source(given.data_name, names.find_mount(given.mount)) if given.data_name else None
    vocab_size = given.vocab_size or shape.vocab_size
    recipe = {
        "like": given.like,
        "seed": given.seed,
        "tokenizer": given.tokenizer or "trained",
        "vocab_size": vocab_size if source else None,
        "data_hash": source.data_hash if source else None,
    }
    before = existing_recipe(given.out)
    if before == recipe:
        console.print(f"{given.out} is there already, made by the same recipe")
        return 0
    if before is not None:
        raise ModelError(f"{given.out} holds a model made by another recipe ({before}); choose another --out")
    quiet_transformers()
    tokenizer = _tokenizer(given.tokenizer, source, vocab_size)
    model = make_model(shape, tokenizer, seed=given.seed)
    write_scratch_model(given.out, model, tokenizer, recipe)
    count = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"{given.out}: {given.like} from scratch, {count / 1e6:.2f} M parameters, {len(tokenizer)} tokens")
    return 0


def _tokenizer(name: str | None, source: Source | None, vocab_size: int) -> Any:
    if source is not None:
        return train_vocabulary(_texts(source), vocab_size=vocab_size)
    assert name is not None
    return byte_vocabulary() if name == "byt5" else load_tokenizer(name)


def _texts(source: Source) -> Iterator[str]:
    """Prompts and completions of the training rows, all rows checked first."""
    examples = load_examples(source, SEQ2SEQ, names.cache_dir())
    if not len(examples.train):
        raise DataError(f"{source.label}: no training rows to make a vocabulary from")

    def texts() -> Iterator[str]:
        for row in examples.train:
            yield row["prompt"]
            yield row["completion"]

    return texts()
