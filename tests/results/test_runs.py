"""What is read of studies, runs and folders of runs: nothing that was asked for is dropped."""

from __future__ import annotations

import json

import pytest

from tests.results.made_up import point, write_job, write_run, write_study
from workflow.errors import ResultsError
from workflow.results.best import best_settings
from workflow.results.runs import read_results, read_run, read_study


@pytest.fixture
def study(tmp_path):
    points = [
        point(name, {"task": "cola", "seed": seed}) for seed, name in enumerate(["done", "failed", "new", "none"])
    ]
    folder = write_study(tmp_path / "study", tmp_path, points)
    write_run(tmp_path / "models", "study-done", {"mcc": 0.5})
    write_job(folder, "failed", "loading\nValueError: no luck\n\n", status="failed", exit_code=1)
    write_job(folder, "new", status="written")
    return folder


def test_a_study_gives_every_point(study):
    found = {result.name: (result.status, result.reason) for result in read_study(study)}
    assert found == {
        "study-done": ("done", None),
        "study-failed": ("failed", "exit code 1: ValueError: no luck"),
        "study-new": ("written", "not started"),
        "study-none": ("missing", "not started"),
    }


def test_the_last_line_is_the_job_records_own_or_what_a_progress_bar_left(study):
    write_job(study, "failed", "x", status="failed", exit_code=2, last_line="error: no such data")
    write_job(study, "new", "10 %\r20 %\r\n", status="running")
    found = {result.name: result.reason for result in read_study(study)}
    assert found["study-failed"] == "exit code 2: error: no such data"
    assert found["study-new"] == "20 %"


def test_a_broken_report_is_a_failure_that_says_so(tmp_path, study):
    (tmp_path / "models" / "study-done" / "report.json").write_text('{"run": "x"')
    result = read_study(study)[0]
    assert result.status == "failed"
    assert "not a report" in result.reason


def test_a_job_that_ended_well_without_a_report_failed(study):
    write_job(study, "new", "bye\n", status="done", exit_code=0)
    assert {r.name: (r.status, r.reason) for r in read_study(study)}["study-new"] == ("failed", "bye")
    (study / "points" / "new" / "log.txt").unlink()  # as of a cluster whose files are elsewhere
    assert "ended well, but" in {r.name: r.reason for r in read_study(study)}["study-new"]


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"name": "x", "mount": ".", "points": [{}]}'])
def test_a_study_file_that_is_none_is_refused_by_name(tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(ResultsError, match=r"study\.json"):
        read_results([tmp_path])


def test_a_folder_of_runs(tmp_path):
    models = tmp_path / "models"
    write_run(models, "one", {"mcc": 0.5}, data="/somewhere/cola.json", seed=3)
    write_run(models, "one.old-20240501-100000", {"mcc": 0.4})
    begun = models / "begun"
    begun.mkdir()
    (begun / "args.json").write_text(
        json.dumps({"settings": {"data_name": "cola", "model_init_path": "a/b", "seed": 1}})
    )
    (begun / "metrics.jsonl").write_text('{"step": 5}\n')
    (models / "checkpoint").mkdir()
    (models / "checkpoint" / "config.json").write_text("{}")
    found = {result.name: result for result in read_results([models])}
    assert set(found) == {"one", "begun"}
    assert found["one"].labels == {"task": "cola", "model": "tiny", "seed": "3"}
    assert found["begun"].labels == {"task": "cola", "model": "a/b", "seed": "1"}
    assert (found["begun"].status, found["begun"].reason) == (
        "missing",
        'no report.json; metrics.jsonl ends with {"step": 5}',
    )


def test_a_run_is_found_by_its_name_under_the_models(tmp_path):
    write_run(tmp_path / "models", "one", {"mcc": 0.5})
    assert [result.name for result in read_results(["one"], models=tmp_path / "models")] == ["one"]
    with pytest.raises(ResultsError, match='did you mean "one"'):
        read_results(["onee"], models=tmp_path / "models")


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_text("x"), lambda path: None])
def test_what_holds_no_results_is_refused(tmp_path, make):
    make(tmp_path / "place")
    with pytest.raises(ResultsError, match="place"):
        read_results([tmp_path / "place"])


def test_settings_that_differ_are_a_label_and_no_seeds(tmp_path):
    for name, lr, seed in (("a", 1e-3, 0), ("b", 1e-3, 1), ("c", 5e-4, 0)):
        write_run(tmp_path, name, {"mcc": 0.5}, lr=lr, seed=seed)
    assert [result.labels["setting"] for result in read_results([tmp_path])] == ["lr=0.001", "lr=0.001", "lr=0.0005"]


def test_the_same_run_is_one_result_wherever_it_is_read_from(tmp_path, study):
    copy = write_run(tmp_path / "other", "study-done", {"mcc": 0.5}, mount="/elsewhere")
    found = read_results([tmp_path / "models", study, study, copy])
    assert [result.name for result in found] == [f"study-{name}" for name in ("done", "failed", "new", "none")]
    assert found[0].study == "study"


def test_identity_is_of_name_data_and_settings_but_not_of_place(tmp_path):
    def identity(place, **more):
        return read_run(write_run(tmp_path / place, "run", {"mcc": 0.5}, **more)).identity

    first = identity("a", mount="/here")
    assert identity("b", mount="/there", nproc=2, metrics_port=9400) == first
    others = {identity("c", lr=1.0), identity("d", seed=5), identity("e", data="other"), identity("f", debug=True)}
    assert len({first, *others}) == 5


def test_debug_runs_are_no_seeds_of_full_ones(tmp_path):
    """--debug cuts the rows, so that its numbers are of another experiment."""
    write_run(tmp_path, "full", {"mcc": 0.5})
    write_run(tmp_path, "small", {"mcc": 0.9}, seed=1, debug=True)
    found = read_results([tmp_path])
    assert [result.labels["setting"] for result in found] == ["debug=False", "debug=True"]
    (winner,) = best_settings(found).values()
    assert (winner.why["n"], winner.why["settings_compared"], winner.settings["debug"]) == (1, 2, True)


def test_weights_from_elsewhere_are_the_model(tmp_path):
    """clf.py names a run by its pretrained model, also where the weights come from a checkpoint."""
    for name in ("a", "b"):
        write_run(tmp_path, name, {"mcc": 0.5}, model_pretrain_name="M", model_init_path=f"ckpt-{name}")
    assert [result.labels["model"] for result in read_results([tmp_path])] == ["ckpt-a", "ckpt-b"]


def test_a_slice_of_a_run_is_a_result_of_its_own(tmp_path):
    points = [point("run", {"eval": part}, slice=part, metrics=["mcc"]) for part in ("en", "es")]
    folder = write_study(tmp_path / "study", tmp_path, points)
    write_run(tmp_path / "models", "study-run", {"mcc": 0.5}, slices={"en": {"mcc": 0.7}, "es": {"mcc": 0.3}})
    found = read_results([folder])
    assert [result.record("mcc", "best").value for result in found] == [0.7, 0.3]
    assert len({result.identity for result in found}) == 2


def test_settings_that_belong_to_a_task_or_change_no_number_are_no_label(tmp_path):
    write_run(tmp_path, "a", {"mcc": 0.5}, data="cola", max_steps=100)
    write_run(tmp_path, "b", {"mcc": 0.5}, data="rte", max_steps=200)
    write_run(tmp_path, "c", {"mcc": 0.5}, data="rte", max_steps=200, seed=1, logging_steps=5, nproc=2)
    assert all("setting" not in result.labels for result in read_results([tmp_path]))


@pytest.mark.parametrize(("lr", "statuses"), [(0.1, ["done", "missing"]), (0.2, ["done"])])
def test_an_unfinished_run_gives_way_to_a_finished_one_of_its_settings_alone(tmp_path, lr, statuses):
    done = write_run(tmp_path / "here", "cola_bert", {"mcc": 0.5}, lr=0.2)
    settings = {**json.loads((done / "report.json").read_text())["settings"], "lr": lr, "mount": "/there"}
    left = tmp_path / "there" / "cola_bert"
    left.mkdir(parents=True)
    (left / "args.json").write_text(json.dumps({"settings": settings}))
    assert sorted(result.status for result in read_results([tmp_path / "here", tmp_path / "there"])) == statuses
