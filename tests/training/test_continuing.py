"""Damage of every kind is found, named and gone round; what is good stays good."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from workflow.errors import CheckpointError, ConfigError
from workflow.files import write_json
from workflow.models import manifest as manifests
from workflow.models.manifest import MANIFEST_FILE, read_manifest, write_manifest
from workflow.paths import RunPaths
from workflow.recipe.resume import find_start
from workflow.run_folder import Claim
from workflow.training.checkpoint import TrainState, drop, link_model, prune
from workflow.training.continuing import fault_of, newest_intact, set_aside

FILES = (
    "config.json",
    "model.safetensors",
    "training_state/optimizer-00001.safetensors",
    "training_state/optimizer.index.json",
    "training_state/state.json",
)


def make(paths: RunPaths, step: int, *, hashed: bool = True, **state) -> Path:
    folder = paths.checkpoint(step)
    (folder / "training_state").mkdir(parents=True)
    save_file({"w": torch.full((4,), float(step))}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"step": step}))
    save_file({"w/exp_avg": torch.full((4,), float(step))}, folder / "training_state/optimizer-00001.safetensors")
    write_json(folder / "training_state/optimizer.index.json", {"w/exp_avg": "optimizer-00001.safetensors"})
    version = {"schema_version": 2} if hashed else {}
    write_json(folder / "training_state/state.json", {**version, "step": step, **state})
    if hashed:
        write_manifest(folder, step=step)
    return folder


def flip(path: Path, *, where: float = 0.6) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 1
    path.write_bytes(content)


@pytest.fixture
def paths(tmp_path) -> RunPaths:
    paths = RunPaths(tmp_path / "run")
    for step in (1, 2):
        make(paths, step)
    return paths


def start(paths: RunPaths, *, resume="auto", data_hash="h", allow=False, data_changed=False):
    return find_start(
        Claim(paths, False, 0, data_changed),
        resume=str(resume),
        data_hash=data_hash,
        allow_changed_data=allow,
        say=lambda text: None,
    )


def test_hashes_are_those_of_sha256sum(paths):
    found = read_manifest(paths.checkpoint(2))
    assert found.step == 2
    assert tuple(found.files) == FILES
    for name, (size, digest) in found.files.items():
        content = (paths.checkpoint(2) / name).read_bytes()
        assert (size, digest) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["flipped", "cut", "missing"])
def test_damage_is_named_and_the_one_before_is_used(paths, name, kind):
    file = paths.checkpoint(2) / name
    if kind == "flipped":
        flip(file)
    elif kind == "cut":
        os.truncate(file, file.stat().st_size - 1)
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match=f"damaged: {name}"):
        start(paths, resume=paths.checkpoint(2))
    found = start(paths)
    assert (found.checkpoint, found.state.step) == (paths.checkpoint(1), 1)
    assert name in found.notes[0]
    assert "it is now damaged-checkpoint-2" in found.notes[0]
    assert sorted(path.name for path in paths.root.iterdir()) == ["checkpoint-1", "damaged-checkpoint-2"]
    assert start(paths).notes == (), "told once"


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"files": {"config.json": 3}}', '{"step": 2, "files": {}}'])
def test_a_manifest_that_is_none(paths, content):
    file = paths.checkpoint(2) / MANIFEST_FILE
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    assert MANIFEST_FILE in fault_of(paths.checkpoint(2))
    assert newest_intact(paths).checkpoint == paths.checkpoint(1)


def test_every_flipped_byte_of_a_manifest_is_found_or_harmless(paths):
    """A flip in the white space, or in a file's name that is told as missing; never a wrong yes about a file."""
    file = paths.checkpoint(2) / MANIFEST_FILE
    whole = file.read_bytes()
    good = read_manifest(paths.checkpoint(2))
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1
        file.write_bytes(content)
        if fault_of(paths.checkpoint(2)) is None:
            assert read_manifest(paths.checkpoint(2)) == good


def test_nothing_good_is_never_step_0(paths):
    for step in (1, 2):
        flip(paths.checkpoint(step) / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)checkpoint-2: model.*checkpoint-1: model.*--overwrite_output_dir"):
        start(paths)
    assert [step for step, _ in paths.checkpoints()] == [1, 2], "nothing was moved"
    for step in range(3, 8):
        flip(make(paths, step) / "config.json")
    with pytest.raises(CheckpointError) as caught:
        start(paths)
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:-1]] == [
        *(f"checkpoint-{step}" for step in (7, 6, 5, 4, 3)),
        "...",
    ]


def test_no_state_at_all_is_never_step_0(paths):
    for step in (1, 2):
        for file in (paths.checkpoint(step) / "training_state").iterdir():
            file.unlink()
        (paths.checkpoint(step) / "training_state").rmdir()
    with pytest.raises(CheckpointError, match="no training_state/"):
        start(paths)


def test_nothing_at_all_is_step_0(tmp_path):
    (tmp_path / "run/.tmp-x").mkdir(parents=True)  # half written
    found = start(RunPaths(tmp_path / "run"))
    assert (found.checkpoint, found.state, found.notes) == (None, TrainState(data_hash="h"), ())
    assert list((tmp_path / "run").iterdir()) == []


def test_checkpoints_from_before_there_were_hashes(tmp_path):
    paths = RunPaths(tmp_path / "run")
    for step in (1, 2):
        make(paths, step, hashed=False)
    found = start(paths)
    assert found.checkpoint == paths.checkpoint(2)
    assert "from before checkpoints had hashes" in found.notes[0]
    for name in FILES[1:]:
        file = paths.checkpoint(2) / name
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        assert name in fault_of(paths.checkpoint(2))
        file.write_bytes(content)
    (paths.checkpoint(2) / "model.safetensors").unlink()
    assert start(paths).checkpoint == paths.checkpoint(1)


def test_retention_after_going_round_damage(paths):
    """Steps that are written again must not be pruned for the damaged one's higher number."""
    make(paths, 10)
    flip(paths.checkpoint(10) / "config.json")
    set_aside(paths, newest_intact(paths))
    make(paths, 3)
    prune(paths, limit=1)
    assert [step for step, _ in paths.checkpoints()] == [3]
    make(paths, 10)
    flip(paths.checkpoint(10) / "config.json")
    set_aside(paths, newest_intact(paths))
    assert len(list(paths.root.glob("damaged-checkpoint-10*"))) == 2


def test_two_states_are_kept_for_the_case_of_damage(paths):
    make(paths, 3)
    prune(paths, limit=2)
    flip(paths.checkpoint(3) / "model.safetensors")
    assert newest_intact(paths).checkpoint == paths.checkpoint(2)


def test_the_best_model_is_that_of_the_state(paths):
    """checkpoint-3 was the best and is damaged, and with it its hard link: the best of checkpoint-2's state comes back."""
    make(paths, 3)
    link_model(paths.checkpoint(3), paths.best)
    prune(paths, limit=None)  # checkpoint-1 has no state any more, but its model
    with (paths.checkpoint(3) / "model.safetensors").open("r+b") as file:  # in place: the link is the same file
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    state = json.loads((paths.checkpoint(2) / "training_state/state.json").read_text())
    measured = {"best": {"a": 1}, "latest": {"b": 2}}
    write_json(
        paths.checkpoint(2) / "training_state/state.json",
        {**state, "best_step": 1, "best_value": 0.5, "measured": measured},
    )
    (paths.checkpoint(2) / MANIFEST_FILE).unlink()
    write_manifest(paths.checkpoint(2), step=2)
    found = start(paths)
    assert (found.state.best_step, found.state.best_value, found.state.measured) == (1, 0.5, measured)
    assert read_manifest(paths.best).step == 1
    assert (paths.best / "config.json").samefile(paths.checkpoint(1) / "config.json")


def test_folders_that_were_moved_away_and_linked_are_replaced_as_others_are(paths, tmp_path):
    """Every time: no link of an old state stays in the way of the next save. What a link leads to is the user's."""
    make(paths, 3)
    large = tmp_path / "large"
    large.mkdir()
    for folder in (paths.best, paths.checkpoint(1)):
        folder.rename(large / folder.name) if folder.exists() else (large / folder.name).mkdir()
        folder.symlink_to(large / folder.name)
    for step in (2, 3):
        link_model(paths.checkpoint(step), paths.best)
    drop(paths.checkpoint(1))
    assert not paths.best.is_symlink()
    assert (paths.best / "config.json").samefile(paths.checkpoint(3) / "config.json")
    assert not [path for path in paths.root.iterdir() if path.name.startswith(".tmp-") or path.is_symlink()]
    assert {path.name for path in large.iterdir()} == {paths.best.name, "checkpoint-1"}


def test_a_best_model_that_is_gone_is_chosen_anew(tmp_path):
    paths = RunPaths(tmp_path / "run")
    make(paths, 2, best_step=1, best_value=0.5, measured={"best": {"a": 1}, "latest": {"b": 2}})
    found = start(paths)
    assert (found.state.best_step, found.state.best_value, found.state.measured) == (None, None, {"latest": {"b": 2}})
    assert "the best model so far, of step 1, is not there any more" in found.notes[-1]


def test_files_known_to_be_good_are_read_once(paths, monkeypatch):
    hashed = []
    inner = manifests._sha256
    monkeypatch.setattr(manifests, "_sha256", lambda path: hashed.append(path.name) or inner(path))
    folder = make(paths, 3, best_step=3)
    link_model(folder, paths.best)
    del hashed[:]
    assert start(paths).state.best_step == 3
    assert sorted(hashed) == sorted(Path(name).name for name in FILES)


def test_another_runs_checkpoint(paths, tmp_path):
    other = RunPaths(tmp_path / "other")
    other.root.mkdir()
    flip(paths.checkpoint(2) / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot continue from here: model\.safetensors"):
        start(other, resume=paths.checkpoint(2))
    found = start(other, resume=paths.root)
    assert found.checkpoint == paths.checkpoint(1)
    assert "checkpoint-2 is not used: model.safetensors" in found.notes[0]
    assert paths.checkpoint(2).is_dir(), "nothing of another run is touched"
    with pytest.raises(ConfigError, match="no checkpoint there"):
        start(other, resume=tmp_path / "nowhere")


def test_a_named_checkpoint_where_ones_own_are_all_damaged(paths, tmp_path):
    other = RunPaths(tmp_path / "other")
    flip(make(other, 5) / "config.json")
    found = start(other, resume=paths.checkpoint(2))
    assert found.checkpoint == paths.checkpoint(2)
    assert [path.name for path in other.root.iterdir()] == ["damaged-checkpoint-5"]


def test_other_settings_than_a_named_checkpoint_s_are_told(paths, tmp_path):
    other = RunPaths(tmp_path / "other")
    common = {"optimizer": "adamw", "training_run_name": "a"}
    write_json(paths.settings, {"settings": {**common, "seed": 1, "model_init_path": "one"}})
    write_json(other.settings, {"settings": {**common, "training_run_name": "b", "seed": 2, "model_init_path": "two"}})
    for named in (paths.root, paths.checkpoint(2)):
        (note, where) = start(other, resume=named).notes
        assert [line.split() for line in note.splitlines()[1:]] == [
            ["then", "now"],
            ["seed", "1", "2"],
            ["model_init_path", '"one"', '"two"'],
        ]
        assert "checkpoint-2, step 2" in where
    paths.settings.unlink()
    assert start(other, resume=paths.root).notes == ()


def test_other_data(tmp_path):
    first, second = RunPaths(tmp_path / "first"), RunPaths(tmp_path / "second")
    make(first, 2, data_hash="a" * 40, best_step=2, best_value=1.0, measured={"latest": {}})
    with pytest.raises(ConfigError, match=r"other data \(a{12}, now b{12}\); pass --allow_changed_data"):
        start(second, resume=first.root, data_hash="b" * 40)
    found = start(second, resume=first.root, data_hash="b" * 40, allow=True)
    assert (found.state.step, found.state.data_hash, found.state.measured) == (2, "b" * 40, {})
    own = start(first, data_hash="b" * 40, data_changed=True)
    assert (own.state.best_step, own.state.best_value, own.state.measured) == (None, None, {})
