"""Points: valid by the program's own settings, named by content, each content once."""

from __future__ import annotations

import re

import pytest

from tests.sweep.conftest import write
from workflow.config.cascade import Layer
from workflow.config.clf_settings import ClfSettings
from workflow.config.flags import parse
from workflow.errors import ConfigError
from workflow.sweep.entries import ENTRIES, flags_of, nested
from workflow.sweep.points import Draft, Point, make_points, value_text

BASE = {"model_init_path": "m", "data_name": "d"}


def draft(values, *, title="t", entry="clf", **more):
    return Draft(entry, (Layer("base.json", BASE), Layer("grid.json", values)), {}, title, **more)


def names(*all_values, **more):
    return [point.name for point in make_points([draft(values, **more) for values in all_values], study="s")]


def test_a_point_holds_everything_that_is_given():
    (point,) = make_points([draft({"learning_rate": "1e-3", "batch_size": 16})], study="s")
    assert point.settings == {**BASE, "lr": 0.001, "train_batch_size": 16}
    assert point.labels == {"task": "d", "model": "m", "setting": "", "seed": 0}
    assert point.run == f"s-{point.name}"
    assert point.metrics == ("eval_loss",)
    assert Point.from_json(point.as_json()) == point


def test_names_are_of_content():
    same = names({"lr": 0.001}, {"learning_rate": "1e-3"}, {"optim": {"lr": 0.001}}, {"lr": 0.001, "max_length": 1024})
    assert len(same) == 1
    assert len(names({"lr": 0.001}, {"lr": 0.002}, {"lr": 0.001, "seed": 1})) == 3


def test_names_of_studies_from_before_stay():
    """These were found to change no number when there were studies already, whose names count them."""
    assert len(names({}, {"save_steps": 7}, {"scores_only": True})) == 3


def test_points_of_studies_from_before_hold_no_silenced_settings():
    (point,) = make_points([draft({"max_steps": 10})], study="s")
    record = point.as_json()
    record["settings"] |= {"num_epochs": 3.0}
    assert Point.from_json(record).settings == point.settings


def test_what_changes_no_number_is_no_other_point_unless_it_varies():
    assert len(names({}, {"nproc": 2}, {"mount": "elsewhere"}, {"training_run_name": "x"}, {"eval_batch_size": 7})) == 1
    assert len(names({"eval_batch_size": 7}, {"eval_batch_size": 8}, swept=("eval_batch_size",))) == 2


def test_names_suit_files_and_clusters():
    (name,) = names({"lr": 0.001}, title="Übung lr=0.001 " + "x" * 100)
    assert len(name) <= 60
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*[a-z0-9]", name)
    assert names({}, title="...")[0].startswith("point-")


def test_all_problems_of_all_points_are_told_once():
    drafts = [draft({"lr": lr, "max_step": 5}) for lr in (-1, 0.1, -1, -2)] + [draft({}, entry="bert")]
    with pytest.raises(ConfigError) as caught:
        make_points(drafts, study="s")
    assert caught.value.problems == (
        'grid.json: unknown key "max_step"; did you mean "max_steps"?',
        'grid.json: "lr" = -1: Input should be greater than 0',
        'grid.json: "lr" = -2: Input should be greater than 0',
        "s: 'bert' is no entry program; expected seq2seq or clf",
    )


def test_runs_that_leave_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"grid\.json: no_train: leaves no run"):
        make_points([draft({"no_train": True})], study="s")


def test_a_setting_beside_its_parts_in_any_order():
    assert nested({"r_drop.alpha": 2, "r_drop": True}) == {"r_drop": {"alpha": 2}}
    assert nested({"freeze": {"head": 1}, "freeze.every": 2}) == {"freeze": {"head": 1, "every": 2}}
    for off in (False, "false", None):
        assert (
            nested({"r_drop": off, "r_drop.alpha": 2}) == nested({"r_drop.alpha": 2, "r_drop": off}) == {"r_drop": off}
        )


def test_flags_give_the_settings_back():
    settings = {
        "model_init_path": "a model",
        "data_name": "d",
        "lr": 1e-05,
        "target_range": [-0.00001, 5.0],
        "template": "-> {input}\nanswer:",
        "scores_only": True,
        "labels": ["-neg", "- pos"],
        "trackers": [],
        "slice_by": None,
    }
    flags = flags_of(settings)
    flat = parse(ClfSettings, flags, prog="clf.py", example="").flat()
    assert {name: flat[name] for name in settings} == settings
    assert flags_of({"r_drop": {"alpha": 1.0}}) == ["--r_drop.alpha", "1.0"]


def test_flags_unset_what_files_below_them_set(place):
    said = {
        "max_steps": 100,
        "warmup_ratio": 0.1,
        "target_range": [0, 5],
        "r_drop": {"alpha": 2.0},
        "trackers": ["wandb"],
    }
    write(place / "configs" / "default.json", said)
    settings = {
        **BASE,
        "num_epochs": 2.0,
        "trackers": [],
        **dict.fromkeys(("max_steps", "warmup_ratio", "target_range", "r_drop")),
    }
    flat = parse(ClfSettings, flags_of(settings), prog="clf.py", example="").flat()
    assert {name: flat[name] for name in settings} == settings
    with pytest.raises(ConfigError, match="--train_batch_size"):
        parse(ClfSettings, [*flags_of(BASE), "--train_batch_size", "null"], prog="clf.py", example="")


def test_names_of_settings():
    clf = ENTRIES["clf"]
    assert [clf.canonical(name) for name in ("learning_rate", "epochs", "nonsense")] == ["lr", "num_epochs", "nonsense"]
    assert [clf.short(name) for name in ("lr", "train_batch_size", "nonsense")] == ["lr", "batch_size", "nonsense"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.001, "0.001"),
        (1e-5, "1e-05"),
        (0.123456789, "0.123456789"),
        (16, "16"),
        (True, "true"),
        ([1, 2], "[1,2]"),
        ("a", "a"),
    ],
)
def test_values_in_labels(value, text):
    assert value_text(value) == text
