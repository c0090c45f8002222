"""Bodies and answers of OpenAI's completions API, as far as an encoder-decoder can mean them.

Knows nothing of models. Fields that cannot be honoured are refused by name; their neutral values are accepted.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from workflow.server.schemas import Answer, Body, Natural, Positive, Sampling, Seed, Strings, Text, Usage

Ids = Annotated[list[Natural], Field(min_length=1, fail_fast=True)]
SeveralIds = Annotated[list[Ids], Field(min_length=1, fail_fast=True)]
SeveralTexts = Annotated[list[Text], Field(min_length=1, fail_fast=True)]

UNSUPPORTED = {
    "echo": "an encoder-decoder's prompt is no part of its answer",
    "suffix": "this model does not insert text",
    "best_of": "ask for n samples and choose among them",
}


class StreamOptions(Body):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="accepted, without effect")


class CompletionBody(Body):
    """A request for completions. Unlike in our own routes, the temperature is 1 unless it is given, as at OpenAI."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "quickstart",
                    "prompt": "Normalise the date: the 3rd of March 2021",
                    "max_tokens": 32,
                    "temperature": 0,
                }
            ]
        }
    )

    model: str
    prompt: Text | SeveralTexts | Ids | SeveralIds
    max_tokens: Positive | None = Field(None, description="by default what the run was saved with")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: Positive | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Natural | None = None
    stop: str | Strings | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    seed: Seed | None = None
    user: str | None = Field(None, description="accepted, without effect")
    echo: bool | None = Field(None, description="must be false")
    suffix: str | None = Field(None, description="must be null")
    best_of: Positive | None = Field(None, description="must be n")

    @field_validator("echo", "suffix")
    @classmethod
    def _neutral(cls, value: object, info: object) -> object:
        if value:
            name = str(getattr(info, "field_name", ""))
            raise ValueError(f"not supported: {UNSUPPORTED[name]}")
        return value

    @model_validator(mode="after")
    def _together(self) -> CompletionBody:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(f"best_of is not supported: {UNSUPPORTED['best_of']}")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream = true")
        return self

    @property
    def sampling(self) -> Sampling:
        """The same in our own fields."""
        given = {
            "max_new_tokens": self.max_tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": self.top_p,
            "n": self.n,
            "logprobs": self.logprobs,
            "stop": self.stop,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": self.logit_bias,
            "seed": self.seed,
        }
        return Sampling.model_validate({name: value for name, value in given.items() if value is not None})

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, however they were written."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        texts = [prompt for prompt in self.prompt if isinstance(prompt, str)]
        return texts or [[*ids] for ids in self.prompt if isinstance(ids, list)]


class CompletionLogprobs(Answer):
    """Four lists with an entry for each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Answer):
    """One sample, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None


class Completion(Answer):
    """The answer, or one event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None


class ModelCard(Answer):
    """A run in OpenAI's list of models."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "workflow"


class ModelList(Answer):
    """All runs."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
