"""The transfer matrix: its file, points and data sets, tables of made-up reports, and one that is really trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_program
from tests.results.made_up import write_run
from workflow.config.cascade import read_settings_file
from workflow.data.registry import read_registry
from workflow.errors import ConfigError, DataError
from workflow.evaluation.report import read_report
from workflow.sweep.study import Study
from workflow.sweep.transfer import plan_matrix
from workflow.sweep.transfer_file import read_transfer
from workflow.sweep.transfer_tables import write_matrix

ENTRY = {
    "dataset": "x",
    "train_features": ["text"],
    "eval_feature": "label",
    "splits": ["train", "eval"],
    "task_type": "classification",
    "classes": 3,
}
MODEL = {"name": "bert", "model_init_name": "bert"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A registry of three languages; German has no phonemes."""
    monkeypatch.chdir(tmp_path)
    entries = {}
    for language in ("english", "spanish", "german"):
        rows = [{"text": f"{language} {'abc'[n % 3] * 3}", "label": n % 3, "text-phoneme": "ɪ"} for n in range(24)]
        if language == "german":
            rows = [{key: value for key, value in row.items() if key != "text-phoneme"} for row in rows]
        (tmp_path / f"{language}.json").write_text(json.dumps({"train": rows, "eval": rows[:9]}))
        entries[language] = {"topic": {"set": {**ENTRY, "dataset": f"{language}.json"}}}
    (tmp_path / "registry.json").write_text(json.dumps(entries))
    return tmp_path


def plan(place, *, pairs=False, **changes):
    file = place / "matrix.json"
    two = {"train": ["english", "spanish"], "eval": ["english", "spanish"]}
    content = {"registry": "registry.json", "task": "topic", "languages": two, "models": [MODEL], **changes}
    file.write_text(json.dumps(content))
    return plan_matrix(read_transfer(file), file, place / "study", pairs=pairs)


def cells(matrix):
    return [(point.labels["type"], point.labels["train"], point.labels["eval"]) for point in matrix.points]


def test_every_pair_of_two_languages_for_each_model_type(place):
    matrix = plan(place, model_types=["normal", "ipa"], seeds=[0])
    assert cells(matrix) == [
        (kind, train, evaluated)
        for kind in ("normal", "ipa")
        for train in ("english+spanish", "english", "spanish")
        for evaluated in ("english", "spanish")
    ]
    assert [point.slice for point in matrix.points[:2]] == ["english", "spanish"]
    assert len({point.run for point in matrix.points}) == len(matrix.data) == 6
    assert len({point.name for point in matrix.points}) == 12
    assert max(len(point.name) for point in matrix.points) <= 60
    assert matrix == plan(place, model_types=["normal", "ipa"], seeds=[0])


def test_pairs_are_runs_of_their_own(place):
    matrix = plan(place, pairs=True)
    assert cells(matrix) == cells(plan(place))
    assert len({point.run for point in matrix.points}) == len(matrix.data) == 6
    assert {found.eval for found in matrix.data} == {("english",), ("spanish",)}


def test_all_languages_seeds_and_models(place):
    matrix = plan(place, languages={}, seeds=[0, 1], models=[MODEL, "google/flan-t5-small"])
    assert len({point.run for point in matrix.points}) == 4 * 2 * 2
    assert {point.labels["train"] for point in matrix.points} == {
        "english+spanish+german",
        "english",
        "spanish",
        "german",
    }
    assert {point.labels["model"] for point in matrix.points} == {"bert", "google/flan-t5-small"}
    only = plan(place, languages={"train": ["german"], "eval": ["spanish", "german"]})
    assert cells(only) == [("normal", "german", "spanish"), ("normal", "german", "german")]


def test_settings_of_the_data_of_the_file_and_of_models(place):
    settings = {"lr": 1e-4, "labels": ["a", "b", "c"]}
    point = plan(place, settings=settings, models=[{**MODEL, "lr": 3e-5}], metric=["accuracy", "mcc"]).points[0]
    expected = {"problem": "multiclass", "labels": ["a", "b", "c"], "slice_by": "language", "lr": 3e-5, "seed": 0}
    assert {name: point.settings[name] for name in expected} == {**expected}
    assert (point.settings["save_best_metric"], point.metrics) == ("accuracy", ("accuracy", "mcc"))


def test_data_sets_are_written_once_by_content(place):
    matrix = plan(place)
    matrix.write_data(place / "mount")
    files = {path: path.stat().st_mtime_ns for path in (place / "mount/data").iterdir()}
    assert {path.stem for path in files} == {point.settings["data_name"] for point in matrix.points}
    plan(place).write_data(place / "mount")
    assert {path: path.stat().st_mtime_ns for path in files} == files
    joined = json.loads((place / "mount/data" / f"{matrix.data[0].name}.json").read_text())
    assert [len(joined["train"]), len(joined["eval"])] == [48, 18]
    rows = json.loads((place / "english.json").read_text())
    rows["train"][0]["text"] = "another"
    (place / "english.json").write_text(json.dumps(rows))
    assert {point.run for point in plan(place).points}.isdisjoint(point.run for point in matrix.points[:4])


def test_nanogpt_checkpoints(place):
    for name in ("text", "sounds"):
        (place / "gpt" / name).mkdir(parents=True)
        (place / "gpt" / name / "ckpt.pt").touch()
    given = {"prefix": "gpt", "normal": "text", "ipa": "sounds", "tokenizer": {"normal": "gpt2", "ipa": "mine"}}
    matrix = plan(place, models=[], checkpoints=given, model_types=["normal", "ipa"])
    found = {(p.labels["type"], p.settings["model_init_path"], p.settings["tokenizer"]) for p in matrix.points}
    assert found == {("normal", "gpt/text/ckpt.pt", "gpt2"), ("ipa", "gpt/sounds/ckpt.pt", "mine")}
    with pytest.raises(ConfigError, match=r'"checkpoints": no file gpt/other/ckpt.pt \("prefix"/"normal"/ckpt.pt\)'):
        plan(place, models=[], checkpoints={"prefix": "gpt", "normal": "other"})
    with pytest.raises(ConfigError, match='"checkpoints" has no "ipa", which "model_types" asks for'):
        plan(place, models=[], checkpoints={"prefix": "gpt", "normal": "text"}, model_types=["normal", "ipa"])


def test_problems_are_told_before_anything_is_written(place):
    for changes, told in (
        ({"taks": 1}, 'unknown key "taks"; did you mean "task"'),
        ({"models": []}, 'no model: "models" lists paths'),
        ({"models": [{"lr": 1}]}, "names no model"),
        ({"settings": {"data_name": "x"}}, '"settings" holds "data_name"'),
        ({"seeds": [1, 1]}, '"seeds" names one twice'),
        ({"model_types": ["ipo"]}, "model_types.0"),
        ({"task": "topics"}, r"no task 'topics' in .*; did you mean \"topic\""),
        ({"languages": {"train": ["englisch"]}}, r"no topic data of 'englisch' in .*did you mean \"english\""),
        ({"metric": "f1"}, "'f1' is not measured here"),
        ({"settings": {"learning": 3}}, "unknown key"),
    ):
        with pytest.raises(ConfigError, match=told):
            plan(place, **changes)
    with pytest.raises(
        DataError,
        match=r'(?s)german/topic/set: .*train\[0\]: no "text-phoneme".* type "ipa" out \(24 rows of train have this\)',
    ):
        plan(place, languages={}, model_types=["ipa"])
    assert not (place / "study").exists()
    assert not (place / "mount").exists()


# Tables.


def with_reports(place, root: Path, *, left_out=0, seeds=(0,), model_types=("normal",)):
    matrix = plan(place, seeds=list(seeds), model_types=list(model_types))
    runs = list(dict.fromkeys(point.run for point in matrix.points))
    for number, run in enumerate(runs[left_out:]):
        slices = {"english": {"f1_macro": 0.5 + number / 100}, "spanish": {"f1_macro": 0.3 + number / 100}}
        write_run(root / "mount" / "models", run, {"f1_macro": 0.4}, slices=slices)
    Study(root / "study", "transfer", root / "mount", list(matrix.points), {"report": "final"}).write()
    return root / "study"


def test_the_matrix_is_that_of_the_slices(place):
    folder = with_reports(place, place)
    write_matrix(folder, which="final")
    lines = (folder / "table.md").read_text().splitlines()
    assert lines[2:7] == [
        "| train | english | spanish |",
        "| :-- | --: | --: |",
        "| english+spanish | 50.00 | 30.00 |",
        "| english | 51.00 | 31.00 |",
        "| spanish | 52.00 | 32.00 |",
    ]
    assert "| english | spanish | f1\\_macro | 31.00 | - | 1 | 26.00 | 36.00 | 31.00 | 0 |" in lines
    assert (folder / "table.csv").read_text().splitlines()[1].startswith("english+spanish,50.00")
    page = (folder / "matrix.html").read_text()
    assert page.count("<svg") == 1
    assert "51.00" in page
    assert (folder / "heatmap.png").stat().st_size > 1000


def test_the_same_reports_give_the_same_files_anywhere(place):
    first, second = (with_reports(place, place / name, seeds=(0, 1)) for name in ("here", "there"))
    for folder in (first, second):
        write_matrix(folder, which="final")
    for name in ("table.md", "table.csv", "matrix.html", "heatmap.svg", "heatmap.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert "50.50 \u00b1 0.71 (2)" in (first / "table.md").read_text()


def test_runs_without_a_report_are_shown(place):
    folder = with_reports(place, place, left_out=2, model_types=("normal", "ipa"))
    failed = json.loads((folder / "study.json").read_text())["points"][0]["name"]
    (folder / "points" / failed / "job.json").write_text(
        json.dumps({"status": "failed", "exit_code": 1, "last_line": "error: no room"})
    )
    write_matrix(folder, which="final")
    table = (folder / "table.md").read_text()
    assert "| normal | english+spanish | failed | failed |" in table
    assert "| normal | english | missing | missing |" in table
    assert table.count("exit code 1: error: no room") == 2  # of both of its cells
    write_matrix(folder, which="best")


def test_no_reports_yet(place):
    folder = with_reports(place, place, left_out=99)
    write_matrix(folder, which="final")
    assert "missing" in (folder / "table.md").read_text()


# The examples and the program.


def test_our_own_examples():
    given = read_transfer(ROOT / "configs/transfer-example.json")
    registry = read_registry(ROOT / "configs" / given.registry)
    assert {registry.of_task(given.task, language).classes for language in ("english", "spanish")} == {3}
    assert len(given.settings["labels"]) == 3
    assert (given.languages.train, given.languages.eval) == ("all", "all")
    assert read_settings_file(ROOT / "configs/transfer-example.json")["metric"] == ["f1_macro", "accuracy"]


@pytest.mark.slow
def test_slices_of_one_run_are_the_runs_of_pairs(place, bert_like):
    """What a run measures of a language is what a run with that language's eval rows alone would."""
    settings = {"max_steps": 3, "eval_steps": 3, "train_batch_size": 8, "lr": 1e-2, "max_length": 16}
    found = {}
    for study, evaluated, more in (("one", ["english", "spanish"], ()), ("each", ["spanish"], ("--pairs",))):
        plan(
            place,
            languages={"train": ["english"], "eval": evaluated},
            models=[{"name": "bert", "model_init_path": str(bert_like)}],
            settings=settings,
        )
        command = ("suite", "transfer", "matrix.json", "--out", study, "--mount", "mount", *more)
        done = run_program(*command, module="workflow", cwd=place)
        assert done.returncode == 0, done.stdout + done.stderr
        points = json.loads((place / study / "study.json").read_text())["points"]
        assert len({point["run"] for point in points}) == 1
        final = read_report(place / "mount/models" / points[-1]["run"] / "report.json").final
        assert final is not None
        found[study] = final.slices["spanish"]
        assert "| english |" in (place / study / "table.md").read_text()
        assert (place / study / "heatmap.svg").is_file()
    for metric in ("eval_loss", "accuracy", "f1_macro"):
        assert found["one"][metric].value == pytest.approx(found["each"][metric].value, rel=1e-5)
