"""Turns the tokens of an answer into its text: which special tokens stay, and which blanks stand beside added tokens.

A run whose completions hold special tokens (sentinels, added ones) keeps these in answers; padding, start and ends are
never part of a text. What a run keeps is written beside its weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from workflow.errors import ModelError
from workflow.files import write_json
from workflow.paths import ANSWER_TOKENS_NAME


@dataclass(frozen=True)
class Blanks:
    """The blanks between an added token and the text before it, the text after it, and a next added token.

    None where the tokenizer itself tells them, or where completions have now these, now those.
    """

    before: str | None = None
    after: str | None = None
    between: str | None = None


@dataclass(frozen=True)
class AnswerTexts:
    """Writes answers as completions are written. `marks` are the added tokens that completions hold, by their text."""

    tokenizer: Any
    ends: tuple[int, ...] = ()
    start: int | None = None
    marks: Mapping[str, Blanks] | None = None

    def __call__(self, tokens: Sequence[int]) -> str:
        """The text of an answer's tokens; special tokens that completions never hold are left out."""
        if not self.marks:
            return self._decoded(tokens, skip=True)
        text = self._decoded([token for token in tokens if token not in self._left_out], skip=False)
        return self._spaced(text) if self.blanks_may_go else text

    def reference(self, completion: str) -> str:
        """What an answer can be of a completion: without ends that were written behind it."""
        while (cut := next((end for end in self.end_texts if completion.rstrip().endswith(end)), None)) is not None:
            completion = completion.rstrip().removesuffix(cut)
        return completion

    @cached_property
    def blanks_may_go(self) -> bool:
        """Whether blanks at the end of an unfinished text depend on what follows."""
        return any(value is not None for blanks in (self.marks or {}).values() for value in asdict(blanks).values())

    @cached_property
    def added(self) -> dict[int, str]:
        """The tokens beside the vocabulary's own that completions may hold as marks: not padding, start or ends."""
        never = {*self.never_shown, *self.ends}
        found = {int(number): str(token) for number, token in self.tokenizer.added_tokens_decoder.items()}
        return {number: token for number, token in found.items() if number not in never}

    @property
    def never_shown(self) -> dict[int, str]:
        """Padding and the decoder's start."""
        never = {self.tokenizer.pad_token_id, self.start} - {None, *self.ends}
        return {number: str(self.tokenizer.convert_ids_to_tokens(number)) for number in never}

    @cached_property
    def special(self) -> set[int]:
        """The tokens that decoding leaves out unless they are kept."""
        found = {*map(int, self.tokenizer.all_special_ids)}
        if hasattr(self.tokenizer, "backend_tokenizer"):
            found |= {int(number) for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return found

    @cached_property
    def _left_out(self) -> set[int]:
        return self.special - {number for number, token in self.added.items() if token in (self.marks or {})}

    @cached_property
    def end_texts(self) -> list[str]:
        """The ends as a completion may have them written."""
        literal = self.special.union(map(int, self.tokenizer.added_tokens_decoder))  # no pieces of words
        ends = (self.tokenizer.convert_ids_to_tokens(end) for end in self.ends if end in literal)
        return [str(end) for end in ends if end]

    def _decoded(self, tokens: Sequence[int], *, skip: bool) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.marks or {}, key=len, reverse=True))))

    def _spaced(self, text: str) -> str:
        """The text with blanks beside marks as completions have them."""
        assert self.marks is not None
        found = self._pattern.findall(text)
        parts = self._pattern.split(text)
        for place, part in enumerate(parts):
            left = self.marks[found[place - 1]] if place else Blanks()
            right = self.marks[found[place]] if place < len(found) else Blanks()
            if part.strip():
                part = part if left.after is None else left.after + part.lstrip()
                part = part if right.before is None else part.rstrip() + right.before
            elif 0 < place < len(found) and left.between is not None:
                part = left.between
            parts[place] = part
        return "".join(part for pair in zip(parts, [*found, ""], strict=True) for part in pair)

    def keeping(self, marks: Mapping[str, Blanks]) -> AnswerTexts:
        """The same, also with these marks."""
        return AnswerTexts(self.tokenizer, self.ends, self.start, {**(self.marks or {}), **marks})

    def lost_blanks(self, mark: str, seen: Blanks) -> Blanks:
        """Of the blanks that were seen beside a mark, those that the tokenizer does not tell."""

        def same(one: str, other: str) -> bool:
            ids = self.tokenizer([one, other], add_special_tokens=False, verbose=False)["input_ids"]
            return bool(ids[0] == ids[1])

        return Blanks(
            seen.before if same(f"a{mark}", f"a{seen.before or ' '}{mark}") else None,
            seen.after if same(f"{mark}a", f"{mark}{seen.after or ' '}a") else None,
            seen.between if same(f"{mark}{mark}", f"{mark}{seen.between or ' '}{mark}") else None,
        )

    def write(self, folder: Path) -> None:
        """Writes what is kept beside a checkpoint's weights."""
        marks = {mark: asdict(blanks) for mark, blanks in (self.marks or {}).items()}
        write_json(folder / ANSWER_TOKENS_NAME, {"schema_version": 1, "tokens": marks})


def read_answers(file: Path | None, tokenizer: Any, *, ends: Collection[int], start: int) -> AnswerTexts:
    """How a checkpoint writes its answers; without a record, no special token is kept. Raises ModelError."""
    marks: dict[str, Blanks] = {}
    if file is not None:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))["tokens"]
            marks = {str(mark): Blanks(**blanks) for mark, blanks in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{file}: cannot be read: {error}; copy it again from the run, or remove it") from None
    return AnswerTexts(tokenizer, tuple(ends), start, marks)
