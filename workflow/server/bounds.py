"""What a request may ask for at most, by the settings; and its sampling fields as the engine's parameters.

Knows nothing of routes. Each bound exists because its absence once let one request take a whole server.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from workflow.config.settings import GREEDY_BELOW
from workflow.errors import PromptTooLong, RequestError
from workflow.inference.sampling import SamplingParams
from workflow.server.schemas import Sampling
from workflow.server.settings import BoundsSection, EngineSection

BIAS_LIMIT = 100.0
UNKNOWN_TO_BEAMS = (
    *(
        "min_new_tokens",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    ),
    *("stop", "logit_bias", "logprobs"),
)


FIELD = re.compile(r"(^|(?<=more than ))[a-z_]+(?=[:,])")
"""Where our sentences name a field of the body."""
TRUNCATE = '"truncate": true'
"""How most bodies ask for a cut."""


@contextmanager
def in_the_body_s_words(names: Mapping[str, str], cut: str) -> Iterator[None]:
    """Errors name fields as the body does, by `names` of ours, and say how it can have too long texts cut, if it can."""
    try:
        yield
    except RequestError as error:
        told = FIELD.sub(lambda found: names.get(found[0], found[0]), str(error))
        error.args = (told, *error.args[1:])
        error.param = names.get(error.param or "", error.param)
        if isinstance(error, PromptTooLong) and cut:
            error.args = (f"{error}, or pass {cut}",)
        raise


def check_count(count: int, most: int, name: str, *, flag: str) -> None:
    """Raises RequestError where more is asked than the server gives."""
    if count > most:
        raise RequestError(f"{name}: {count} is more than this server's {most} (--{flag})", param=name)


def stop_texts(given: str | Sequence[str] | None, bounds: BoundsSection) -> tuple[str, ...]:
    """The stop strings, checked."""
    stops = (given,) if isinstance(given, str) else tuple(given or ())
    check_count(len(stops), bounds.max_stop, "stop", flag="max_stop")
    for text in stops:
        if not text:
            raise RequestError("stop: a stop string must not be empty", param="stop")
        check_count(len(text), bounds.max_stop_chars, "stop", flag="max_stop_chars")
    return stops


def biases(given: Mapping[str, float] | None, bounds: BoundsSection, num_tokens: int) -> tuple[tuple[int, float], ...]:
    """Token biases, checked."""
    check_count(len(given or {}), bounds.max_logit_bias, "logit_bias", flag="max_logit_bias")
    found: dict[int, float] = {}
    for token, bias in (given or {}).items():
        known = token.isascii() and token.isdecimal() and len(token) < 10 and int(token) < num_tokens
        if not known or abs(bias) > BIAS_LIMIT:
            raise RequestError(
                f"logit_bias: token ids are 0 to {num_tokens - 1}, biases lie within {BIAS_LIMIT:g} of 0",
                param="logit_bias",
            )
        found[int(token)] = bias
    return tuple(sorted(found.items()))


def num_new_tokens(asked: int | None, default: int, bounds: BoundsSection) -> int:
    """Tokens to generate at most: what is asked, or the run's own default as far as the server gives it."""
    if asked is None:
        return min(default, bounds.max_new_tokens)
    check_count(asked, bounds.max_new_tokens, "max_new_tokens", flag="max_new_tokens")
    return asked


def check_sampling(body: Sampling, bounds: BoundsSection) -> None:
    """Everything that can be told without the model."""
    check_count(body.n, bounds.max_n, "n", flag="max_n")
    check_count(body.num_beams, bounds.max_beams, "num_beams", flag="max_beams")
    check_count(body.logprobs or 0, bounds.max_logprobs, "logprobs", flag="max_logprobs")
    check_count(body.min_new_tokens, bounds.max_new_tokens, "min_new_tokens", flag="max_new_tokens")
    stop_texts(body.stop, bounds)
    num_new_tokens(body.max_new_tokens, 1, bounds)
    if body.num_beams > 1 and (body.temperature >= GREEDY_BELOW or body.n > 1):
        raise RequestError("num_beams needs greedy decoding (temperature 0) and n = 1", param="num_beams")
    if body.num_beams > 1:
        _check_plain(body)


def _check_plain(body: Sampling) -> None:
    """Refuses what beam search does not know, rather than leave it out unseen."""
    for name in UNKNOWN_TO_BEAMS:
        value = getattr(body, name)
        if value != Sampling.model_fields[name].default and value not in ([], {}):
            raise RequestError(f"{name}: beam search does not know it; leave it out, or num_beams", param=name)


def sampling_params(
    body: Sampling, bounds: BoundsSection, *, default_new_tokens: int, num_tokens: int
) -> SamplingParams:
    """The engine's parameters. Raises RequestError."""
    check_sampling(body, bounds)
    most = num_new_tokens(body.max_new_tokens, default_new_tokens, bounds)
    if body.min_new_tokens > most:
        raise RequestError(
            f"min_new_tokens: {body.min_new_tokens} is more than max_new_tokens, {most}", param="min_new_tokens"
        )
    return SamplingParams(
        max_new_tokens=most,
        min_new_tokens=body.min_new_tokens,
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        min_p=body.min_p,
        typical_p=body.typical_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        n=body.n,
        num_beams=body.num_beams,
        stop=stop_texts(body.stop, bounds),
        logit_bias=biases(body.logit_bias, bounds, num_tokens),
        logprobs=body.logprobs,
    )


def check_room(params: SamplingParams, num_tokens: int, engine: EngineSection) -> None:
    """Refuses samples or beams of a prompt that an engine could never decode side by side."""
    param, what, count = (
        ("num_beams", "beams", params.num_beams) if params.num_beams > 1 else ("n", "samples", params.n)
    )
    check_count(count, engine.max_rows, param, flag="max_rows")
    held = count * (num_tokens + params.max_new_tokens)
    if held > engine.max_cache_tokens:
        raise RequestError(
            f"{param}: {count} {what} of {params.max_new_tokens} tokens behind a prompt of {num_tokens} would hold {held} "
            f"tokens, more than this server's {engine.max_cache_tokens} (--max_cache_tokens)",
            param=param,
        )


def endless(params: SamplingParams, ends: Collection[int]) -> SamplingParams:
    """The same, but never an end of sequence: only a stop string ends an answer before its length."""
    if not params.stop or not ends:
        return replace(params, min_new_tokens=params.max_new_tokens)
    return replace(params, logit_bias=(*params.logit_bias, *((end, -math.inf) for end in sorted(ends))))
