"""Memory of a process that is no file's page: what it made, and pages of files that it wrote into (Linux)."""

from __future__ import annotations

import re
import threading
from pathlib import Path


def own_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


class Peak:
    """The most that the process holds from now on, beyond what it holds now."""

    def __init__(self) -> None:
        self.before = self.most = own_bytes()
        self.done = threading.Event()
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()

    def _watch(self) -> None:
        while not self.done.wait(0.002):
            self.most = max(self.most, own_bytes())

    def stop(self) -> int:
        """Bytes."""
        self.done.set()
        self.watcher.join()
        return max(self.most, own_bytes()) - self.before
