"""No key of anybody's stands in what is published or copied into the image."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

SHAPES = re.compile(
    r"AKIA[0-9A-Z]{16}"  # Amazon
    r"|gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,}"
    r"|hf_[A-Za-z0-9]{30,}"  # Hugging Face
    r"|sk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,}"  # OpenAI, Anthropic
    r"|xox[abprs]-[A-Za-z0-9-]{20,}"  # Slack
    r"|AIza[A-Za-z0-9_-]{35}"  # Google
    r"|eyJ[A-Za-z0-9_-]{20,}\\.eyJ[A-Za-z0-9_-]{20,}"  # JSON web tokens
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


def tracked() -> Iterator[Path]:
    """The repository's files."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no git, or not a clone")
    for name in filter(None, done.stdout.split("\0")):
        if (path := ROOT / name).is_file():
            yield path


def test_no_secret_is_published():
    paths = list(tracked())
    assert len(paths) > 300
    found = {str(path.relative_to(ROOT)) for path in paths if SHAPES.search(path.read_text(errors="replace"))}
    assert not found


@pytest.mark.parametrize(
    "key",
    [
        "AKIA" + "ABCDEFGH12345678",
        "ghp_" + "a1" * 18,
        "hf_" + "aB" * 17,
        "sk-proj-" + "x9" * 24,
        "-----BEGIN RSA " + "PRIVATE KEY-----",
    ],
)
def test_shapes_are_known(key):
    assert SHAPES.search(f'token = "{key}"')
