"""Texts that are certainly too long, told without tokenizing them: megabytes of text make millions of tokens.

Knows nothing of requests. Only what no tokenizer's merging can make wrong is counted; else the answer is 0.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable
from typing import Any

LETTERS = string.ascii_letters + string.digits
OTHERS = re.compile(r"[^A-Za-z0-9]+")


def least_tokens(tokenizer: Any) -> Callable[[str], int]:
    """A function that gives the fewest tokens that a text can have."""
    starts = {str(token)[:1] for token in tokenizer.added_tokens_decoder.values()}
    if type(tokenizer).__name__ == "ByT5Tokenizer":
        return lambda text: 0 if any(start in text for start in starts) else len(text.encode())
    pieces = _unigram_pieces(tokenizer)
    if not set(LETTERS) <= pieces:
        return _unknown
    longest = max(map(len, pieces))

    def fewest(text: str) -> int:
        # Letters and digits that are pieces themselves are never unknown, and unlike blanks never dropped.
        if not text.isascii() or any(start in text for start in starts):
            return 0
        return len(OTHERS.sub("", text)) // longest

    return fewest


def _unknown(_: str) -> int:
    return 0


def _unigram_pieces(tokenizer: Any) -> set[str]:
    """The pieces of a fast tokenizer that splits by unigrams, as T5's; of others, which may drop text, none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return set()
    model = json.loads(backend.to_str())["model"]
    return {piece for piece, _ in model["vocab"]} if model.get("type") == "Unigram" else set()
