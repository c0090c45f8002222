"""Where a server is and how to be patient with it: address, key, timeouts, and what is tried again how often.

Knows nothing of routes. Decides by numbers alone; the clients do the waiting. Keys are in no message and no repr.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypedDict

import httpx

from workflow import __version__
from workflow.client.failures import NoAnswer, ServiceError, error_of
from workflow.errors import ConfigError

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "WORKFLOW_API_KEY"
BUSY = (429, 503)
FIRST_WAIT_S = 0.5
"""Where a server does not say how long to wait; twice as long each time."""
JITTER = 0.25
"""Clients that were refused together should not come back together."""


class Options(TypedDict, total=False):
    """How a client is made."""

    api_key: str | None
    """By default what WORKFLOW_API_KEY holds."""
    timeout_s: float
    """For an answer, and between two pieces of a stream; by default a little more than the server's own deadline."""
    connect_timeout_s: float
    max_retries: int
    max_wait_s: float
    """Seconds in all, tries and waits together, after which nothing is tried again."""


@dataclass(frozen=True)
class Settings:
    """What a client was made with."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 150.0
    connect_timeout_s: float = 10.0
    max_retries: int = 5
    max_wait_s: float = 60.0

    @property
    def timeout(self) -> httpx.Timeout:
        """As httpx wants it; reading is limited from one piece to the next."""
        return httpx.Timeout(self.timeout_s, connect=self.connect_timeout_s)

    def headers(self) -> dict[str, str]:
        """What every request carries. Raises ConfigError for a key that no header can hold."""
        headers = {"User-Agent": f"workflow/{__version__}"}
        key = (os.environ.get(KEY_VARIABLE, "") if self.api_key is None else self.api_key).strip()
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError(f"api_key or {KEY_VARIABLE}: a key is one word of ASCII characters")
        return {**headers, "Authorization": f"Bearer {key}"} if key else headers


class Patience:
    """One call's patience: so many more tries, so many seconds in all."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started = time.monotonic()
        self._tries = 0

    def wait_s(self, status: int, headers: Mapping[str, str]) -> float | None:
        """Seconds until the next try; None where there is to be none."""
        if status not in BUSY or self._tries >= self._settings.max_retries:
            return None
        said = retry_after_s(headers)
        wait = FIRST_WAIT_S * 2**self._tries if said is None else said
        wait *= 1 + JITTER * random.random()
        self._tries += 1
        spent = time.monotonic() - self._started
        return wait if spent + wait <= self._settings.max_wait_s else None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` says, as seconds or as a date; None where it says nothing that can be understood."""
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            when = parsedate_to_datetime(text)
        except ValueError:
            return None
        when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def failure(response: httpx.Response) -> ServiceError:
    """The error in a response that has been read."""
    return error_of(
        response.status_code,
        response.content,
        request_id=response.headers.get("x-request-id"),
        retry_after_s=retry_after_s(response.headers),
    )


@contextmanager
def told() -> Iterator[None]:
    """httpx's errors as ours, without what they hold of the request."""
    try:
        yield
    except httpx.TimeoutException:
        raise NoAnswer("the server did not answer in time") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NoAnswer(f"no answer: {error or type(error).__name__}") from None
