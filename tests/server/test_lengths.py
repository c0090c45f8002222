"""The fewest tokens of a text are never more than it has."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from workflow.data.encoders import encode
from workflow.errors import PromptTooLong
from workflow.server.lengths import least_tokens
from workflow.server.texts import ModelTexts

BYTES = ByT5Tokenizer()


@given(st.text() | st.text(alphabet="ab <>/s_id1\u00e9 "))
@settings(deadline=None, max_examples=300)
def test_of_bytes(text):
    assert least_tokens(BYTES)(text) <= len(encode(BYTES, [text])[0])


@given(text=st.text() | st.text(alphabet="red green 1é<s>{}"))
@settings(deadline=None, max_examples=300)
def test_of_pieces(vocabulary, text):
    assert least_tokens(vocabulary)(text) <= len(encode(vocabulary, [text])[0])


def test_what_is_certainly_too_long_is_not_tokenized(monkeypatch):
    texts = ModelTexts(BYTES, 384)
    monkeypatch.setattr("workflow.server.texts.encode", lambda *_: pytest.fail("it was tokenized"))
    with pytest.raises(PromptTooLong, match="at least 50 tokens, more than 40"):
        texts.prompts(["a" * 50], limit=40, truncate=False)
