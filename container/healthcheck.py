"""Whether the server of this container lives, by its /health; a container that runs something else is healthy.

Knows nothing of the product but that route; the port is the one on which the server's process listens, however it was told.
Exit code 0 or 1, as `HEALTHCHECK` asks for.
"""

from __future__ import annotations

import ipaddress
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

LISTENS = "0A"
"""The state of a listening socket in /proc/PID/net/tcp."""
TIMEOUT_S = 5.0


def check(processes: Iterable[Path]) -> int:
    """0 where nothing is served here, or the server says that it lives."""
    serving = [process for process in processes if is_server(words_of(process))]
    if not serving:
        return 0
    return 0 if any(lives(place) for place in places_of(serving[0])) else 1


def lives(place: str) -> bool:
    """Whether the server at HOST:PORT answers; that it asks for a key is an answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy leads to this machine
    try:
        with opener.open(f"http://{place}/health", timeout=TIMEOUT_S):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (urllib.error.URLError, OSError):
        return False


def words_of(process: Path) -> list[str]:
    """A process' command line; nothing where it has gone."""
    try:
        return (process / "cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def is_server(words: list[str]) -> bool:
    """`workflow serve ...` or `python3 -m workflow serve ...`, and not the tini or shell around it."""
    return any(Path(first).name == "workflow" and second == "serve" for first, second in pairwise(words)) and Path(
        words[0]
    ).name.startswith("python")


def places_of(process: Path) -> list[str]:
    """HOST:PORT of each socket on which a process listens."""
    found = []
    try:
        own = {str(file.readlink()) for file in (process / "fd").iterdir()}
        for table in ("tcp", "tcp6"):
            for line in (process / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENS and f"socket:[{fields[9]}]" in own:
                    found.append(place_of(fields[1]))
    except OSError:  # it has gone, or the system has no such table
        pass
    return found


def place_of(address: str) -> str:
    """HOST:PORT of the kernel's text: an address in words of four bytes, each in this machine's order, and a port, in hex."""
    host, _, port = address.partition(":")
    words = [bytes.fromhex(host[start : start + 8]) for start in range(0, len(host), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    ip = ipaddress.ip_address(packed)
    if ip.is_unspecified:  # all addresses of this machine
        ip = ipaddress.ip_address("127.0.0.1" if ip.version == 4 else "::1")
    return f"[{ip}]:{int(port, 16)}" if ip.version == 6 else f"{ip}:{int(port, 16)}"


if __name__ == "__main__":
    sys.exit(check(Path("/proc").glob("[0-9]*")))
