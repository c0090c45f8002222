"""Where caches go when the home folder cannot be written to."""

from pathlib import Path

import pytest

from workflow import caches
from workflow.caches import CACHES, settle_caches


@pytest.fixture
def denied(monkeypatch, tmp_path):
    """A home that access to is denied to: as root, no mode would deny it."""
    home = tmp_path / "home"
    monkeypatch.setattr(caches.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(caches.os, "access", lambda path, _: not Path(path).is_relative_to(home))
    return {"HOME": str(home)}


def test_a_home_that_can_be_written_is_used(tmp_path):
    environment = {"HOME": str(tmp_path)}
    assert settle_caches(environment) is None
    assert environment == {"HOME": str(tmp_path)}


def test_caches_go_elsewhere_and_that_is_told(denied, tmp_path):
    note = settle_caches(denied)
    assert note is not None
    assert f"{denied['HOME']}: this home folder cannot be written to; caches go to {tmp_path}/workflow-caches-" in note
    for name in CACHES:
        assert Path(denied[name]).is_relative_to(tmp_path)
    assert settle_caches(denied) is None, "ranks, which inherit these, say nothing more"


@pytest.mark.parametrize("home", ["/proc/1/nowhere", "/dev/null"])
def test_a_home_that_is_no_folder(monkeypatch, tmp_path, home):
    monkeypatch.setattr(caches.tempfile, "gettempdir", lambda: str(tmp_path))
    environment = {"HOME": home, "MPLCONFIGDIR": "/mine"}
    assert "cannot be written to" in settle_caches(environment)
    assert environment["MPLCONFIGDIR"] == "/mine"


def test_a_hub_cache_that_can_be_read_is_read(monkeypatch, tmp_path):
    hub = tmp_path / "home/.cache/huggingface"
    hub.mkdir(parents=True)
    monkeypatch.setattr(caches.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(caches.os, "access", lambda _, mode: not mode & caches.os.W_OK)
    environment = {"HOME": str(tmp_path / "home")}
    assert settle_caches(environment)
    assert environment["HF_HOME"] == str(hub)


def test_a_folder_of_another_user_is_not_trusted(denied, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"workflow-caches-{caches.os.getuid()}").symlink_to(tmp_path / "elsewhere")
    settle_caches(denied)
    assert not Path(denied["XDG_CACHE_HOME"]).is_symlink()
