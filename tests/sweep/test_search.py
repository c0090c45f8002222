"""Searches: every trial a new point, shared by processes, pruned through evaluations, continued after any end."""

from __future__ import annotations

import json
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.sweep.conftest import command, finished, starts, write
from tests.sweep.test_sweep import run, sweep
from workflow.errors import ConfigError
from workflow.sweep.grid import Range, Search
from workflow.sweep.search import Bounds, evaluations
from workflow.sweep.study import read_study
from workflow.sweep.trials import Trials

LR = {"low": 1e-5, "high": 1e-1, "log": True}


def open_files() -> set[str]:
    """Names of the files that this process has open."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(link.readlink().name)
    return found


def trials(place, kind="tpe", *, ranges=None, choices=None, **more):
    return Trials(
        Search(kind=kind, **more),
        name=read_study(place).extra["trials"] if (place / "study.json").is_file() else "study",
        higher=True,
        ranges={"lr": Range(**LR)} if ranges is None else ranges,
        choices=choices or {},
        journal=place / "search.journal",
    )


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_draws_are_of_the_seed_and_the_trials_alone(place, kind):
    first, second = trials(place, kind), trials(place, kind)
    for index in range(12):
        values = next(first.draw())
        assert values == next(second.draw())
        assert 1e-5 <= values["lr"] <= 1e-1
        first.add(values, [f"point-{index}"])
        first.tell(index, index / 10)
    assert len({trial.points for trial in second.all()}) == 12
    assert [trial.value for trial in second.all()][:3] == [0.0, 0.1, 0.2]


def test_choices_and_whole_numbers(place):
    found = trials(
        place,
        "random",
        ranges={"max_steps": Range(low=10, high=30, step=10), "dropout": Range(low=0.0, high=0.2, step=0.1)},
        choices={"labels": [["no", "yes"], ["bad", "good"]], "r_drop.alpha": [0.5, 1]},
    )
    values = [next(found.draw())]
    for index in range(20):
        found.add(values[-1], [f"p{index}"])
        found.tell(index, 0.0)
        values.append(next(found.draw()))
    assert {one["max_steps"] for one in values} == {10, 20, 30}
    assert {one["dropout"] for one in values} <= {0.0, 0.1, 0.2}
    assert {tuple(one["labels"]) for one in values} == {("no", "yes"), ("bad", "good")}


def test_a_journal_that_was_cut_is_mended(place):
    first = trials(place)
    first.add({"lr": 0.01}, ["a"])
    with (place / "search.journal").open("a") as file:
        file.write('{"op_code": 4, "wor')
    second = trials(place)
    second.add({"lr": 0.02}, ["b"])
    assert [trial.points for trial in trials(place).all()] == [("a",), ("b",)]


def test_a_database_may_hold_the_trials(place):
    url = f"sqlite:///{place / 'search.db'}"
    given = {"name": "study", "higher": True, "ranges": {"lr": Range(**LR)}, "choices": {}, "journal": place / "none"}
    with closing(Trials(Search(kind="tpe"), storage=url, **given)) as first:
        first.add({"lr": 0.01}, ["a"])
        first.tell(0, 0.5)
    with closing(Trials(Search(kind="tpe"), storage=url, **given)) as second:
        assert [(trial.points, trial.value) for trial in second.all()] == [(("a",), 0.5)]
        assert "search.db" in open_files()
    assert "search.db" not in open_files()
    assert not (place / "none").exists()
    with pytest.raises(ConfigError, match="cannot be used"):
        Trials(Search(kind="tpe"), storage="nonsense", **given)


def test_halving_leaves_the_worse_behind(place):
    found = trials(place, "halving")
    for index in range(9):
        found.add({"lr": 0.001 * (index + 1)}, [f"p{index}"])
    assert not found.report(0, [0.9])
    assert not found.report(1, [0.95])
    assert all(found.report(index, [0.1]) for index in range(3, 9))
    found.prune(3)
    assert found.all()[3].state == "PRUNED"
    found.tell(3, 1.0)
    assert found.all()[3].state == "PRUNED"


def test_halving_compares_like_evaluations_however_seldom_it_is_asked(place):
    found = trials(place, "halving", reduction_factor=2)
    for index in range(3):
        found.add({"lr": 0.001 * (index + 1)}, [f"p{index}"])
    assert not found.report(0, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert not found.report(1, [0.15, 0.3])
    assert found.report(2, [0.12, 0.9])


def test_evaluations_are_read_while_they_are_written(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert evaluations(file, "accuracy") == []
    lines = [
        {"step": 0, "accuracy": 0.1},
        {"step": 5, "loss": 1.0},
        {"step": 5, "accuracy": 0.5},
        {"step": 9, "accuracy": None},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 10, "accu')
    assert evaluations(file, "accuracy") == [0.5]


def test_bounds(place):
    grid = sweep(place, search={"kind": "tpe", "parameters": {"lr": LR}, "n_trials": 7}).grid
    assert Bounds.of(grid, None, None) == Bounds(7, None)
    assert Bounds.of(grid, 3, None).allow(2)
    assert not Bounds.of(grid, 3, None).allow(3)
    assert not Bounds.of(grid, None, 1e-9).allow(0)


def test_everything_is_checked_before_a_search(place):
    with pytest.raises(ConfigError) as caught:
        run(
            sweep(
                place, search={"kind": "tpe", "parameters": {"lr": {"low": -1, "high": 1}, "batch_size": [8, "many"]}}
            ),
            place,
        )
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="are of searches"):
        run(sweep(place, parameters={"lr": [1, 2]}), place, n_trials=3)


@pytest.mark.slow
def test_a_search_stops_where_nothing_is_new(place, capsys):
    planned = sweep(place, search={"kind": "tpe", "parameters": {"batch_size": [8, 16], "lr": [1e-3, 1e-2]}})
    assert run(planned, place, n_trials=50) == 0
    assert len(starts(place)) == len(set(starts(place))) == 4
    assert json.loads((place / "study" / "best.json").read_text())["train_batch_size"] == 8


@pytest.mark.slow
def test_seeds_of_a_trial_are_one_value(place):
    planned = sweep(place, search={"kind": "random", "parameters": {"lr": LR}}, parameters={"seed": [0, 1]})
    assert run(planned, place, n_trials=2) == 0
    points = read_study(place / "study").points
    assert len(points) == 4
    assert sorted(point.labels["seed"] for point in points) == [0, 0, 1, 1]
    found = trials(place / "study", "random").all()
    assert [len(trial.points) for trial in found] == [2, 2]
    assert all(trial.state == "COMPLETE" for trial in found)


@pytest.mark.slow
def test_searches_of_one_name_share_a_database_and_no_trials(place):
    url = f"sqlite:///{place / 'search.db'}"
    for folder, values in (("a/first", [1e-3, 1e-2]), ("b/first", [1e-4, 1e-5])):
        planned = sweep(place, folder=folder, search={"kind": "random", "parameters": {"lr": values}})
        for _ in range(2):
            assert run(planned, place, n_trials=2, storage=url) == 0
            assert "search.db" not in open_files()
        assert {point.settings["lr"] for point in read_study(place / folder).points} == set(values)
    assert len(starts(place)) == 4


@pytest.mark.slow
def test_two_processes_and_a_killed_one_share_a_search(place):
    write(place / "grid.json", {"search": {"kind": "tpe", "parameters": {"lr": LR, "batch_size": [8, 16, 32]}}})
    arguments = (
        "sweep",
        "grid.json",
        "--entry",
        "clf",
        "--config",
        "base.json",
        "--out",
        "study",
        "--submit",
        "--n_trials",
        "8",
    )
    killed = command(*arguments, seconds=1)
    while killed.poll() is None and not starts(place):
        time.sleep(0.05)
    killed.kill()
    finished(killed)
    texts = [finished(process) for process in [command(*arguments, seconds=0.2), command(*arguments, seconds=0.2)]]
    names = {point.name for point in read_study(place / "study").points}
    assert len(names) == 8
    assert all("8 of 8 runs are finished" in text for text in texts), texts
    again = [name for name in starts(place) if starts(place).count(name) > 1]
    assert set(again) <= {starts(place)[0]}
    tried = trials(place / "study", choices={"train_batch_size": [8, 16, 32]}).all()
    assert sorted(name for trial in tried for name in trial.points) == sorted(names)


@pytest.mark.slow
def test_pruned_runs_are_stopped_and_said_to_be(place, monkeypatch):
    monkeypatch.setenv("FAKE_LINGERS_BELOW", "0.65")
    planned = sweep(
        place,
        search={"kind": "halving", "parameters": {"lr": [1e-3, 1e-1, 0.9, 1e-7]}, "reduction_factor": 2},
        base={"max_steps": 9},
    )
    assert run(planned, place, n_trials=4, at_once=1) == 0
    records = {path.parent.name: json.loads(path.read_text()) for path in place.glob("study/points/*/job.json")}
    ended = [(name.removeprefix("study-lr-"), records[name.removeprefix("study-")]["status"]) for name in starts(place)]
    assert ended == [
        ("0.1-79bea4", "done"),
        ("0.001-532c12", "done"),
        ("0.9-b83d51", "pruned"),
        ("1e-07-db0a9d", "pruned"),
    ]
    assert json.loads((place / "study" / "best.json").read_text())["lr"] == 1e-3
