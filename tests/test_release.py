"""A release: one version everywhere, and archives that install into an empty environment with all that belongs to the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import pytest

from tests.conftest import ROOT
from workflow import __version__

BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


def test_the_version_stands_in_one_place():
    """What must repeat it says the same."""
    assert f"ARG VERSION={__version__}\n" in (ROOT / "Dockerfile").read_text()
    assert re.search(rf"^## {re.escape(__version__)} ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert 'version = { attr = "workflow.__version__" }' in (ROOT / "pyproject.toml").read_text()
    for file in (ROOT / "k8s").rglob("kustomization.yaml"):
        for tag in re.findall(r"newTag: (\S+)", file.read_text()):
            assert tag == f'"{__version__}"', file


def built(kind: str, source, out):
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(out)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if "Deprecat" in line]
    assert not warned, warned
    return out / done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_archives_install_into_an_empty_environment(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "workflow", source / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    archive = built("build_sdist", source, tmp_path)
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = built("build_wheel", unpacked, tmp_path)
    assert archive.name == f"workflow-{__version__}.tar.gz"
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("workflow/")}
    files = {path.relative_to(source).as_posix() for path in (source / "workflow").rglob("*") if path.is_file()}
    assert files - held == set(), "package data that pyproject.toml does not name"
    check_installed(wheel, tmp_path / "empty")


def check_installed(wheel, folder) -> None:
    """The wheel alone in an environment of its own, which sees this one's packages as its dependencies."""
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    told = subprocess.run(
        [folder / "bin/workflow", "--version"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert told.stdout == f"workflow {__version__}\n"
    script = "import workflow, workflow.server.app; print(workflow.__file__)"
    where = subprocess.run([python, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    assert where.stdout.startswith(str(site))
