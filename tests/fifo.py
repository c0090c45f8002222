"""A FIFO with a reader."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path


class Fifo:
    """A FIFO that a thread reads to its end."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._contents: list[bytes] = []
        self._reader = threading.Thread(target=lambda: self._contents.append(path.read_bytes()), daemon=True)
        self._reader.start()

    def content(self) -> bytes:
        """What was written, by a FIFO that is still one."""
        assert stat.S_ISFIFO(self.path.lstat().st_mode)
        self._reader.join(timeout=60)
        return self._contents[0]

    def text(self) -> str:
        """The same as a text."""
        return self.content().decode()
