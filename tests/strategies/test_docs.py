"""The worked example of docs/strategies.md runs, and the page names every strategy."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT
from workflow.config.strategy_settings import StrategiesSection
from workflow.strategies.listing import STRATEGIES, compose

PAGE = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")


def test_the_worked_example():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/strategies.md", "exec"), names)
    with pytest.raises(AssertionError):
        exec(blocks[2].replace("beta=0.5", "beta=0.4"), names)


def test_the_page_names_all():
    assert all(f"`{name}`" in PAGE for name in STRATEGIES)


def test_settings_and_list_agree():
    """In the same order, and each strategy by the name of its setting."""
    fields = [name for name in StrategiesSection.model_fields if name != "strategy"]
    assert sorted(fields) == sorted(STRATEGIES)
    assert all(strategy.name == name for name, strategy in STRATEGIES.items())
    assert compose(StrategiesSection()).strategies == ()
    both = StrategiesSection.model_validate({"ema": {}, "r_drop": {}})
    assert [one.name for one in compose(both).strategies] == ["r_drop", "ema"]
