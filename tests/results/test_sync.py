"""Exported and merged results: each run once, conflicts shown and never decided silently, damage found."""

from __future__ import annotations

import json
import uuid

import pytest

from tests.results.made_up import point, write_job, write_run, write_study
from workflow.cli import workflow
from workflow.errors import ConfigError, ResultsError
from workflow.results.runs import read_results
from workflow.results.store import Store


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def study(tmp_path):
    points = [point(str(seed), {"task": "cola", "model": "tiny", "seed": seed}, metrics=["mcc"]) for seed in (0, 1)]
    folder = write_study(tmp_path / "study", tmp_path, points)
    run = write_run(tmp_path / "models", "study-0", {"mcc": 0.5})
    (run / "preds.json").write_text('[{"pred_score": 0.5}]')
    (run / "swa-checkpoint-9-preds.json").write_text('[{"pred_score": 0.6}]')
    write_job(folder, "1", "no luck\n", status="failed", exit_code=1)
    return folder


def results(*arguments):
    return workflow(["results", *map(str, arguments)])


def test_an_export_is_read_like_the_study(tmp_path, study, capsys):
    assert results("export", study, "--to", tmp_path / "kept") == 0
    assert "2 results, 2 of them new" in capsys.readouterr().out

    def told(place):
        return [(r.identity, r.labels, r.status, r.reason, r.metrics, r.report) for r in read_results([place])]

    assert told(tmp_path / "kept") == told(study)
    kept = Store(str(tmp_path / "kept")).kept()
    done = next(one for one in kept if one.result.report)
    assert done.files["preds.json"]() == b'[{"pred_score": 0.5}]'
    assert done.files["swa-checkpoint-9-preds.json"]() == b'[{"pred_score": 0.6}]'
    assert json.loads(done.files["study.json"]())["name"] == "study"


def test_the_same_again_changes_no_byte(tmp_path, study):
    results("export", study, "--to", tmp_path / "kept")
    before = files_in(tmp_path / "kept")
    results("export", study, "--to", tmp_path / "kept")
    results("merge", tmp_path / "kept", tmp_path / "kept", "--to", tmp_path / "kept")
    assert files_in(tmp_path / "kept") == before


def test_two_halves_of_a_study_come_together(tmp_path, study):
    results("export", study, "--to", tmp_path / "a")
    (tmp_path / "models" / "study-0" / "report.json").rename(tmp_path / "report-of-0")
    write_run(tmp_path / "models", "study-1", {"mcc": 0.7}, seed=1)
    results("export", study, "--to", tmp_path / "b")
    results("merge", tmp_path / "a", tmp_path / "b", "--to", tmp_path / "c")
    found = {result.name: result for result in read_results([tmp_path / "c"])}
    assert {name: result.status for name, result in found.items()} == {"study-0": "done", "study-1": "done"}
    assert len(list((tmp_path / "c" / "entries").iterdir())) == 2


def test_other_hardware_and_time_are_no_conflict(tmp_path):
    for place, time in (("a", "2024-01-01T00:00:00+0000"), ("b", "2024-02-02T00:00:00+0000")):
        results(
            "export",
            write_run(tmp_path / place, "run", {"mcc": 0.5}, finished=time),
            "--to",
            tmp_path / f"kept-{place}",
        )
    assert results("merge", tmp_path / "kept-a", tmp_path / "kept-b", "--to", tmp_path / "c") == 0
    assert len(read_results([tmp_path / "c"])) == 1


@pytest.fixture
def conflict(tmp_path):
    write_run(tmp_path / "a", "run", {"mcc": 0.5}, finished="2024-02-02T00:00:00+0000")
    write_run(
        tmp_path / "b", "run", {"mcc": 0.7}, finished="2024-02-02T01:00:00+0200"
    )  # earlier: 23:00 of the day before
    return tmp_path


def test_a_conflict_is_shown_and_nothing_written(conflict):
    with pytest.raises(ResultsError, match=r"mcc 0\.5 in .*/a/run.*; mcc 0\.7 in .*/b/run") as told:
        results("merge", conflict / "a", conflict / "b", "--to", conflict / "c")
    assert told.value.exit_code == 2
    assert not (conflict / "c").exists()
    with pytest.raises(ResultsError, match="--prefer newest"):
        results(conflict / "a", conflict / "b")


@pytest.mark.parametrize(
    ("order", "prefer", "value"), [("ab", "first", 0.5), ("ba", "first", 0.7), ("ba", "newest", 0.5)]
)
def test_a_conflict_is_decided_by_what_is_preferred(conflict, order, prefer, value):
    results("merge", *(conflict / name for name in order), "--to", conflict / "c", "--prefer", prefer)
    (found,) = read_results([conflict / "c"])
    assert found.report.best.metrics["mcc"].value == value


def test_what_is_kept_gives_way_only_when_told(conflict, capsys):
    results("export", conflict / "b", "--to", conflict / "c")
    with pytest.raises(ResultsError, match="other numbers"):
        results("export", conflict / "a", "--to", conflict / "c")
    results("export", conflict / "a", "--to", conflict / "c", "--prefer", "newest")
    assert "1 gave way" in capsys.readouterr().out
    assert read_results([conflict / "c"])[0].report.best.metrics["mcc"].value == 0.5


def test_places_of_fsspec(tmp_path, study, capsys):
    url = f"memory://{uuid.uuid4().hex}/results"
    results("export", study, "--to", url)
    results("export", study, "--to", url)
    results("merge", url, "--to", tmp_path / "here")
    assert {r.identity for r in read_results([url])} == {r.identity for r in read_results([tmp_path / "here"])}
    assert results(url, "--format", "csv") == 0
    assert "50.00" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="fsspec"):
        results("export", study, "--to", "nonsense://x")
    with pytest.raises(ResultsError, match="no exported results"):
        read_results(["memory://nothing-here"])


def test_damage_is_found(tmp_path, study):
    results("export", study, "--to", tmp_path / "kept")
    objects = tmp_path / "kept" / "objects"
    report = next(path for path in objects.iterdir() if b'"data_hash"' in path.read_bytes())
    report.write_bytes(report.read_bytes().replace(b"0.5", b"0.9"))
    with pytest.raises(ResultsError, match="another hash"):
        read_results([tmp_path / "kept"])
    report.unlink()
    with pytest.raises(ResultsError, match="missing"):
        read_results([tmp_path / "kept"])


def test_predictions_may_be_left_out(tmp_path, study):
    results("export", study, "--to", tmp_path / "kept", "--no_predictions")
    assert b'[{"pred_score": 0.5}]' not in files_in(tmp_path / "kept").values()
