"""A release: one version everywhere, and archives that install into an empty environment with all that belongs to the package."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def declared() -> set[str]:
    """Distributions that pyproject.toml names, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {canonicalize_name(Requirement(line).name) for line in lines}


OWN_ADVICE = {"ctranslate2", "triton"}
"""Used where they are, of whose absence a message tells; torch's CUDA build brings Triton along."""


def test_everything_imported_is_declared():
    """A package that only comes along with another may leave with its next version."""
    imported = set()
    for path in [*(ROOT / "workflow").rglob("*.py"), ROOT / "seq2seq.py", ROOT / "clf.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    foreign = imported - sys.stdlib_module_names - {"workflow"} - OWN_ADVICE
    known = packages_distributions()
    assert {"starlette", "h11", "packaging"} <= foreign
    of_extras = {"mlflow": ["mlflow-skinny"]}  # which need not be installed here
    named = {name: known.get(name) or of_extras.get(name) or [name] for name in foreign}
    missing = {name: ones for name, ones in named.items() if not declared() & set(map(canonicalize_name, ones))}
    assert missing == {}


def test_advice_installs_from_the_checkout():
    """`pip install workflow` is a stranger's package."""
    texts = [
        *(ROOT / "workflow").rglob("*.py"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
    ]
    wrong = [str(path) for path in texts if re.search(r"pip install [\"']?workflow\b", path.read_text())]
    assert wrong == []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in texts:
        for named in re.findall(r"(?:pip install -e ['\"]\.\[|install_command\(')([a-z0-9]+)", path.read_text()):
            assert named in extras, (path, named)


def test_what_reaches_into_a_package_is_bounded():
    """The server stands in uvicorn's protocol class, whose members are not public: the next version may rename them."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from workflow.server import http_protocol

    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bounds = {Requirement(line).name: str(Requirement(line).specifier) for line in lines}
    assert "<" in bounds["uvicorn"]
    assert "<" in bounds["h11"]
    (protocol,) = [
        one for one in vars(http_protocol).values() if isinstance(one, type) and H11Protocol in one.__bases__
    ]
    assert issubclass(protocol, H11Protocol)


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
