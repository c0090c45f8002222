"""Which bytes of an answer's text each of its tokens stands for, and how tokens are written in answers.

The text itself decides: what a tokenizer drops, strips at the start or cannot read as UTF-8, and what a stop string cut
off, is no part of it, so the bytes of an answer's tokens are always the bytes of its text.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workflow.inference.requests import TokenLogprob

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
WORD = re.compile(r"▁?[A-Za-z]+")
SPACED_WORD = re.compile(r"▁[A-Za-z]+")
SPACE = b" "
UNDECIDED = "\N{REPLACEMENT CHARACTER}".encode()
"""What decoders put for bytes that are no character."""


class TokenBytes:
    """The bytes that each token of a vocabulary adds to a text, behind other tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.added = {int(number): str(token) for number, token in tokenizer.added_tokens_decoder.items()}
        self.special = {*map(int, tokenizer.all_special_ids)}
        """Tokens that decoding may leave out."""
        self._found: dict[int, bytes] = {}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = json.dumps(json.loads(backend.decoder.__getstate__())) if backend and backend.decoder else ""
        self._has_byte_pieces = '"ByteFallback"' in decoder
        self._alphabet = _byte_alphabet() if '"ByteLevel"' in decoder else {}
        self._is_bytes = type(tokenizer).__name__ == "ByT5Tokenizer"
        self._before = self._first(WORD)
        spaced = self._first(SPACED_WORD)
        self.strips_start = spaced is not None and not self._text([spaced]).startswith(" ")
        """Whether a text's first token loses its space."""

    def of(self, number: int) -> bytes:
        """The bytes of a token; none for ids beyond the vocabulary."""
        if number not in self._found:
            self._found[number] = self._read(number)
        return self._found[number]

    def name(self, number: int) -> str:
        """The token as its vocabulary has it."""
        piece = self._tokenizer.convert_ids_to_tokens(number)
        return "" if piece is None else str(piece)

    def shown(self, number: int, *, at_start: bool) -> str:
        """How a token would be written that is no part of the text: at its start a space is left out."""
        data = self.of(number)
        if at_start and self.strips_start:
            data = data.removeprefix(SPACE)
        return self.name(number) if number in self.special or not data else written(data)

    def _read(self, number: int) -> bytes:
        if number in self.added:
            return self.added[number].encode()
        piece = self.name(number)
        if self._is_bytes:
            return bytes([ord(piece)]) if len(piece) == 1 and ord(piece) < 256 else b""
        if self._has_byte_pieces and (found := BYTE_PIECE.fullmatch(piece)):
            return bytes([int(found[1], 16)])
        if self._alphabet and all(letter in self._alphabet for letter in piece):
            return bytes(self._alphabet[letter] for letter in piece)
        if not piece or self._before is None:
            return piece.encode()
        return self._text([self._before, number]).removeprefix(self._text([self._before])).encode()

    def _text(self, numbers: Sequence[int]) -> str:
        text: str = self._tokenizer.decode([*numbers], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _first(self, pattern: re.Pattern[str]) -> int | None:
        numbers = (number for number in range(len(self._tokenizer)) if number not in self.added)
        return next((number for number in numbers if pattern.fullmatch(self.name(number))), None)


@dataclass(frozen=True)
class PlacedToken:
    """A token, the bytes of the text that it stands for, and the character at which these stand."""

    token: TokenLogprob
    data: bytes
    offset: int


class TokenPlaces:
    """Lays the tokens of one sample along its text, as both come."""

    def __init__(self, table: TokenBytes) -> None:
        self._table = table
        self._text = b""
        self._done = 0
        """Bytes of the text that tokens stand for."""
        self._num_characters = 0
        """Characters that begin in these bytes."""
        self._begun = False
        self._waiting: deque[TokenLogprob] = deque()

    def add(self, tokens: Sequence[TokenLogprob], text: str, *, is_last: bool) -> list[PlacedToken]:
        """Takes what came; gives the tokens whose place is certain, and all of them at the end."""
        self._text += text.encode()
        self._waiting += tokens
        placed: list[PlacedToken] = []
        while self._waiting and (found := self._next(is_last=is_last)) is not None:
            placed += [self._placed(self._waiting.popleft(), data) for data in found]
        if is_last and self._done < len(self._text) and placed:  # a tokenizer that writes tokens in ways of its own
            last = placed.pop()
            rest = self._placed(last.token, self._text[self._done :]).data
            placed.append(PlacedToken(last.token, last.data + rest, last.offset))
        return placed

    def _placed(self, token: TokenLogprob, data: bytes) -> PlacedToken:
        starts = sum(byte & 0xC0 != 0x80 for byte in data)
        inside = bool(data) and data[0] & 0xC0 == 0x80
        self._begun = self._begun or bool(data) or token.token_id not in self._table.special
        place = PlacedToken(token, data, self._num_characters - inside)
        self._num_characters += starts
        self._done += len(data)
        return place

    def _next(self, *, is_last: bool) -> list[bytes] | None:
        """What the next tokens stand for, as many as make whole characters together; None to wait for more."""
        group = self._whole_characters(is_last=is_last)
        if group is None:
            return None
        if not group:
            return [self._dropped()]
        number, data = self._waiting[0].token_id, b"".join(group)
        forms = [data]
        if self._table.strips_start and not self._begun:
            forms.insert(0, data.removeprefix(SPACE))
        blanks = self._blanks_ahead()
        if number in self._table.special:
            forms.append(blanks + data)
        there = [self._text[self._done : self._done + len(form)] for form in forms]
        for form, found in zip(forms, there, strict=True):
            if found == form:
                return _shared(group, form, len(form))
        for form, found in zip(forms, there, strict=True):
            if form.startswith(found):  # the text ends here
                return _shared(group, form, len(found)) if is_last else None
        dropped, core = self._dropped(), data.strip() or data
        # A blank that is not here is left out (another one further on is another token's), but for an added line break.
        reach = self._done + (len(blanks) if number in self._table.added else 0)
        end = self._text.find(core, self._done, len(self._text) if data.strip() else reach)
        if dropped or end < 0 or number in self._table.special or len(group) > 1:
            return [dropped]
        return [self._text[self._done : end + len(core)]]

    def _blanks_ahead(self) -> bytes:
        """The blanks of the text at the next token's place, which runs may have before special tokens."""
        rest = self._text[self._done :].decode(errors="ignore")
        return rest[: len(rest) - len(rest.lstrip())].encode()

    def _whole_characters(self, *, is_last: bool) -> list[bytes] | None:
        """The bytes of the next tokens up to the end of a character; none where they never make one, None to wait."""
        decoder, group = codecs.getincrementaldecoder("utf-8")(), []
        for token in self._waiting:
            group.append(self._table.of(token.token_id))
            try:
                decoder.decode(group[-1])
            except UnicodeDecodeError:
                return []
            if not decoder.getstate()[0]:
                return group
        return [] if is_last else None

    def _dropped(self) -> bytes:
        """What a token that is no part of the text stands for: nothing, or the sign for bytes that are no character."""
        is_byte = self._waiting[0].token_id not in self._table.special
        return UNDECIDED if is_byte and self._text.startswith(UNDECIDED, self._done) else b""


def _shared(group: Sequence[bytes], form: bytes, length: int) -> list[bytes]:
    """The first `length` bytes of a form, divided among the tokens whose bytes it is made of; the first may be a space
    shorter, or blanks longer."""
    more, ends = len(form) - sum(map(len, group)), 0
    parts = []
    for number, data in enumerate(group):
        start, ends = ends, ends + len(data) + (more if number == 0 else 0)
        parts.append(form[:length][start:ends])
    return parts


def written(data: bytes) -> str:
    """Bytes as OpenAI writes tokens: as text, or `bytes:\\xNN` where they are not whole characters."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def likeliest(table: TokenBytes, placed: PlacedToken) -> dict[str, float]:
    """The most likely tokens at a place and the chosen one, as they are written; names where two are written alike."""
    chosen, shown = placed.token, written(placed.data)
    found: dict[str, float] = {}
    for number, value in chosen.top:
        if number == chosen.token_id:
            found[shown] = value
            continue
        text = table.shown(number, at_start=placed.offset == 0)
        found.setdefault(table.name(number) if text in found or text == shown else text, value)
    found[shown] = chosen.logprob
    return found


def _byte_alphabet() -> dict[str, int]:
    """The letters by which byte-level vocabularies write bytes (GPT-2's): printable ones themselves, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
