"""Grid files: lists, scalars, ranges, comments; what is wrong with them is told at once."""

from __future__ import annotations

import json
import re

import pytest

from tests.conftest import ROOT
from workflow.config.cascade import Layer
from workflow.errors import ConfigError
from workflow.sweep.entries import ENTRIES
from workflow.sweep.grid import check_count, combinations, draft, parse_grid, read_grid
from workflow.sweep.points import make_points
from workflow.sweep.search import corners

CLF = ENTRIES["clf"]
CONTRACT = """{"parameters": {"learning_rate": [1e-3, 5e-4], "batch_size": [16, 32], "epochs": 3}, // of two and two
 "languages": {"train": "all", "eval": "all"}}"""


def grid(**raw):
    return parse_grid(raw, CLF, name="grid.json")


def test_numbers_are_one_however_they_are_written(tmp_path):
    (tmp_path / "grid.yaml").write_text(
        "parameters: {lr: [1e-3, 0.001, '1e-3'], batch_size: [16, 16.0], epochs: '3'}\n"
    )
    (tmp_path / "grid.json").write_text('{"parameters": {"lr": ["1e-3", 1E-3], "batch_size": [16], "epochs": 3.0}}')
    for name in ("grid.yaml", "grid.json"):
        found = read_grid(tmp_path / name, CLF)
        assert (found.axes, found.fixed) == ({"lr": [1e-3], "train_batch_size": [16]}, {"num_epochs": 3})


def test_the_file_of_the_contract(tmp_path):
    path = tmp_path / "grid.json"
    path.write_text(CONTRACT)
    read = read_grid(path, CLF)
    assert read.axes == {"lr": [1e-3, 5e-4], "train_batch_size": [16, 32]}
    assert read.fixed == {"num_epochs": 3}
    assert read.languages == {"train": "all", "eval": "all"}
    base = [Layer("base.json", {"model_init_path": "m", "data_name": "d"})]
    points = make_points([draft(read, CLF, base, values, {}) for values in combinations(read)], study="s")
    assert [point.labels["setting"] for point in points] == [
        "lr=0.001,batch_size=16",
        "lr=0.001,batch_size=32",
        "lr=0.0005,batch_size=16",
        "lr=0.0005,batch_size=32",
    ]
    assert points[0].name.startswith("lr-0.001-batch-size-16-")
    assert all(point.settings["num_epochs"] == 3.0 for point in points)


def test_seeds_vary_fastest_and_are_no_part_of_the_setting():
    read = grid(parameters={"seed": [0, 1], "lr": [0.1, 0.2]})
    assert list(combinations(read)) == [{"lr": lr, "seed": seed} for lr in (0.1, 0.2) for seed in (0, 1)]
    made = draft(read, CLF, [], {"lr": 0.1, "seed": 1}, {})
    assert made.labels == {"setting": "lr=0.1"}
    assert made.title == "lr 0.1 seed 1"


def test_equal_values_count_once():
    assert grid(parameters={"lr": [0.1, 1e-1, 0.2]}).num_combinations == 2


def test_problems_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        grid(
            parameters={"learning_rate": [0.1], "lr": 0.2, "warmup_ratio": [], "dropout": {"low": 0.1, "high": 0.3}},
        )
    assert caught.value.problems == (
        'grid.json: "lr" is given twice (lr)',
        'grid.json: "warmup_ratio" is an empty list: no point would be left; give values, or leave it out',
        'grid.json: "dropout" is a range, which needs a search: add "search": {"kind": "tpe"}, or list values',
    )
    with pytest.raises(ConfigError, match=r'unknown key "parameter"; did you mean "parameters"'):
        grid(parameter={})
    with pytest.raises(ConfigError, match=r'"parameters" must be an object, not \[1\]'):
        grid(parameters=[1])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"low": 2, "high": 1}, '"low" must be below "high"'),
        ({"low": 0, "high": 1, "log": True}, '"log" needs a "low" above 0'),
        ({"low": 0, "hihg": 1}, '."hihg"'),
        ({"low": "a", "high": 1}, '."low"'),
    ],
)
def test_ranges_that_are_none(given, told):
    with pytest.raises(ConfigError) as caught:
        grid(parameters={"lr": given}, search={"kind": "tpe"})
    assert told in str(caught.value)


def test_searches():
    read = grid(
        search={"kind": "random", "parameters": {"lr": {"low": 1e-5, "high": 1e-3, "log": True}}},
        parameters={"seed": [0, 1]},
    )
    assert read.swept == ("seed", "lr")
    assert read.ranges["lr"].log
    assert not read.ranges["lr"].whole
    with pytest.raises(ConfigError, match="nothing to choose"):
        grid(search={"kind": "random"}, parameters={"seed": [0, 1]})
    with pytest.raises(ConfigError, match=r'"search"\."kind": Input should be'):
        grid(search={"kind": "grid"}, parameters={"lr": [1, 2]})


def test_counts_are_capped():
    check_count(500, 500, where="grid.json")
    with pytest.raises(ConfigError, match=r"grid.json: 1,000,000,000,000 points, more than --max_points 500"):
        check_count(10**12, 500, where="grid.json")


def test_the_document_s_examples_are_grids():
    text = (ROOT / "docs" / "sweeps.md").read_text()
    found = [
        parse_grid(json.loads(block), CLF, name="docs") for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    ]
    assert [grid.num_combinations for grid in found] == [12, 4]
    assert next(corners(found[1])) == {"train_batch_size": 16, "seed": 0, "lr": 1e-5, "max_steps": 500}


def test_ranges_of_whole_settings_hold_whole_numbers():
    def parsed(**parameters):
        return parse_grid({"search": {"kind": "random", "parameters": parameters}}, CLF, name="grid.json").ranges

    assert all(
        given.whole
        for given in parsed(max_steps={"low": 5e1, "high": 2e2}, head_steps={"low": 1.0, "high": 9}).values()
    )
    assert not parsed(lr={"low": 1.0, "high": 2.0})["lr"].whole
    with pytest.raises(ConfigError, match=r'"max_steps"\."low": 0\.5: expected a whole number'):
        parsed(max_steps={"low": 0.5, "high": 10})
    names = ("swa.every", "max_steps", "freeze.every", "lr", "nonsense", "lr.part")
    assert [CLF.is_whole(name) for name in names] == [True, True, False, False, False, False]
