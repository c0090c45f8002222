"""Who drives a folder of jobs.

Knows nothing of how jobs are run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from workflow.errors import RunExistsError
from workflow.locks import acquire, holder, release


@contextlib.contextmanager
def driving(folder: Path) -> Iterator[None]:
    """Inside the block nobody else drives the jobs of this folder. Raises RunExistsError that names who does."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "driver.lock"
    descriptor = acquire(file)
    if descriptor is None:
        raise RunExistsError(f"{folder}: driven by {holder(file)}; wait for it, or stop it: this command then goes on")
    try:
        yield
    finally:
        release(descriptor)
