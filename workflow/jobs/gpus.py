"""Which GPUs this machine has, without loading anything that would start to use them.

Knows nothing of who gets which.
"""

from __future__ import annotations

import os
import shutil
import subprocess


def gpus_here() -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` may name: what it names already, else every GPU that nvidia-smi lists; none without a driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in done.stdout.splitlines()))]
