"""Where the libraries keep their caches, when the home folder is none that this process can write to.

Must come before they are imported: they look once.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

CACHES = {"XDG_CACHE_HOME": ".", "MPLCONFIGDIR": "matplotlib", "TRITON_HOME": "triton"}
"""Variable -> folder of ours: the first is read by huggingface_hub, datasets, torch and this program."""
HUB = "HF_HOME"


def settle_caches(environment: MutableMapping[str, str] | None = None) -> str | None:
    """Names a temporary folder for caches where those of the home folder cannot be written; gives a note of that.

    What the environment names stays, and so does a hub cache at home that can be read.
    """
    environment = os.environ if environment is None else environment
    home = Path(environment.get("HOME") or os.path.expanduser("~"))  # noqa: PTH111  (raises nothing)
    if _is_writable(home) or all(name in environment for name in CACHES):
        return None
    hub = home / ".cache" / "huggingface"
    if "XDG_CACHE_HOME" not in environment and os.access(hub, os.R_OK | os.X_OK):
        environment.setdefault(HUB, str(hub))
    folder = Path(tempfile.gettempdir()) / f"workflow-caches-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():  # another user's, who could put files there
        folder = Path(tempfile.mkdtemp(prefix="workflow-caches-"))
    for name, place in CACHES.items():
        environment.setdefault(name, str(folder / place))
    return f"{home}: this home folder cannot be written to; caches go to {folder} (XDG_CACHE_HOME and WORKFLOW_CACHE name others)"


def _is_writable(home: Path) -> bool:
    """Whether caches can be made at home: in the folder for them, where there is one."""
    if not os.access(home, os.X_OK):
        return False
    cache = home / ".cache"
    return os.access(cache if cache.exists() else home, os.W_OK | os.X_OK)
