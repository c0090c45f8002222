"""JSON as the standard has it: no NaN, no Infinity, no number beyond a double, no duplicate keys, no half characters.

Knows nothing of what the values mean.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from workflow.errors import doubled

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
MAX_DIGITS = 400


def parse(raw: bytes) -> Any:
    """The value. Raises ValueError with a sentence about what is wrong."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("the body is not UTF-8") from None
    try:
        value = _DECODER.decode(text)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("a text holds half a surrogate pair, which is no character") from None
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond the numbers of a double")
    return value


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("an integer has too many digits")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if (key := doubled(key for key, _ in pairs) if len(value) < len(pairs) else None) is not None:
        raise ValueError(f"the key {json.dumps(key[:100])} stands twice in an object")
    return value


_DECODER = json.JSONDecoder(parse_constant=_constant, parse_float=_float, parse_int=_int, object_pairs_hook=_object)
