"""Label words and their single tokens in a vocabulary.

Knows nothing of models. Token numbers are never constants: 150 and 4273 are *no* and *yes* in T5's vocabulary alone.
"""

from __future__ import annotations

from typing import Any

from workflow.errors import ModelError


def pieces(tokenizer: Any, word: str) -> list[int]:
    """Token ids of a word at the start of a text, without special tokens."""
    ids: list[int] = tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def single_token(tokenizer: Any, word: str) -> int:
    """The token of a label word. Raises ModelError, showing the pieces, where it is not exactly one known token."""
    ids = pieces(tokenizer, word)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        shown = " ".join(map(repr, tokenizer.convert_ids_to_tokens(ids)))
        raise ModelError(
            f"label word {word!r} is not a single token of this vocabulary (its pieces: {shown}); choose another word"
        )
    return ids[0]


def no_yes_tokens(tokenizer: Any) -> tuple[int, int] | None:
    """The tokens of *no* and *yes*, or None where the vocabulary has no single token for one of them (ByT5)."""
    try:
        return single_token(tokenizer, "no"), single_token(tokenizer, "yes")
    except ModelError:
        return None
