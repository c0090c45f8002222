"""Between a run's texts and its token ids: prompts, rows to be scored, label words, and tokens shown to people.

Knows nothing of engines or HTTP. Nothing is cut unseen: what is too long is refused, unless the caller asked for a cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from workflow.data.encoders import INPUT, TOKEN_TYPES, LengthLimits, ScoreEncoder, encode
from workflow.data.scoring import Scoring
from workflow.data.sources import Row
from workflow.data.texts import template_fields
from workflow.errors import ConfigError, ModelError, PromptTooLong, RequestError
from workflow.evaluation.calibration import Calibration
from workflow.inference.batch import predictions
from workflow.inference.requests import ScoreRequest
from workflow.models.classifier import label_tokens
from workflow.server.lengths import least_tokens
from workflow.server.token_texts import TokenBytes


@dataclass(frozen=True)
class ModelTexts:
    """A tokenizer of the texts' own, and how a run's rows are read.

    `own_scoring` says that the run was trained to score, so that requests may only repeat its labels and template.
    `ends_in_eos`: T5, whose labels are words of its vocabulary; else a head with labels of its own.
    """

    tokenizer: Any
    vocab_size: int
    scoring: Scoring = field(default_factory=Scoring)
    own_scoring: bool = False
    calibration: Calibration | None = None
    ends_in_eos: bool = True
    has_types: bool = False
    ends: frozenset[int] = frozenset()
    """Tokens that end an answer, where they are more than the tokenizer's end of sequence."""
    _fewest: Callable[[str], int] = field(init=False, repr=False)
    num_tokens: int = field(init=False)
    """How many tokens can become text; a model's vocabulary may be padded beyond them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_tokens", min(self.vocab_size, len(self.tokenizer)))
        object.__setattr__(self, "_fewest", least_tokens(self.tokenizer))

    @property
    def eos_id(self) -> int | None:
        """The end of sequence."""
        end: int | None = self.tokenizer.eos_token_id
        return end

    @property
    def all_ends(self) -> frozenset[int]:
        """Every token that ends answers."""
        return self.ends if self.eos_id is None else self.ends | {self.eos_id}

    def is_end(self, token: int) -> bool:
        """Whether a token ends answers, and is none of their text."""
        return token in self.all_ends

    def prompts(self, prompts: Sequence[str], *, limit: int, truncate: bool | int) -> list[list[int]]:
        """Ids of each prompt. `truncate` cuts their beginnings, to `limit` or to the number it is. Raises PromptTooLong."""
        if not truncate:
            for number, prompt in enumerate(prompts):
                check_length(self._fewest(prompt), limit, number, len(prompts), at_least="at least ")
        rows = encode(self.tokenizer, list(prompts))
        if truncate:
            return self.cut(rows, limit=limit, truncate=truncate)
        for number, row in enumerate(rows):
            check_length(len(row), limit, number, len(rows))
        return rows

    def cut(self, rows: Sequence[Sequence[int]], *, limit: int, truncate: bool | int) -> list[list[int]]:
        """Each row cut to `limit`, or to the number that `truncate` is."""
        most = limit if truncate is True else max(2, min(limit, truncate))
        limits = LengthLimits(most, most, self.scoring.keep_source)
        return [limits.cut([*row], "prompt") for row in rows]

    def check_ids(self, rows: Sequence[Sequence[int]], *, limit: int) -> None:
        """Refuses ids that are none of this vocabulary, and too many of them."""
        for number, row in enumerate(rows):
            check_length(len(row), limit, number, len(rows))
            if not row or min(row) < 0 or max(row) >= self.vocab_size:
                raise RequestError(
                    f"token ids of this model are 0 to {self.vocab_size - 1}, and at least one", param="prompt"
                )

    def asked(self, labels: Sequence[str] | None, template: str | None) -> Scoring:
        """How rows are read for a request. Raises RequestError for what contradicts the run."""
        changes: dict[str, Any] = {}
        if labels is not None:
            changes |= {"labels": tuple(labels)}
        if template is not None:
            changes |= {"template": _checked(template)}
        if self.own_scoring:
            different = replace(self.scoring, **changes).differences(self.scoring)
            if different:
                raise RequestError(
                    f"this run was trained otherwise: {'; '.join(different)}; leave these fields out",
                    param="labels" if labels is not None and different[0].startswith("labels") else "template",
                )
            return self.scoring
        if labels is not None:
            changes["problem"] = "binary" if len(labels) == 2 else "multiclass"
        return replace(self.scoring, **changes)

    def label_tokens(self, scoring: Scoring) -> tuple[int, ...] | None:
        """The label words' tokens; None where the model has labels of its own. Raises RequestError."""
        if not self.ends_in_eos:
            return None
        try:
            return tuple(label_tokens(self.tokenizer, scoring.labels))
        except ModelError as error:
            raise RequestError(f"{error}; scores need words that are one token each", param="labels") from None

    def rows(self, rows: Sequence[Row], scoring: Scoring, *, limit: int, truncate: bool | int) -> list[ScoreRequest]:
        """The requests of rows. Raises RequestError for rows that the template, or the run's way, cannot read."""
        most = min(limit, scoring.max_length) if self.own_scoring else limit
        if truncate is not True and truncate:
            most = min(most, truncate)
        for number, row in enumerate(rows):
            if problem := scoring.texts.problem_of(row):
                raise RequestError(
                    f"input {number}: {problem}", param="input" if len(rows) == 1 else f"inputs.{number}"
                )
            if not truncate:
                least = max(self._fewest(text or "") for text in scoring.texts.of(row))
                check_length(least, most, number, len(rows), at_least="at least ")
        encoder = ScoreEncoder(
            self.tokenizer,
            scoring.texts,
            most,
            scoring.keep_source,
            ends_in_eos=self.ends_in_eos,
            has_types=self.has_types,
        )
        encoded = encoder.encode(rows)
        if not truncate:
            for number, length in enumerate(encoded[INPUT].full_lengths):
                check_length(length, most, number, len(rows))
        types = encoded[TOKEN_TYPES].ids if TOKEN_TYPES in encoded else [None] * len(rows)
        tokens = self.label_tokens(scoring)
        return [ScoreRequest(ids, kinds, tokens) for ids, kinds in zip(encoded[INPUT].ids, types, strict=True)]

    def beginning(self, text: str, num_tokens: int) -> str:
        """As much of a text as its first tokens hold."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:  # ByT5's
            return text.encode()[:num_tokens].decode(errors="ignore")
        offsets = backend.encode(text, add_special_tokens=False).offsets
        return text if len(offsets) <= num_tokens else text[: offsets[num_tokens - 1][1]]

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """What each token adds to a text."""
        return TokenBytes(self.tokenizer)


def check_length(length: int, limit: int, number: int, count: int, *, at_least: str = "") -> None:
    """Raises PromptTooLong, saying which text has how many tokens."""
    if length > limit:
        which = "the prompt" if count == 1 else f"text {number}"
        raise PromptTooLong(f"{which} has {at_least}{length} tokens, more than {limit}; shorten it")


def vectors(scoring: Scoring, logits: Sequence[Sequence[float]]) -> list[list[float]]:
    """What logits say: a distribution over the labels, a probability for each, or the number."""
    found: list[list[float]] = predictions(scoring.problem, np.asarray(logits, dtype=np.float64)).tolist()
    return found


def _checked(template: str) -> str:
    try:
        template_fields(template)
    except ConfigError as error:
        raise RequestError(str(error).replace("--template", "template"), param="template") from None
    return template
