"""Suites: all problems before anything starts, tasks with their own settings and seeds, searches, what is kept."""

from __future__ import annotations

import json

import pytest

from tests.conftest import ROOT
from tests.sweep.conftest import options, starts, write
from workflow.errors import ConfigError
from workflow.sweep import suite_checks
from workflow.sweep.entries import ENTRIES
from workflow.sweep.study import read_study
from workflow.sweep.suite import Suite, best_layer, check, run_suite
from workflow.sweep.suite_file import read_suite

BODY = {
    "entry": "clf",
    "base": {"model_init_path": "bert-base-uncased", "save_best_metric": "accuracy", "max_steps": 10, "eval_steps": 5},
    "num_runs": 2,
    "tasks": {
        "cola": {"save_best_metric": "mcc", "metrics": ["mcc"]},
        "mrpc": {"lr": 1e-5, "metrics": ["accuracy", "f1_macro"]},
    },
}
ROWS = [{"input": "a", "target": 0}, {"input": "b", "target": 1}]


@pytest.fixture
def suite(place):
    for name in ("cola", "mrpc"):
        write(place / "mount" / "data" / f"{name}.json", {"train": ROWS, "eval": ROWS})

    def make(*bodies, keep="all", force=False, folder="study", max_points=100):
        files = [
            read_suite(write(place / f"suite{number}.json", body)) for number, body in enumerate(bodies or (BODY,))
        ]
        return Suite(files, place / folder, place / "mount", keep, force, max_points)

    return make


def changed(task="cola", *, base=None, **settings):
    """The body with a task's settings changed."""
    tasks = {**BODY["tasks"], task: {**BODY["tasks"][task], **settings}}
    return {**BODY, "tasks": tasks, "base": {**BODY["base"], **(base or {})}}


def problems(suite) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(suite)
    return list(caught.value.problems)


def test_a_good_suite_has_no_problems(suite):
    check(suite())


def test_every_problem_of_every_task_is_told_with_its_fix(suite):
    body = {
        **BODY,
        "tasks": {
            "cola": {"save_best_metric": "f2", "max_step": 5},
            "mrpc": {"max_steps": 4, "metrics": ["acuracy"], "save_best_metric": "eval_loss", "best_when": "high"},
            "stsb": {"problem": "regression", "save_best_metric": "spearman", "max_steps": 12},
        },
    }
    found = problems(suite(body))
    for text in (
        'tasks.cola: unknown key "max_step"; did you mean "max_steps"?',
        "--save_best_metric f2: no metric of binary targets",
        "tasks.mrpc: max_steps 4 is below eval_steps 5",
        "'acuracy' is not measured here",
        'eval_loss is best when low, not when high; set "best_when": "low"',
        "max_steps 12 is no multiple of eval_steps 5: the last evaluation comes 2 updates after the one before it; set max_steps 10",
        "tasks.stsb: no data named 'stsb'",
    ):
        assert any(text in problem for problem in found), (text, found)
    places = tuple(f"suite0.json: tasks.{task}" for task in body["tasks"])
    assert all(any(place in problem for place in places) for problem in found if "bert-base" not in problem), found


def test_searches_are_checked_before_anything_starts(suite):
    def told(**parameters):
        return problems(suite(changed("mrpc", search={"kind": "random", "parameters": parameters})))

    assert any('"train_batch_size" = -3' in problem for problem in told(train_batch_size=[16, -3]))
    assert any("max_steps 10 is below eval_steps 16" in problem for problem in told(eval_steps=[5, 16]))
    assert any("no folder here" in problem for problem in told(model_init_path=["bert-base-uncased", "./none"]))
    many = changed("mrpc", search={"kind": "random", "n_trials": 101, "parameters": {"lr": [1e-3, 1e-2]}})
    assert any("101 points, more than --max_points 100" in problem for problem in problems(suite(many)))
    check(suite(changed("mrpc", search={"kind": "random", "parameters": {"lr": [1e-3, 1e-2], "eval_steps": [5, 10]}})))


def test_doubts_can_be_overruled(suite, capsys):
    body = changed(max_steps=12)
    assert [text.endswith("(--force runs it as it is)") for text in problems(suite(body))] == [True]
    check(suite(body, force=True))
    assert "notice: " in capsys.readouterr().out
    assert problems(suite(changed(max_steps=12, eval_steps=20), force=True))


def test_disk_space_is_looked_at(suite, monkeypatch):
    monkeypatch.setattr(suite_checks, "free_bytes", lambda folder: 5 * 10**9)
    (problem,) = problems(suite())
    assert "the checkpoints of 4 runs take about" in problem
    assert "pass --keep best" in problem
    monkeypatch.setattr(suite_checks, "free_bytes", lambda folder: 12 * 10**9)
    check(suite())
    assert "6 runs" in problems(suite({**BODY, "num_runs": 3}))[0]
    check(suite({**BODY, "num_runs": 3}, keep="best"))


def test_pruned_models_are_recognised(suite, bert_like, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "pruned"
    shutil.copytree(bert_like, folder)
    check(suite(changed(base={"model_init_path": str(folder)})))
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if tensor.ndim == 2:
            tensor[tensor.abs() < tensor.abs().median()] = 0
            weights[name] = tensor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = problems(suite(changed(base={"model_init_path": str(folder)})))
    assert "50% of its weights are zero" in found[0]
    assert '"static_sparsity": true' in found[0]


def test_files_of_no_form(place):
    for body, told in (
        ({"entry": "clf"}, '"tasks" is missing'),
        ({**BODY, "seeds": [1]}, 'give it or "seeds", not both'),
        ({**BODY, "task": {}}, 'unknown key "task"; did you mean "tasks"?'),
        ({**BODY, "entry": "bert"}, "entry: Input should be 'seq2seq' or 'clf'"),
        ({**BODY, "preset": "glue", "tasks": {"colla": {}}}, 'no task of GLUE; did you mean "cola"?'),
        ({**BODY, "search": {"kind": "tpe"}}, "nothing to choose"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_suite(write(place / "suite.json", body))
        assert told in str(caught.value)


def test_yaml_is_read_too(place):
    (place / "suite.yaml").write_text("entry: clf\ntasks:\n  cola: {lr: 0.001}\nseeds: [3, 4]\n")
    read = read_suite(place / "suite.yaml")
    assert (read.name, read.seeds, [task.name for task in read.tasks]) == ("suite", (3, 4), ["cola"])


@pytest.mark.slow
def test_a_suite_runs_and_keeps_the_best_runs_checkpoints(suite, place, capsys):
    planned = suite(BODY, {**BODY, "base": {**BODY["base"], "lr": 1e-3}, "tasks": {"mrpc": {}}}, keep="best")
    folder = place / "mount" / "models"
    assert run_suite(planned, options(place, planned.folder, submit=False)) == 0
    points = read_study(planned.folder).points
    assert [(point.labels["task"], point.labels["setting"], point.labels["seed"]) for point in points] == [
        *[("cola", "suite0", 0), ("cola", "suite0", 1), ("mrpc", "suite0", 0), ("mrpc", "suite0", 1)],
        *[("mrpc", "suite1", 0), ("mrpc", "suite1", 1)],
    ]
    assert points[2].settings["lr"] == 1e-5
    for point in points:
        (folder / point.run / "checkpoint-10").mkdir(parents=True)
    assert run_suite(planned, options(place, planned.folder)) == 0
    kept = {path.parent.name for path in folder.glob("*/checkpoint-10")}
    assert len([name for name in kept if "mrpc" in name]) == 1
    assert len(kept) == 2
    assert "suite1-mrpc-seed-1" in next(name for name in kept if "mrpc" in name)
    table = (planned.folder / "table.md").read_text()
    assert "suite1" in table
    assert "no mcc" in table
    assert run_suite(planned, options(place, planned.folder)) == 0
    assert len(starts(place)) == 6


@pytest.mark.slow
def test_a_search_a_task_is_used_by_the_runs_after_it_and_by_the_next_suite(suite, place):
    body = {
        **BODY,
        "tasks": {"mrpc": {"lr": 1e-6}},
        "search": {"kind": "random", "n_trials": 3, "parameters": {"lr": [1e-3, 1e-2, 1e-1]}},
    }
    planned = suite(body)
    assert run_suite(planned, options(place, planned.folder)) == 0
    assert len(starts(place)) == 3 + 2
    assert [point.settings["lr"] for point in read_study(planned.folder).points] == [1e-3, 1e-3]
    (layer,) = best_layer(planned.folder, "mrpc")
    assert layer.values == {"lr": 1e-3}
    later = {**BODY, "tasks": {"mrpc": {"lr": 1e-6, "train_batch_size": 8}}, "use_best": str(planned.folder)}
    after = suite(later, folder="after")
    assert run_suite(after, options(place, after.folder, submit=False)) == 0
    settings = read_study(after.folder).points[0].settings
    assert (settings["lr"], settings["train_batch_size"]) == (1e-3, 8)


@pytest.mark.slow
def test_a_search_that_a_default_wins_overrules_the_base(suite, place):
    searched = {"search": {"kind": "random", "n_trials": 2, "parameters": {"train_batch_size": [64, 32]}}}
    body = changed("mrpc", base={"train_batch_size": 100}, **searched)
    planned = suite({**body, "tasks": {"mrpc": body["tasks"]["mrpc"]}, "num_runs": 1})
    assert ENTRIES["clf"].settings_type().training.train_batch_size == 32
    assert run_suite(planned, options(place, planned.folder)) == 0
    assert [point.settings["train_batch_size"] for point in read_study(planned.folder).points] == [32]


def test_the_examples_are_good(place):
    example = read_suite(ROOT / "configs" / "suite-glue-small.json")
    assert [task.name for task in example.tasks] == ["cola", "mrpc", "stsb"]
    assert [task.metrics for task in example.tasks] == [("mcc",), ("accuracy", "f1"), ("pearson", "spearman")]
    found = problems(Suite([example], place / "s", place / "mount", "all", False, 100))
    assert all("no data named" in text or "no folder here" in text for text in found), found


def test_best_settings_that_are_not_there(place):
    with pytest.raises(ConfigError, match=r"no best-cola\.json and no best\.json here"):
        best_layer(place, "cola")
    (place / "best.json").write_text(json.dumps({"lr": 1.0, "data_name": "d", "model_init_name": "m"}))
    assert best_layer(place, "cola")[0].values == {"lr": 1.0}
