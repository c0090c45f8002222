"""BERTs and GPT-2s made from scratch, with a vocabulary trained on the user's own texts; a head is put on elsewhere.

Knows nothing of data formats: it is given texts.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

from workflow.errors import ModelError
from workflow.models.load import tokenizer_of_files
from workflow.models.scratch import MAX_TRAINING_TEXTS
from workflow.models.shapes import StackShape
from workflow.runtime import seeded

BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
END_OF_TEXT = "<|endoftext|>"


def train_wordpiece(texts: Iterable[str], *, vocab_size: int, num_positions: int) -> Any:
    """A BERT tokenizer (lower case) over a WordPiece vocabulary of up to `vocab_size` pieces; `texts` are read twice.

    Raises ModelError when the texts are too few or hold too many characters.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    assert iter(texts) is not texts, "read twice: an iterator would be empty the second time"
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner = _inner_characters(texts, trained)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        # The trainer numbers `##x` in the order of a hash map, and ties between merges follow the numbers: named
        # beforehand, the same texts give the same vocabulary in every process.
        special_tokens=[*BERT_SPECIALS, *(f"##{character}" for character in inner)],
        show_progress=False,
    )
    trained.train_from_iterator(itertools.islice(texts, MAX_TRAINING_TEXTS), trainer)
    vocabulary = trained.get_vocab(with_added_tokens=True)
    if len(vocabulary) == len(BERT_SPECIALS):
        raise ModelError("cannot train a vocabulary on these texts: there is no word in them")
    _check_size(len(vocabulary), vocab_size)
    ordered = {piece: vocabulary[piece] for piece in sorted(vocabulary, key=vocabulary.__getitem__)}
    return BertTokenizer(vocab=ordered, model_max_length=num_positions)


def _inner_characters(texts: Iterable[str], tokenizer: Any) -> list[str]:
    """The characters that can stand inside a word, as normalised, in the order of their code points."""
    seen: set[str] = set()
    for text in itertools.islice(texts, MAX_TRAINING_TEXTS):
        seen.update(text)
    inner: set[str] = set()
    for character in seen:
        normal = tokenizer.normalizer.normalize_str(f"a{character}")
        # Punctuation and Chinese characters are words of their own.
        inner.update(*(word[1:] for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)))
    return sorted(inner)


def train_byte_pairs(texts: Iterable[str], *, vocab_size: int, num_positions: int) -> Any:
    """A GPT-2 tokenizer over a byte-level BPE vocabulary of up to `vocab_size` pieces; no text is unknown to it.

    `<|endoftext|>` begins, ends and pads. Raises ModelError where `vocab_size` has no room for the 256 bytes.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPT2Tokenizer

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(itertools.islice(texts, MAX_TRAINING_TEXTS), trainer)
    model = json.loads(trained.to_str())["model"]
    _check_size(len(model["vocab"]), vocab_size)
    return GPT2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        pad_token=END_OF_TEXT,
        model_max_length=num_positions,
    )


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise ModelError(
            f"cannot train a vocabulary of {most} pieces on these texts: single characters and special tokens alone "
            f"are {size}; give a larger --vocab_size"
        )


def load_bert_tokenizer(name: str) -> Any:
    """The tokenizer of a folder, checked to have what a BERT's input is made of. Raises ModelError."""
    return _load_tokenizer(name, "BERT", ("pad_token", "unk_token", "cls_token", "sep_token"))


def load_gpt2_tokenizer(name: str) -> Any:
    """The tokenizer of a folder; its end-of-text token pads where it has none to pad with. Raises ModelError."""
    tokenizer = _load_tokenizer(name, "GPT-2", ("eos_token",))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_tokenizer(name: str, kind: str, needed: tuple[str, ...]) -> Any:
    try:
        tokenizer, _ = tokenizer_of_files(name)
    except ModelError as error:
        raise ModelError(f"--tokenizer {error}") from error
    if missing := [token for token in needed if getattr(tokenizer, token) is None]:
        raise ModelError(f"--tokenizer {name}: has no {', '.join(missing)}; give the tokenizer of a {kind}")
    # transformers makes a tokenizer of the special tokens alone where the vocabulary is missing.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"--tokenizer {name}: has special tokens alone; is its vocabulary file missing?")
    return tokenizer


def make_bert(shape: StackShape, tokenizer: Any, *, seed: int) -> Any:
    """A BERT of this shape, pooler included, with random weights that depend on the seed alone."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.num_positions,
        pad_token_id=tokenizer.pad_token_id,
    )
    with seeded(seed):
        return BertModel(config)


def make_gpt2(shape: StackShape, tokenizer: Any, *, seed: int) -> Any:
    """A GPT-2 of this shape, its output head tied, with random weights that depend on the seed alone."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=shape.hidden_size,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        n_inner=shape.intermediate_size,
        n_positions=shape.num_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with seeded(seed):
        return GPT2LMHeadModel(config)
