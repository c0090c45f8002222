"""Bodies that were sent compressed, inflated up to a bound."""

from __future__ import annotations

import zlib

ENCODINGS = ("gzip", "deflate")
ANY_HEADER = 32 + zlib.MAX_WBITS
"""zlib tells gzip's header from its own."""


class UnknownEncoding(ValueError):  # noqa: N818
    """A body in a way of compression that the server does not read."""


def inflate(body: bytes, encoding: str, most: int) -> bytes | None:
    """The body, inflated as its `Content-Encoding` says; None where that has more than `most` bytes.

    Raises UnknownEncoding, and ValueError for a body that is not what its header says.
    """
    name = encoding.strip().lower().removeprefix("x-")
    if name in ("", "identity"):
        return body
    if name not in ENCODINGS:
        raise UnknownEncoding(
            f"Content-Encoding {encoding[:50]!a} is not read here; send the body as it is, or with {' or '.join(ENCODINGS)}"
        )
    inflated = bytearray()
    while body:
        part = zlib.decompressobj(ANY_HEADER)
        try:
            inflated += part.decompress(body, most + 1 - len(inflated))
        except zlib.error:
            raise ValueError(f"the body is not {name}, which its Content-Encoding says") from None
        if len(inflated) > most:
            return None
        if not part.eof:
            raise ValueError(f"the body ends before its {name} data does")
        body = part.unused_data  # gzip data may have several members
    return bytes(inflated)
