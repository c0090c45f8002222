"""Bodies and answers of OpenAI's completions API, as far as an encoder-decoder can mean them.

Knows nothing of models. Fields that cannot be honoured are refused by name; their neutral values are accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from workflow.server.schemas import (
    Answer,
    Body,
    Natural,
    Positive,
    Sampling,
    Seed,
    Strings,
    Text,
    Unsupported,
    Usage,
    only_neutral,
)

Ids = Annotated[list[Natural], Field(min_length=1, fail_fast=True)]
SeveralIds = Annotated[list[Ids], Field(min_length=1, fail_fast=True)]
SeveralTexts = Annotated[list[Text], Field(min_length=1, fail_fast=True)]

CONSTRAINED = Unsupported("answers are not constrained")
TOKENS_AS_IDS = Unsupported("tokens are written as texts", (False,))
UNSUPPORTED = {
    "suffix": Unsupported("this model does not insert text", ("",)),
    "use_beam_search": Unsupported("ask /generate for num_beams", (False,)),
    "length_penalty": Unsupported("ask /generate for num_beams", (1,)),
    "stop_token_ids": Unsupported("use stop, or logit_bias", ([],)),
    "include_stop_str_in_output": Unsupported("a stop string is no part of an answer", (False,)),
    "skip_special_tokens": Unsupported("answers hold the special tokens that the run's data holds", (True,)),
    "spaces_between_special_tokens": Unsupported("special tokens are written as they are", (True,)),
    "add_special_tokens": Unsupported("send token ids", (True,)),
    "allowed_token_ids": Unsupported("use logit_bias", ([],)),
    "bad_words": Unsupported("use logit_bias", ([],)),
    "prompt_logprobs": Unsupported("use echo with logprobs"),
    "prompt_embeds": Unsupported("send texts or token ids"),
    "response_format": Unsupported("answers are not constrained", ({"type": "text"},)),
    "structured_outputs": CONSTRAINED,
    "structural_tag": CONSTRAINED,
    "guided_json": CONSTRAINED,
    "guided_regex": CONSTRAINED,
    "guided_choice": CONSTRAINED,
    "guided_grammar": CONSTRAINED,
    "guided_decoding_backend": CONSTRAINED,
    "guided_whitespace_pattern": CONSTRAINED,
    "logits_processors": Unsupported("there are none", ([],)),
    "priority": Unsupported("requests are answered in their order", (0,)),
    "return_tokens_as_token_ids": TOKENS_AS_IDS,
    "return_token_ids": TOKENS_AS_IDS,
    "kv_transfer_params": Unsupported("a run has one server", ({},)),
    "vllm_xargs": Unsupported("there are none", ({},)),
}


class StreamOptions(Body):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(None, description="every event has the usage so far")
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
    max_tokens: Natural | None = Field(None, description="by default what the run was saved with; 0 only with echo")
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
    echo: bool | None = Field(
        None, description="show the prompt before its answer; with logprobs, those of its tokens too"
    )
    best_of: Positive | None = Field(None, description="must be n")
    top_k: int | None = Field(None, ge=-1, description="sample from this many most likely tokens; 0 and -1 for all")
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    min_tokens: Natural | None = None
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    ignore_eos: bool | None = Field(None, description="generate max_tokens tokens, or up to a stop string")
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, description="cut the beginning of prompts with more tokens than this; -1: than the model takes"
    )
    request_id: str | None = Field(None, description="accepted, without effect: send X-Request-Id")
    cache_salt: str | None = Field(None, description="accepted, without effect")
    suffix: Any = UNSUPPORTED["suffix"].field()
    use_beam_search: Any = UNSUPPORTED["use_beam_search"].field()
    length_penalty: Any = UNSUPPORTED["length_penalty"].field()
    stop_token_ids: Any = UNSUPPORTED["stop_token_ids"].field()
    include_stop_str_in_output: Any = UNSUPPORTED["include_stop_str_in_output"].field()
    skip_special_tokens: Any = UNSUPPORTED["skip_special_tokens"].field()
    spaces_between_special_tokens: Any = UNSUPPORTED["spaces_between_special_tokens"].field()
    add_special_tokens: Any = UNSUPPORTED["add_special_tokens"].field()
    allowed_token_ids: Any = UNSUPPORTED["allowed_token_ids"].field()
    bad_words: Any = UNSUPPORTED["bad_words"].field()
    prompt_logprobs: Any = UNSUPPORTED["prompt_logprobs"].field()
    prompt_embeds: Any = UNSUPPORTED["prompt_embeds"].field()
    response_format: Any = UNSUPPORTED["response_format"].field()
    structured_outputs: Any = UNSUPPORTED["structured_outputs"].field()
    structural_tag: Any = UNSUPPORTED["structural_tag"].field()
    guided_json: Any = UNSUPPORTED["guided_json"].field()
    guided_regex: Any = UNSUPPORTED["guided_regex"].field()
    guided_choice: Any = UNSUPPORTED["guided_choice"].field()
    guided_grammar: Any = UNSUPPORTED["guided_grammar"].field()
    guided_decoding_backend: Any = UNSUPPORTED["guided_decoding_backend"].field()
    guided_whitespace_pattern: Any = UNSUPPORTED["guided_whitespace_pattern"].field()
    logits_processors: Any = UNSUPPORTED["logits_processors"].field()
    priority: Any = UNSUPPORTED["priority"].field()
    return_tokens_as_token_ids: Any = UNSUPPORTED["return_tokens_as_token_ids"].field()
    return_token_ids: Any = UNSUPPORTED["return_token_ids"].field()
    kv_transfer_params: Any = UNSUPPORTED["kv_transfer_params"].field()
    vllm_xargs: Any = UNSUPPORTED["vllm_xargs"].field()

    _neutral = only_neutral(UNSUPPORTED)

    @model_validator(mode="after")
    def _together(self) -> CompletionBody:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not supported: ask for n samples and choose among them")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 needs echo = true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream = true")
        return self

    @property
    def sampling(self) -> Sampling:
        """The same in our own fields."""
        given = {
            "max_new_tokens": 1 if self.max_tokens == 0 else self.max_tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": self.top_p,
            "n": self.n,
            "top_k": max(0, self.top_k or 0),
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "min_new_tokens": self.min_tokens,
            "repetition_penalty": self.repetition_penalty,
            "logprobs": self.logprobs,
            "stop": self.stop,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": self.logit_bias,
            "seed": self.seed,
        }
        return Sampling.model_validate({name: value for name, value in given.items() if value is not None})

    @property
    def truncate(self) -> bool | int:
        """Where prompts are cut, in our own words."""
        return self.truncate_prompt_tokens == -1 or self.truncate_prompt_tokens or False

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
    """Four lists with an entry for each token; null for what is only read of an echoed prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
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
