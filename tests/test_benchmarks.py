"""Benchmarks still start: what they import is there, and their flags are told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py") if "argparse" in path.read_text())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / script), "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
