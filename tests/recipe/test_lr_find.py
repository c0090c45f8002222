"""What `workflow lr-find` refuses before it loads anything."""

from __future__ import annotations

import pytest

from workflow.errors import ConfigError


def test_results_must_have_a_place_before_the_test(command, mount, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file/out"
    with pytest.raises(ConfigError, match=r"--out .*/file/out: .* is no folder; name a folder"):
        command("lr-find", "--mount", mount, "--model_init_path", "no-such-model", "--data", "toy", "--out", out)
