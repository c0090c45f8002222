"""Names, folders and files: nothing leaves the mount, nothing half-written has a final name, nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from workflow.config.cascade import Layer, resolve
from workflow.config.clf_settings import ClfSettings
from workflow.config.settings import Seq2SeqSettings
from workflow.errors import ConfigError, ResultsError, RunExistsError
from workflow.evaluation.report import read_report
from workflow.files import link_or_copy, remove_leftovers, replace_by_link, whole_file, whole_folder, write_json
from workflow.paths import RunPaths, checked_name, find_mount, model_folder, predictions_name, run_name
from workflow.run_folder import claim
from workflow.runtime import Ranks, current_commit, derived_seed, ranks_from_environment
from workflow.training.checkpoint import TrainState, link_model, prune, read_state, recover
from workflow.training.log import MetricsFile


def settings(**values):
    return resolve(Seq2SeqSettings, [Layer("flag", {"model_init_path": "m", "data_name": "d", **values})])


def test_what_libraries_write_for_their_owner_alone_is_for_all_who_may(tmp_path):
    """As the umask says; safetensors writes files of mode 0600."""
    mask = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "checkpoint") as folder:
            (folder / "state").mkdir(mode=0o700)
            for name in ("a", "state/b"):
                (folder / name).touch(mode=0o600)
    finally:
        os.umask(mask)
    modes = {
        path.name: path.stat().st_mode & 0o777
        for path in [tmp_path / "checkpoint", *(tmp_path / "checkpoint").rglob("*")]
    }
    assert modes == {"checkpoint": 0o750, "state": 0o750, "a": 0o640, "b": 0o640}


def test_names():
    assert run_name("google/flan-t5-xl", "data", "3") == "google_flan-t5-xl_data_3"
    assert run_name("/a/b", "hf:x", "0") == "a_b_hf_x_0"
    for letter in ("a", "\u00fc"):
        long = [run_name(f"{start}{letter * 300}", "the_rows", "3") for start in "xy"]
        assert long[0] != long[1]
        for name in long:
            assert name.endswith(f"{letter}_the_rows_3")
            assert len(name.encode()) <= 200
            assert checked_name(name, what="run") == name
    assert run_name("a" * 198, "3") == f"{'a' * 198}_3"
    with pytest.raises(ConfigError, match=r"--training_run_name: a{40}\.\.\. is longer than the 255 bytes"):
        checked_name("a" * 256, what="--training_run_name")
    assert checked_name(run_name("../../x", "../d", "0"), what="run") == "x_.._d_0"
    assert predictions_name(temperature=0.001, n_samples=1, step=500) == "temperature=0.00_n=1_step=500.json"
    for bad in ("", ".", "..", "a/b", "a\\b", ".hidden", "a\0"):
        with pytest.raises(ConfigError, match="plain name"):
            checked_name(bad, what="--training_run_name")


def test_the_mount(monkeypatch, tmp_path):
    monkeypatch.delenv("WORKFLOW_MOUNT", raising=False)
    assert find_mount(tmp_path) == tmp_path
    if not Path("/model_mount").is_dir():
        assert find_mount() == Path("mount")
    monkeypatch.setenv("WORKFLOW_MOUNT", "/somewhere")
    assert find_mount() == Path("/somewhere")


def test_a_run_folder_means_its_best_checkpoint(tmp_path):
    assert model_folder(tmp_path) == tmp_path
    for name in ("checkpoint-9", "checkpoint-10"):
        (tmp_path / name).mkdir()
    assert model_folder(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-best-ckpt").mkdir()
    assert model_folder(tmp_path) == tmp_path / "checkpoint-best-ckpt"


def test_parts_of_a_setting_that_are_new_are_no_difference(tmp_path):
    """A run of a version in which SWA had no `every` goes on; what was set then still counts."""
    root = tmp_path / "models/run"
    averaged = settings(swa={"start": 5})
    os.close(claim(root, averaged, data_hash="h", overwrite=False).lock)
    (root / "checkpoint-5").mkdir()
    write_json(root / "checkpoint-5/training_state/state.json", {})
    file = RunPaths(root).settings
    record = json.loads(file.read_text())
    record["settings"]["swa"] = {"start": 5}
    write_json(file, record)
    os.close(claim(root, averaged, data_hash="h", overwrite=False).lock)
    for other in ({"start": 5, "every": 2}, {}):
        with pytest.raises(RunExistsError, match="swa"):
            claim(root, settings(swa=other), data_hash="h", overwrite=False)


@pytest.mark.parametrize("variable", ["WORKFLOW_STARTED_AGAIN", "SLURM_RESTART_COUNT"])
def test_an_automatic_restart_overwrites_nothing(monkeypatch, tmp_path, variable):
    root = tmp_path / "models/run"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    for _ in range(2):
        os.close(claim(root, settings(), data_hash="h", overwrite=True).lock)
        (root / "checkpoint-5").mkdir()
    assert len([*root.parent.iterdir()]) == 2
    monkeypatch.setenv(variable, "1")
    os.close(claim(root, settings(), data_hash="h", overwrite=True).lock)
    assert (root / "checkpoint-5").is_dir()
    assert len([*root.parent.iterdir()]) == 2


def _with_work(root, resolved):
    os.close(claim(root, resolved, data_hash="h", overwrite=False).lock)
    (root / "checkpoint-5").mkdir()
    write_json(root / "checkpoint-5/training_state/state.json", {})
    return RunPaths(root).settings


def test_origins_in_the_folder_say_what_was_unset(tmp_path):
    layers = [Layer("base.json", {"max_steps": 10}), Layer("flag", {"num_epochs": 2})]
    resolved = resolve(Seq2SeqSettings, [Layer("a.json", {"model_init_path": "m", "data_name": "d"}), *layers])
    origins = json.loads(_with_work(tmp_path / "run", resolved).read_text())["origins"]
    assert origins["max_steps"] == "default (10 of base.json unset by num_epochs of flag)"
    assert (origins["num_epochs"], origins["seed"]) == ("flag", "default")


def test_a_run_from_before_that_holds_both_rivals_goes_on(tmp_path):
    """Its silenced setting is no difference; the one that counted is."""
    root = tmp_path / "models/run"
    file = _with_work(root, settings(max_steps=10))
    record = json.loads(file.read_text())
    record["settings"] |= {"num_epochs": 7.0, "model_init_name": "other"}
    write_json(file, record)
    os.close(claim(root, settings(max_steps=10), data_hash="h", overwrite=False).lock)
    for other in ({"max_steps": 11}, {"num_epochs": 7.0}):
        with pytest.raises(RunExistsError, match="max_steps"):
            claim(root, settings(**other), data_hash="h", overwrite=False)


def test_a_companion_that_lends_the_tokenizer_is_a_difference(tmp_path):
    layers = [{"model_init_path": "m", "data_name": "d", "model_pretrain_name": name} for name in ("one", "other")]
    one, other = (resolve(ClfSettings, [Layer("flag", layer)]) for layer in layers)
    _with_work(tmp_path / "run", one)
    with pytest.raises(RunExistsError, match="model_pretrain_name"):
        claim(tmp_path / "run", other, data_hash="h", overwrite=False)


@pytest.mark.parametrize("changed", [{"save_steps": 3}, {"training_run_name": "run"}, {"trackers": ["mlflow"]}])
def test_what_changes_no_number_may_change(tmp_path, changed):
    root = tmp_path / "models/run"
    _with_work(root, settings())
    os.close(claim(root, settings(**changed), data_hash="h", overwrite=False).lock)
    with pytest.raises(RunExistsError, match="debug"):
        claim(root, settings(debug=True), data_hash="h", overwrite=False)


def test_claims(tmp_path):
    root = tmp_path / "models/run"
    first = claim(root, settings(), data_hash="h", overwrite=False)
    assert not first.finished
    with pytest.raises(RunExistsError, match=f"held by process {os.getpid()}"):
        claim(root, settings(), data_hash="h", overwrite=False)
    with pytest.raises(RunExistsError, match="held by"):
        claim(root, settings(), data_hash="h", overwrite=True)
    os.close(first.lock)
    other = claim(root, settings(lr=1.0), data_hash="h", overwrite=False)  # nothing trained yet: settings may change
    assert json.loads(other.paths.settings.read_text())["settings"]["lr"] == 1.0
    os.close(other.lock)
    other.paths.checkpoint(3).mkdir()
    for changed, message in ((settings(lr=2.0), r"lr +1\.0 +2\.0"), (settings(lr=1.0, seed=4), r"seed +0 +4")):
        with pytest.raises(RunExistsError, match=message):
            claim(root, changed, data_hash="h", overwrite=False)
    with pytest.raises(RunExistsError, match="data_hash"):
        claim(root, settings(lr=1.0), data_hash="changed", overwrite=False)
    free = claim(root, settings(lr=1.0, nproc=4, deepspeed="zero3"), data_hash="h", overwrite=False)
    os.close(free.lock)
    assert [line.split() for line in free.notes[0].splitlines()[1:]] == [
        ["then", "now"],
        ["nproc", "null", "4"],
        ["deepspeed", '"auto"', '"zero3"'],
    ]
    os.close(claim(root, settings(), data_hash="h", overwrite=True).lock)
    assert [path.name.startswith("run.old-") for path in sorted(root.parent.iterdir())] == [False, True]


def test_changed_data_is_refused_unless_allowed(tmp_path):
    root, old, new = tmp_path / "models/run", "a" * 40, "b" * 40
    first = claim(root, settings(), data_hash=old, overwrite=False)
    first.paths.checkpoint(3).mkdir()
    os.close(first.lock)
    with pytest.raises(RunExistsError, match=r"data_hash +a{12} +b{12}\n.*--allow_changed_data"):
        claim(root, settings(), data_hash=new, overwrite=False)
    allowed = claim(root, settings(allow_changed_data=True), data_hash=new, overwrite=False, allow_changed_data=True)
    os.close(allowed.lock)
    assert allowed.data_changed
    assert allowed.notes == (f"the data changed since this run began: {'a' * 12} -> {'b' * 12} (--allow_changed_data)",)
    record = json.loads(allowed.paths.settings.read_text())
    assert record["data_hash"] == new
    assert record["changes"][0]["data_hash"] == [old, new]
    again = claim(root, settings(), data_hash=new, overwrite=False)  # it is written down: not asked twice
    os.close(again.lock)
    assert not again.data_changed
    assert again.notes == ()
    with pytest.raises(RunExistsError, match=r"lr +0\.0001 +1\.0"):
        claim(root, settings(lr=1.0), data_hash=old, overwrite=False, allow_changed_data=True)
    (root / "report.json").write_text("{}")
    done = claim(root, settings(), data_hash=old, overwrite=False, allow_changed_data=True)
    os.close(done.lock)
    assert json.loads(done.paths.settings.read_text())["data_hash"] == new, "a finished run's record stays"


def test_a_setting_that_came_later_is_no_difference(tmp_path):
    first = claim(tmp_path / "run", settings(), data_hash="h", overwrite=False)
    first.paths.checkpoint(3).mkdir()
    os.close(first.lock)
    record = json.loads(first.paths.settings.read_text())
    del record["settings"]["weight_decay"]
    first.paths.settings.write_text(json.dumps(record))
    os.close(claim(tmp_path / "run", settings(), data_hash="h", overwrite=False).lock)
    with pytest.raises(RunExistsError, match=r"weight_decay +null +0\.5"):
        claim(tmp_path / "run", settings(weight_decay=0.5), data_hash="h", overwrite=False)


def test_a_changed_input_file_is_another_run(tmp_path):
    root = tmp_path / "models/run"
    first = claim(root, settings(), data_hash="h", overwrite=False, inputs={"template_text": "a {input}"})
    first.paths.checkpoint(3).mkdir()
    os.close(first.lock)
    with pytest.raises(RunExistsError, match=r'template_text +"a \{input\}" +"b \{input\}"'):
        claim(root, settings(), data_hash="h", overwrite=False, inputs={"template_text": "b {input}"})
    os.close(claim(root, settings(), data_hash="h", overwrite=False, inputs={"template_text": "a {input}"}).lock)


def test_a_model_does_not_become_a_run(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/config.json").write_text("{}")
    with pytest.raises(RunExistsError, match=r"not a run's folder, or another task's \(it holds config.json\)"):
        claim(tmp_path / "tiny", settings(), data_hash="h", overwrite=False)
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["config.json"]


def test_a_report_that_is_none(tmp_path):
    (tmp_path / "report.json").write_text('{"schema_version": 1}')
    with pytest.raises(ResultsError, match="not a report"):
        read_report(tmp_path / "report.json")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "models").write_text("a file in the way")
    with pytest.raises(RunExistsError, match="cannot write here"):
        claim(tmp_path / "models/run", settings(), data_hash="h", overwrite=False)


def test_whole_files(tmp_path):
    path = tmp_path / "a/b.json"
    write_json(path, {"a": "ü"})
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": "ü"}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, float("nan"))
    assert [found.name for found in path.parent.iterdir()] == ["b.json"]


def test_whole_folders(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "x") as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "x") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "x").exists()
    link_or_copy(str(tmp_path / "x/a"), str(tmp_path / "x/b"))
    assert (tmp_path / "x/b").read_text() == "a"
    (tmp_path / ".tmp-left").mkdir()
    (tmp_path / ".tmp-file").write_text("")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def make_checkpoint(paths, step):
    folder = paths.checkpoint(step)
    (folder / "training_state").mkdir(parents=True)
    write_json(folder / "training_state/state.json", {"step": step})
    (folder / "config.json").write_text(str(step))
    return folder


def test_retention_and_the_newest(tmp_path):
    paths = RunPaths(tmp_path)
    for step in (1, 2, 10):
        make_checkpoint(paths, step)
    link_model(paths.checkpoint(2), paths.best)
    link_model(paths.checkpoint(10), paths.best)
    assert (paths.best / "config.json").read_text() == "10"
    assert not (paths.best / "training_state").exists()
    assert read_state(paths.checkpoint(10)) == TrainState(step=10)
    prune(paths, limit=None)
    assert [(path / "training_state").is_dir() for _, path in paths.checkpoints()] == [False, True, True]
    prune(paths, limit=1)
    assert [step for step, _ in paths.checkpoints()] == [10]


def test_a_kill_between_two_renames_is_mended(tmp_path):
    make_checkpoint(RunPaths(tmp_path), 1).rename(tmp_path / ".tmp-next-checkpoint-best-ckpt")
    (tmp_path / ".tmp-old-checkpoint-best-ckpt").mkdir()
    recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-best-ckpt"]


def test_metrics_are_cut_to_where_a_run_continues(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 3, "los')
    file = MetricsFile(path, continue_from=2)
    file.write({"step": 3, "loss": 1.0})
    file.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    MetricsFile(path, continue_from=0).close()
    assert path.read_text() == ""


def test_ranks_from_launchers():
    assert ranks_from_environment({}) is None
    assert ranks_from_environment({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Ranks(3, 4, 1)
    srun = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
    assert ranks_from_environment(srun) == Ranks(1, 2, 1)
    assert ranks_from_environment({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "9", "SLURM_PROCID": "0"}) is None


def test_seeds_of_purposes_differ_and_never_change():
    assert derived_seed(0, "dropout", 1, 0) != derived_seed(0, "sampling", 1, 0)
    assert derived_seed(7, "dropout", 3, 1) == 1372874580


def test_the_commit_is_that_of_this_checkout():
    def git(*arguments):
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False).stdout

    head = git("rev-parse", "--short=12", "HEAD").strip()
    if not head:
        pytest.skip("this is no checkout")
    assert current_commit() == head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def test_a_full_disk_is_told_with_the_place(tmp_path):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(OSError, match=r"No space left on device: '.*/a\.json'"),
        whole_file(tmp_path / "a.json") as file,
    ):
        full(file)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a'"), whole_folder(tmp_path / "a") as folder:
        full(folder)


def test_a_link_that_cannot_take_its_place_leaves_nothing(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_by_link(tmp_path / "a", tmp_path / "b")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
