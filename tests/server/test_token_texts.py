"""Tokens of answers: their bytes are the text's, each stands at its offset, and the chosen one is in its dictionary."""

from __future__ import annotations

import random
import re

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from workflow.inference.requests import Generation, TokenLogprob
from workflow.inference.sampling import SamplingParams
from workflow.inference.sequence import Answer
from workflow.models.answers import AnswerTexts, Blanks
from workflow.server.answers import shown_tokens
from workflow.server.completions import ShownLogprobs, choice_of
from workflow.server.texts import ModelTexts
from workflow.server.tgi import _tokens

TEXT = "Straße €5 \U0001f98a naïve cat cats!"
SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "extra_special_tokens": ["<extra_id_0>"]}


def _byte_fallback():
    """A vocabulary as T5Gemma's: what has no piece is spelt in bytes."""
    pieces = [
        "<pad>",
        "</s>",
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁cat",
        "cat",
        "s",
        "▁na",
        "ve",
    ]
    backend = Tokenizer(models.Unigram([(piece, -3.0) for piece in pieces], unk_id=2, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def _byte_level():
    """A vocabulary as CodeT5's: pieces may end within a character."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<pad>", "</s>", "<unk>"])
    backend.train_from_iterator([TEXT, "€ € €", "\U0001f98a\U0001f98a"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def _sentencepiece():
    """A vocabulary as T5's: words begin with a space that the first of a text loses, and it has no piece for most signs."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in ("cat", "na", "S")), *"catsvetrßï!5"]
    backend = Tokenizer(models.Unigram([(piece, -3.0) for piece in pieces], unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


MAKERS = {
    "bytes": ByT5Tokenizer,
    "fallback": _byte_fallback,
    "byte_level": _byte_level,
    "sentencepiece": _sentencepiece,
}


@pytest.fixture(scope="module", params=MAKERS)
def texts(request):
    tokenizer = MAKERS[request.param]()
    return ModelTexts(tokenizer, len(tokenizer))


def read(token: str) -> bytes:
    """A token's bytes, from how it is written."""
    if token.startswith("bytes:"):
        return bytes(int(found, 16) for found in re.findall(r"\\x([0-9a-f]{2})", token))
    return token.encode()


def made_of(texts, ids, *, keeps_special=False, decode=None, **params):
    """An answer of these tokens, whole and in the chunks of a stream."""

    def plain(tokens):
        return texts.tokenizer.decode(
            list(tokens), skip_special_tokens=not keeps_special, clean_up_tokenization_spaces=False
        )

    answer = Answer(0, SamplingParams(**({"max_new_tokens": len(ids)} | params)), 0, (texts.eos_id,), decode or plain)
    answer.blanks_may_go = decode is not None
    chunks = []
    for number in ids:
        others = tuple((other, -3.0 - other) for other in (0, 1, 2, 70, 100))
        answer.add(number, TokenLogprob(number, -0.5, others))
        if chunk := answer.chunk():
            chunks.append(chunk)
        if answer.finish_reason:
            break
    return answer.generation(), chunks


def check(text, shown):
    assert b"".join(map(read, shown.tokens)) == text.encode()
    before = b""
    for token, logprob, others, offset in zip(
        shown.tokens, shown.token_logprobs, shown.top_logprobs, shown.text_offset, strict=True
    ):
        assert offset == len(before.decode(errors="ignore")), "the character that the token begins or goes on with"
        before += read(token)
        assert token.startswith("bytes:") or text[offset : offset + len(token)] == token
        assert others[token] == logprob == -0.5


def check_everywhere(texts, made, chunks):
    check(made.text, choice_of(ShownLogprobs(texts), made, 0).logprobs)
    streamed, places, text = None, ShownLogprobs(texts), ""
    for chunk in chunks:
        part = places.add(chunk.logprobs, chunk.text, is_last=chunk.finish_reason is not None)
        text += chunk.text
        streamed = (
            part
            if streamed is None
            else streamed.model_copy(
                update={name: getattr(streamed, name) + getattr(part, name) for name in type(part).model_fields}
            )
        )
        assert text.encode().startswith(b"".join(map(read, streamed.tokens)))
    if text == made.text:  # a byte that makes its run no UTF-8 changes what was streamed before it
        check(text, streamed)
    ours = shown_tokens(texts, made)
    assert len(ours) == made.num_tokens
    assert b"".join(read(token.token) for token in ours) == made.text.encode()
    tgi = _tokens(texts, made)
    assert len(tgi) == made.num_tokens
    assert "".join(token.text for token in tgi if not token.special) == made.text


def test_a_text(texts):
    ids = texts.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    made, chunks = made_of(texts, [*ids, texts.eos_id], max_new_tokens=len(ids) + 1)
    assert made.finish_reason == "stop"
    check_everywhere(texts, made, chunks)
    shown = choice_of(ShownLogprobs(texts), made, 0).logprobs
    assert len(shown.tokens) == len(ids)


@pytest.mark.parametrize("stop", ["cat", " ", "€", "s!", "ïv"])
def test_stop_strings_cut_tokens(texts, stop):
    ids = texts.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    check_everywhere(texts, *made_of(texts, ids, stop=(stop,)))


@pytest.mark.parametrize("keeps_special", [False, True])
def test_any_tokens(texts, keeps_special):
    """Whatever a model may draw: special and unknown tokens, bytes that are no characters."""
    drawn = random.Random(3)
    bytes_of = texts.tokenizer("€ß\U0001f98a", add_special_tokens=False)["input_ids"]
    for _ in range(150):
        ids = [
            drawn.choice([drawn.randrange(len(texts.tokenizer)), drawn.choice(bytes_of), 2])
            for _ in range(drawn.randrange(1, 12))
        ]
        ids = [number for number in ids if number != texts.eos_id] or [0]
        check_everywhere(texts, *made_of(texts, ids, keeps_special=keeps_special))


@pytest.mark.parametrize(
    "rule", [Blanks("", "", ""), Blanks("\n", "\n", "\n"), Blanks(" ", "", "  "), Blanks("\u3000", "\u3000 ")]
)
def test_each_token_stands_at_its_own_text_whatever_blanks_are_beside_marks(rule):
    tokenizer = _sentencepiece()
    texts = ModelTexts(tokenizer, len(tokenizer))
    answers = AnswerTexts(tokenizer, (texts.eos_id,), 0, {"<extra_id_0>": rule})
    mark, *words = tokenizer.convert_tokens_to_ids(["<extra_id_0>", "▁", "s", "▁cat", "t", "▁na"])
    drawn = random.Random(5)
    for _ in range(150):
        ids = [drawn.choice([mark, *words]) for _ in range(drawn.randrange(1, 12))]
        made, chunks = made_of(texts, ids, decode=answers)
        check_everywhere(texts, made, chunks)
        own = [texts.token_bytes.of(number).decode().strip() for number in ids]
        assert [token.token.strip() for token in shown_tokens(texts, made)] == own
        places = ShownLogprobs(texts)
        parts = [places.add(chunk.logprobs, chunk.text, is_last=bool(chunk.finish_reason)) for chunk in chunks]
        assert [token.strip() for part in parts for token in part.tokens] == own


@pytest.mark.parametrize("rule", [Blanks("", "", ""), Blanks(" ", " "), Blanks("", "  ")])
def test_an_added_line_break_stands_where_the_text_has_it(rule):
    tokenizer = _sentencepiece()
    tokenizer.add_tokens([AddedToken("\n", normalized=False)])
    texts = ModelTexts(tokenizer, len(tokenizer))
    answers = AnswerTexts(tokenizer, (texts.eos_id,), 0, {"\n": rule})
    pieces = tokenizer.convert_tokens_to_ids(["\n", "▁", "s", "▁cat", "\n"])
    drawn = random.Random(7)
    for _ in range(150):
        ids = [drawn.choice(pieces) for _ in range(drawn.randrange(1, 10))]
        made, chunks = made_of(texts, ids, decode=answers)
        check_everywhere(texts, made, chunks)
        shown = [token.token for token in shown_tokens(texts, made)]
        assert ["\n" in token for token in shown] == [number == pieces[0] for number in ids]


@pytest.mark.parametrize("kind", ["bytes", "fallback", "byte_level"])
def test_pieces_of_a_character(kind):
    """As OpenAI writes them, each with the offset of its character."""
    tokenizer = MAKERS[kind]()
    texts = ModelTexts(tokenizer, len(tokenizer))
    table = texts.token_bytes
    ids = [
        next(number for number in range(len(texts.tokenizer)) if table.of(number) == bytes([byte]))
        for byte in "a€b".encode()
    ]
    made, _ = made_of(texts, ids)
    shown = choice_of(ShownLogprobs(texts), made, 0).logprobs
    assert shown.tokens == ["a", r"bytes:\xe2", r"bytes:\x82", r"bytes:\xac", "b"]
    assert shown.text_offset == [0, 1, 1, 1, 2]
    assert [token.text for token in _tokens(texts, made)] == ["a", "", "", "€", "b"]
    assert [token.token for token in shown_tokens(texts, made)] == shown.tokens


def test_the_chosen_token_is_beside_the_likeliest():
    tokenizer = _sentencepiece()
    texts = ModelTexts(tokenizer, len(tokenizer))
    spaced, plain, end = (tokenizer.convert_tokens_to_ids(piece) for piece in ("▁S", "s", "</s>"))
    made = Generation((plain,), "s", "length", (TokenLogprob(plain, -4.0, ((spaced, -0.1), (end, -2.5))),), 1)
    shown = choice_of(ShownLogprobs(texts), made, 0).logprobs
    assert shown.top_logprobs == [{"S": -0.1, "</s>": -2.5, "s": -4.0}]
    alike = (tokenizer.convert_tokens_to_ids("▁cat"), plain)
    made = Generation((plain,), "s", "length", (TokenLogprob(plain, -4.0, tuple((token, -1.0) for token in alike)),), 1)
    assert choice_of(ShownLogprobs(texts), made, 0).logprobs.top_logprobs == [{"cat": -1.0, "s": -4.0}]
