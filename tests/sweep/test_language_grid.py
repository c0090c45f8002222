"""A grid file with languages: each combination on every train set and eval language of a transfer file."""

from __future__ import annotations

import json

import pytest

from tests.sweep.conftest import options
from tests.sweep.test_transfer import MODEL, place  # noqa: F401  (a fixture)
from workflow.config.cascade import Layer
from workflow.errors import ConfigError
from workflow.sweep.entries import ENTRIES
from workflow.sweep.grid import parse_grid
from workflow.sweep.language_grid import check_without_registry, is_transfer, run_language_grid
from workflow.sweep.study import read_study

CLF = ENTRIES["clf"]


def run(place, languages, *, base=(), max_points=100, **parameters):  # noqa: F811
    file = place / "matrix.json"
    file.write_text(
        json.dumps({"registry": "registry.json", "task": "topic", "models": [MODEL], "settings": {"lr": 0.5}})
    )
    assert is_transfer(file)
    grid = parse_grid({"parameters": parameters, "languages": languages}, CLF, name="grid.json")
    how = options(place, place / "study", submit=False)
    return run_language_grid(grid, CLF, [file], base, place / "study", place / "mount", how, max_points=max_points)


def test_every_combination_is_a_matrix(place, capsys):  # noqa: F811
    two = {"train": ["english", "spanish"], "eval": ["english", "spanish"]}
    assert (
        run(place, two, base=[Layer("base.json", {"max_steps": 7})], learning_rate=[1e-3, 5e-4], seed=[0, 1], epochs=3)
        == 0
    )
    points = read_study(place / "study").points
    assert len(points) == 2 * 2 * 3 * 2
    assert "24 points" in capsys.readouterr().out
    assert len({point.run for point in points}) == 12
    assert {(point.labels["setting"], point.settings["lr"]) for point in points} == {
        ("lr=0.001", 1e-3),
        ("lr=0.0005", 5e-4),
    }
    assert {point.labels["train"] for point in points} == {"english+spanish", "english", "spanish"}
    assert all("max_steps" not in point.settings and point.settings["num_epochs"] == 3 for point in points)
    assert len(list((place / "mount" / "data").glob("*.json"))) == 3


def test_one_language_needs_no_list(place):  # noqa: F811
    assert run(place, {"train": "english", "eval": "spanish"}, lr=[1e-3]) == 0
    (found,) = read_study(place / "study").points
    assert (found.labels["train"], found.labels["eval"]) == ("english", "spanish")


def test_what_is_refused(place):  # noqa: F811
    with pytest.raises(ConfigError, match=r"24 points, more than --max_points 20"):
        run(place, {"train": "all", "eval": "all"}, max_points=20, lr=[1e-3, 5e-4])
    with pytest.raises(ConfigError) as caught:
        run(place, {"train": ["english"], "eval": ["english"]}, lr=[-1, -2])
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match=r'"languages"\.trian'):
        run(place, {"trian": "all"}, lr=[1])
    assert not (place / "study").exists()


def test_without_a_registry(capsys):
    check_without_registry(parse_grid({"languages": {"train": "all", "eval": "all"}}, CLF, name="grid.json"))
    assert "the data is --data_name alone" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="pass a transfer file"):
        check_without_registry(parse_grid({"languages": {"train": ["english"]}}, CLF, name="grid.json"))
