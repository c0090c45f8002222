"""Bodies and answers of our own routes: unknown fields are refused, wrong types are not turned into right ones.

Knows nothing of models, nor of the bounds that are settings (`bounds`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

SEED_LIMIT = 2**63 - 1

Probability = Annotated[float, Field(ge=0, le=1)]


def _whole(value: object) -> object:
    """To JSON, 2.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# The bound stands before the validator, else the OpenAPI document would lose it.
Natural = Annotated[int, Field(ge=0), BeforeValidator(_whole)]
Positive = Annotated[int, Field(ge=1), BeforeValidator(_whole)]
Seed = Annotated[int, Field(ge=0, le=SEED_LIMIT), BeforeValidator(_whole)]

# Lists stop at their first error: a million wrong items must not make a million errors.
Strings = Annotated[list[str], Field(fail_fast=True)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(fail_fast=True)]


Cut = bool | Positive


class Body(BaseModel):
    """Base of all bodies."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Unsupported:
    """A field of other servers' bodies: its `neutral` values are accepted, and others refused with a reason."""

    reason: str
    neutral: tuple[Any, ...] = ()

    def field(self) -> Any:
        """The field's declaration."""
        allowed = [None, *self.neutral]
        shown = " or ".join(json.dumps(value) for value in allowed)
        return Field(None, description=f"must be {shown}", json_schema_extra={"enum": allowed})

    def check(self, value: object) -> object:
        """The value. Raises ValueError."""
        if value is not None and all(value != known or _is_truth(value) != _is_truth(known) for known in self.neutral):
            raise ValueError(f"not supported: {self.reason}")
        return value


def _is_truth(value: object) -> bool:
    return isinstance(value, bool)


def only_neutral(table: Mapping[str, Unsupported]) -> Any:
    """A validator for the fields of a table."""

    def check(_: object, value: object, info: ValidationInfo) -> object:
        return table[str(info.field_name)].check(value)

    return field_validator(*table)(classmethod(check))


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Answer):
    """What went wrong: a sentence, the kind of error, the field at fault, and a code for programs."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(Answer):
    """The one shape of all errors."""

    error: ErrorDetail


class Usage(Answer):
    """Tokens read and generated, ends of sequences included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Sampling(Body):
    """How to decode."""

    max_new_tokens: Positive | None = Field(None, description="by default what the run was saved with")
    min_new_tokens: Natural = 0
    temperature: float = Field(0.0, ge=0, le=100, description="below 0.01 decoding is greedy")
    top_k: Natural = Field(0, description="sample from this many most likely tokens; 0 for all")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the smallest set of tokens with this probability")
    min_p: float = Field(0.0, ge=0, le=1, description="sample from tokens this likely, relative to the likeliest")
    typical_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="sample from the tokens with this probability that surprise as expected (locally typical)",
    )
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    n: Positive = Field(1, description="samples of each prompt")
    num_beams: Positive = Field(1, description="beam search: greedy, n = 1, with no other field but max_new_tokens")
    seed: Seed | None = Field(None, description="by default another one each time")
    stop: str | Strings | None = Field(None, description="texts that end an answer; they are not part of it")
    logit_bias: dict[str, float] | None = Field(None, description="token id -> what is added to its logit")
    logprobs: Natural | None = Field(None, description="log-probabilities of the tokens, and of this many others")


class GenerateBody(Sampling):
    """One prompt, or several, and how to decode."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "quickstart", "prompt": "Normalise the date: the 3rd of March 2021"},
                {"model": "quickstart", "prompts": ["one", "two"], "temperature": 0.7, "n": 2, "seed": 1},
            ]
        }
    )

    model: str | None = Field(None, description="a run's name; may be left out where the server has a default")
    prompt: str | None = Field(None, min_length=1)
    prompts: Texts | None = Field(None, min_length=1)
    truncate: Cut = Field(
        False,
        description="cut the beginning of too long prompts instead of refusing them; or of those above this number of tokens",
    )

    @model_validator(mode="after")
    def _one_of(self) -> GenerateBody:
        _exactly_one(self, "prompt", "prompts")
        return self


class ShownToken(Answer):
    """A token and its log-probability (log-softmax of the raw logits)."""

    id: int
    token: str
    logprob: float


class TokenLogprobs(ShownToken):
    """A generated token, and the most likely ones at its place."""

    top: list[ShownToken]


class Generation(Answer):
    """One answer. `finish_reason` is "stop" (end of sequence, or a stop string) or "length"."""

    index: int
    text: str
    finish_reason: str
    num_tokens: int
    logprobs: list[TokenLogprobs] | None = None


class GenerateAnswer(Answer):
    """The samples of one prompt."""

    model: str
    generations: list[Generation]
    usage: Usage


class GenerateAnswers(Answer):
    """The samples of each of several prompts, in their order."""

    model: str
    results: list[GenerateAnswer]
    usage: Usage


Input = Text | dict[str, str | int | float]


class ScoreBody(Body):
    """One input, or several: a text, or an object with the keys that the run's data has."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "stsb", "input": {"sentence1": "A man sleeps.", "sentence2": "A man is asleep."}},
                {
                    "model": "quickstart",
                    "inputs": ["It rains.", "It pours."],
                    "labels": ["no", "yes"],
                    "template": "Wet? {input}",
                },
            ]
        }
    )

    model: str | None = Field(None, description="a run's name; may be left out where the server has a default")
    input: Input | None = None
    inputs: Annotated[list[Input], Field(fail_fast=True)] | None = Field(None, min_length=1)
    labels: Texts | None = Field(
        None, min_length=2, description="label words, for runs of seq2seq.py; by default no, yes"
    )
    template: str | None = Field(None, min_length=1, description="wraps each input, with {field} for its keys")
    truncate: Cut = Field(
        False,
        description="cut too long inputs as in training instead of refusing them; or those above this number of tokens",
    )

    @model_validator(mode="after")
    def _one_of(self) -> ScoreBody:
        _exactly_one(self, "input", "inputs")
        return self


Score = float | list[float]


class ScoreAnswer(Answer):
    """`score` is p(second label) where there are two, else a number a label (or the number that a regression gives).

    `calibrated` is null for runs without a calibration; `prediction` is what prediction files hold.
    """

    model: str
    score: Score
    calibrated: Score | None
    logits: list[float]
    labels: list[str]
    probabilities: list[float] | None
    prediction: Score
    usage: Usage


class ScoreAnswers(Answer):
    """The scores of several inputs, in their order."""

    model: str
    results: list[ScoreAnswer]
    usage: Usage


class ModelRow(Answer):
    """A run in the table of /info; null for what is known only once it is loaded."""

    name: str
    state: Literal["available", "loading", "loaded"]
    checkpoint: str
    task: Literal["generate", "score"]
    can_generate: bool | None = None
    can_score: bool | None = None
    problem: str | None = None
    labels: list[str] | None = None
    template: str | None = None
    calibrated: bool | None = None
    max_prompt_tokens: int | None = None
    default_new_tokens: int | None = None
    memory_bytes: int | None = None
    device: str | None = None
    precision: str | None = None
    requests: int = 0


class InfoAnswer(Answer):
    """The server and its runs."""

    version: str
    models: list[ModelRow]
    default_model: str | None
    bounds: dict[str, Any]


class StateAnswer(Answer):
    """Whether the server lives, or is ready."""

    status: str


def _exactly_one(body: Body, *names: str) -> None:
    if sum(getattr(body, name) is not None for name in names) != 1:
        raise ValueError(f"pass exactly one of {' and '.join(names)}")
