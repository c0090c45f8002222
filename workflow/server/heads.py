"""Whole POST requests read out of the bytes of a connection, where they are as plain as nearly all are.

Knows nothing of connections or of what is asked. Strict on purpose: what it does not understand to the last byte is left
to the HTTP library (h11), so that the two never read one request differently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

LONGEST = 65_536
"""Bytes of a head and a body that are looked at."""
HEADER = re.compile(rb"([A-Za-z0-9-]+):([ -~\t]*)")
PATH = re.compile(rb"/[!-$&-~]*")
LENGTH = re.compile(rb"\d{1,6}")
UNREAD = {b"transfer-encoding", b"expect", b"upgrade", b"origin", b"content-encoding"}
"""Headers that ask for more than a plain answer to a plain body."""


class Reading(Enum):
    """Why there is no request."""

    NOT_PLAIN = "not plain"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class Plain:
    """A request: header names are in lower case, none stands twice."""

    path: str
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def closes(self) -> bool:
        """Whether the client wants the connection closed after the answer."""
        return self.headers.get(b"connection", b"").lower() == b"close"


def read_plain(data: bytes) -> Plain | Reading:
    """The request that the bytes are, when they are one whole request and nothing more.

    INCOMPLETE: a plain head, whose body is still coming. Heads that are not complete are not plain.
    """
    end = data.find(b"\r\n\r\n", 0, LONGEST)
    if end < 0 or not data.startswith(b"POST /"):
        return Reading.NOT_PLAIN
    line, *lines = data[:end].split(b"\r\n")
    method, _, rest = line.partition(b" ")
    path, _, version = rest.partition(b" ")
    headers = _headers(lines)
    if method != b"POST" or version != b"HTTP/1.1" or headers is None or not PATH.fullmatch(path):
        return Reading.NOT_PLAIN
    length = headers.get(b"content-length", b"")
    if not LENGTH.fullmatch(length) or end + 4 + int(length) > LONGEST:
        return Reading.NOT_PLAIN
    missing = end + 4 + int(length) - len(data)
    if missing < 0:
        return Reading.NOT_PLAIN  # the next request is there already
    return Reading.INCOMPLETE if missing else Plain(path.decode(), headers, data[end + 4 :])


def _headers(lines: list[bytes]) -> dict[bytes, bytes] | None:
    """Names in lower case and values; None where they are not plain."""
    headers: dict[bytes, bytes] = {}
    for line in lines:
        found = HEADER.fullmatch(line)
        if found is None:
            return None
        headers[found[1].lower()] = found[2].strip(b" \t")
    plain = len(headers) == len(lines) and b"host" in headers and UNREAD.isdisjoint(headers)
    return headers if plain and headers.get(b"connection", b"close").lower() in (b"close", b"keep-alive") else None
