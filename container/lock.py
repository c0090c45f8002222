"""Writes requirements/*.txt: the versions of constraints.txt with the hashes of the public registry's files, in three parts.

Knows nothing of images. Run by `make requirements`, with pip-tools installed; takes some minutes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST_LINE = "# Written by `make requirements`; constraints.txt holds the versions to change.\n"
TITLES = {
    "build": "# What makes wheels of the source archives among the others.\n",
    "cuda": "# torch's standard build and what it brings along for NVIDIA GPUs. A CPU build of torch is another file, so it has no hash here.\n",
    "image": "# All that the image installs but torch, with the hashes of the public registry's files.\n",
}


def main() -> None:
    """Resolves, divides, writes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "all.txt"
        options = ["--quiet", "--generate-hashes", "--allow-unsafe", "--no-annotate", "--strip-extras"]
        silent = ["--no-emit-index-url", "--no-emit-options", "--pip-args", "--only-binary=torch"]
        source = [
            "--constraint",
            str(ROOT / "constraints.txt"),
            str(ROOT / "pyproject.toml"),
            "--output-file",
            str(out),
        ]
        subprocess.run([sys.executable, "-m", "piptools", "compile", *options, *silent, *source], check=True)
        blocks = re.findall(r"^([a-z][^\n]*(?:\n    [^\n]*)*)", out.read_text(), re.MULTILINE)
    for name, title in TITLES.items():
        chosen = [block for block in blocks if part_of(block) == name]
        (ROOT / "requirements" / f"{name}.txt").write_text(FIRST_LINE + title + "\n".join(chosen) + "\n")


def part_of(block: str) -> str:
    """Which file a requirement belongs to."""
    name = block.partition("==")[0]
    if name in ("setuptools", "wheel"):
        return "build"
    return "cuda" if name in ("torch", "triton") or name.startswith(("nvidia-", "cuda-")) else "image"


if __name__ == "__main__":
    main()
