"""Outputs that are no regular files: what is written goes through them, links are followed, and nothing is replaced."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.fifo import Fifo
from workflow.console import leave_stdout_to, make_console
from workflow.files import followed, is_stdout, is_stream, whole_file, whole_folder, why_not_writable


@pytest.fixture(autouse=True)
def _stdout_is_free():
    yield
    leave_stdout_to(None)


def test_a_fifo_is_written_through_and_stays(tmp_path):
    fifo = Fifo(tmp_path / "fifo")
    with whole_file(fifo.path) as file:
        file.write("text\n")
    assert fifo.text() == "text\n"
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


def test_a_device_is_written_through_and_stays():
    reading, writing = os.openpty()
    device = Path(os.ttyname(writing))
    with whole_file(device) as file:
        file.write("text")
    assert os.read(reading, 100) == b"text"
    assert stat.S_ISCHR(device.lstat().st_mode)
    assert is_stream(device)
    assert why_not_writable(device) is None
    os.close(reading)
    os.close(writing)


def test_a_reader_gets_nothing_of_a_text_that_failed(tmp_path):
    fifo = Fifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="half"), whole_file(fifo.path) as file:
        file.write("half of it")
        raise ValueError("half")
    with fifo.path.open("w") as file:
        file.write("another")
    assert fifo.text() == "another"


@pytest.mark.parametrize("is_there", [True, False])
def test_links_are_followed(tmp_path, is_there):
    (tmp_path / "other").mkdir()
    target = tmp_path / "other" / "target.json"
    if is_there:
        target.write_text("old")
    (tmp_path / "middle").symlink_to("other/target.json")
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "middle")
    assert why_not_writable(link) is None
    with whole_file(link) as file:
        file.write("new")
    assert target.read_text() == "new"
    assert link.is_symlink()
    assert (tmp_path / "middle").is_symlink()


def test_a_loop_of_links_is_named(tmp_path):
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / one).symlink_to(tmp_path / other)
    assert "symbolic links" in why_not_writable(tmp_path / "a")
    with pytest.raises(OSError, match="symbolic links"), whole_file(tmp_path / "a"):
        pass
    assert not is_stream(tmp_path / "a")


def test_a_link_to_a_folder_that_is_to_be_made_is_followed(tmp_path):
    (tmp_path / "link").symlink_to("made")
    with whole_folder(tmp_path / "link") as folder:
        (folder / "file").write_text("text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "made" / "file").read_text() == "text"


@pytest.mark.parametrize("through_a_link", [False, True])
def test_an_open_file_of_the_process_is_written_on(tmp_path, through_a_link):
    """As `--out /dev/stdout > log`: what the file holds already stays, and what comes later follows."""
    with (tmp_path / "log").open("w") as log:
        log.write("before\n")
        log.flush()
        place = Path(f"/dev/fd/{log.fileno()}")
        if through_a_link:
            (tmp_path / "link").symlink_to(place)
            place = tmp_path / "link"
        with whole_file(place) as file:
            file.write("text\n")
        log.write("after\n")
    assert (tmp_path / "log").read_text() == "before\ntext\nafter\n"


def test_standard_output_has_many_names(tmp_path):
    (tmp_path / "link").symlink_to("/dev/stdout")
    for name in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", tmp_path / "link"):
        assert is_stdout(Path(name))
    for name in ("/dev/stderr", "/dev/fd/2", "./a/-", f"/proc/{os.getppid()}/fd/1"):
        assert not is_stdout(Path(name))
    assert followed(Path("-")) == Path("-")


def test_consoles_leave_standard_output_to_an_output(capfd):
    leave_stdout_to(Path("-"))
    make_console().print("said")
    leave_stdout_to(Path("file"))
    make_console().print("told")
    assert capfd.readouterr() == ("told\n", "said\n")
