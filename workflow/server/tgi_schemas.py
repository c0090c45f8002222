"""Bodies and answers of text-generation-inference, which `huggingface_hub.InferenceClient` speaks.

Knows nothing of models. Fields that cannot be honoured are refused by name; their neutral values are accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from workflow.config.settings import GREEDY_BELOW
from workflow.server.schemas import (
    Answer,
    Body,
    Cut,
    GenerateBody,
    Natural,
    Positive,
    Sampling,
    Seed,
    Strings,
    Unsupported,
    only_neutral,
)

UNSUPPORTED = {
    "adapter_id": Unsupported("there are no adapters", ("",)),
    "best_of": Unsupported("ask for n samples of /generate with prompts, and choose among them", (1,)),
    "decoder_input_details": Unsupported("a prompt's tokens have no log-probabilities in an encoder-decoder", (False,)),
    "grammar": Unsupported("answers are not constrained", ({},)),
    "return_full_text": Unsupported("an encoder-decoder's prompt is no part of its answer", (False,)),
    "watermark": Unsupported("answers are not watermarked", (False,)),
}


class TgiParameters(Body):
    """How to decode. Without `do_sample` decoding is greedy, unless temperature, top_k, top_p or typical_p is given, as in TGI."""

    best_of: Any = UNSUPPORTED["best_of"].field()
    details: bool | None = None
    do_sample: bool | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    max_new_tokens: Positive | None = None
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    seed: Seed | None = None
    stop: Strings | None = None
    temperature: float | None = Field(None, gt=0, le=100)
    top_k: Natural | None = None
    top_n_tokens: Natural | None = None
    top_p: float | None = Field(None, gt=0, le=1)
    truncate: Cut | None = Field(
        None, description="cut the prompt's beginning to this many tokens; true: where it must be"
    )
    typical_p: float | None = Field(None, gt=0, le=1)
    adapter_id: Any = UNSUPPORTED["adapter_id"].field()
    decoder_input_details: Any = UNSUPPORTED["decoder_input_details"].field()
    grammar: Any = UNSUPPORTED["grammar"].field()
    return_full_text: Any = UNSUPPORTED["return_full_text"].field()
    watermark: Any = UNSUPPORTED["watermark"].field()

    _neutral = only_neutral(UNSUPPORTED)

    def sampling(self, *, logprobs: bool) -> Sampling:
        """The same in our own fields."""
        typical_p = None if self.typical_p == 1 else self.typical_p
        chosen = any(value is not None for value in (self.temperature, self.top_k, self.top_p, typical_p))
        samples = self.do_sample if self.do_sample is not None else chosen
        temperature = (1.0 if self.temperature is None else max(self.temperature, GREEDY_BELOW)) if samples else 0.0
        given = {
            "max_new_tokens": self.max_new_tokens,
            "temperature": temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "typical_p": self.typical_p,
            "repetition_penalty": self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": self.seed,
            "stop": self.stop,
            "logprobs": (self.top_n_tokens or 0) if logprobs else None,
        }
        return Sampling.model_validate({name: value for name, value in given.items() if value is not None})


class TgiBody(Body):
    """A prompt. `model` is ours: TGI has one model only."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"inputs": "Normalise the date: 3 March", "parameters": {"max_new_tokens": 20}}]
        }
    )

    inputs: str = Field(min_length=1)
    parameters: TgiParameters | None = None
    stream: bool | None = None
    model: str | None = None


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "tgi" if "inputs" in value else "ours"
    return "tgi" if isinstance(value, TgiBody) else "ours"


AnyGenerateBody = Annotated[Annotated[GenerateBody, Tag("ours")] | Annotated[TgiBody, Tag("tgi")], Discriminator(_kind)]


class TgiToken(Answer):
    """A token and its log-probability."""

    id: int
    text: str
    logprob: float
    special: bool


class TgiDetails(Answer):
    """How the answer came about."""

    finish_reason: Literal["eos_token", "stop_sequence", "length"]
    generated_tokens: int
    seed: int | None
    prefill: list[TgiToken]
    tokens: list[TgiToken]
    top_tokens: list[list[TgiToken]] | None = None


class TgiAnswer(Answer):
    """The answer to a prompt."""

    generated_text: str
    details: TgiDetails | None = None


class TgiStreamDetails(Answer):
    """How a streamed answer came about."""

    finish_reason: Literal["eos_token", "stop_sequence", "length"]
    generated_tokens: int
    input_length: int
    seed: int | None


class TgiEvent(Answer):
    """One token of a stream; the last has the whole text."""

    index: int
    token: TgiToken
    top_tokens: list[TgiToken] | None = None
    generated_text: str | None = None
    details: TgiStreamDetails | None = None
