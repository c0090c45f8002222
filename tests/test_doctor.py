"""`workflow doctor` tells what it found, and what is wrong, each by its own cause."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.container import give_away, without_privileges
from workflow.cli import workflow
from workflow.recipe import doctor


def looked(capsys, mount, *more) -> tuple[int, dict[str, dict]]:
    code = workflow(["doctor", "--json", "--mount", str(mount), *more])
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"] is (code == 0)
    return code, {finding["name"]: finding for finding in found["findings"]}


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "mount/models").mkdir(parents=True)
    monkeypatch.setenv("WORKFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "mount"


def test_a_machine_that_is_well(place, capsys):
    code, found = looked(capsys, place)
    assert code == 0
    assert {"workflow", "torch", "transformers", "mount", "models", "token cache", "open files"} <= set(found)
    assert "GiB free" in found["mount"]["found"]
    assert not found["transformers"]["problem"]
    assert workflow(["doctor", "--mount", str(place)]) == 0
    assert "runs can start here" in capsys.readouterr().out
    assert list(place.iterdir()) == [place / "models"]


def test_no_mount(tmp_path, capsys):
    code, found = looked(capsys, tmp_path / "missing")
    assert code == 1
    assert found["mount"]["problem"] == "no such folder"
    assert "--mount" in found["mount"]["do"]


def test_little_room_and_little_shared_memory(place, capsys, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(64 << 20, 0, 64 << 20))
    code, found = looked(capsys, place)
    assert code == 0
    assert found["mount"]["problem"] == "little room"
    if "shared memory" in found:
        assert "--shm-size" in found["shared memory"]["do"]


def test_few_open_files(place, capsys, monkeypatch):
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (256, 256))
    assert "ulimit" in looked(capsys, place)[1]["open files"]["do"]


def test_a_missing_package_and_an_old_one(place, capsys, monkeypatch):
    import importlib.metadata

    real = importlib.metadata.version

    def version(name):
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return "4.30.0" if name == "transformers" else real(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: ["transformers>=5.23,<6"])
    code, found = looked(capsys, place)
    assert code == 1
    assert found["peft"]["fatal"]
    assert found["transformers"]["problem"] == "outside the tested range"


def test_files_in_the_place_of_folders(place, capsys, monkeypatch):
    (place / "models").rmdir()
    (place / "models").write_text("")
    (place.parent / "cache").write_text("")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(place.parent / "cache/triton"))
    code, found = looked(capsys, place)
    assert code == 1
    assert found["models"]["problem"] == f"{place / 'models'} is no folder"
    assert found["token cache"]["fatal"]
    assert found["TRITON_CACHE_DIR"]["problem"]
    assert not found["TRITON_CACHE_DIR"]["fatal"]


@pytest.mark.slow
def test_caches_that_cannot_be_written(tmp_path):
    """As in a container whose user owns nothing but the mount."""
    privileges = without_privileges()
    (tmp_path / "home").mkdir()
    give_away(tmp_path / "home")
    (tmp_path / "mount").mkdir()
    environment = {**os.environ, "WORKFLOW_CACHE": str(tmp_path / "home/cache"), "PYTHONPATH": str(ROOT)}
    command = [*privileges, sys.executable, "-m", "workflow", "doctor", "--mount", str(tmp_path / "mount")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert "WRONG  token cache" in done.stdout
    assert "make it writable" in done.stdout


@pytest.mark.slow
def test_a_mount_whose_models_alone_can_be_written(tmp_path):
    """As in the image, where it is enough for a run."""
    privileges = without_privileges()
    (tmp_path / "mount/models").mkdir(parents=True)
    give_away(tmp_path / "mount")
    (tmp_path / "mount/models").chmod(0o777)
    environment = {**os.environ, "WORKFLOW_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [*privileges, sys.executable, "-m", "workflow", "doctor", "--mount", str(tmp_path / "mount")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "note   mount" in done.stdout
