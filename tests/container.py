"""The image as buildah builds and runs it, without an engine: a Debian base, wheels fetched once, the repository's Dockerfile."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

IMAGE = "localhost/workflow:test"
BASE = "localhost/base:bookworm"
TOOLS = ("buildah", "mmdebstrap")
LIMIT_S = 1800
"""What is not done within this time hangs."""


class Container:
    """A container of the image; commands run in it as its own user, after its entry point, in its working directory."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.buildah = self._on("overlay")
        if subprocess.run([*self.buildah, "info"], capture_output=True, check=False, timeout=LIMIT_S).returncode:
            self.buildah = self._on("vfs")  # each container is a copy: slow and large, and possible everywhere
        self.name = ""

    def _on(self, driver: str) -> list[str]:
        places = ("--root", str(self.store / driver), "--runroot", str(self.store / f"{driver}-run"))
        return ["buildah", *places, "--storage-driver", driver]

    def call(self, *arguments: object) -> str:
        command = [*self.buildah, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
        assert done.returncode == 0, f"{arguments}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    def build(self) -> None:
        """The image, unless the store has it already."""
        if IMAGE in self.call("images", "--format", "{{.Name}}:{{.Tag}}").split():
            return
        base, wheels = self.store / "base", self.store / "wheels"
        base.mkdir(parents=True, exist_ok=True)
        packages = "ca-certificates,python3,python3-venv,tini"
        command = ["mmdebstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(base / "rootfs.tar")]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT_S)
        (base / "Dockerfile").write_text("FROM scratch\nADD rootfs.tar /\n")
        kind = ("--isolation", "chroot", "--layers=false", "--format", "docker", "--quiet")
        self.call("bud", *kind, "-t", BASE, base)
        fetch_wheels(wheels)
        given = {"BASE_IMAGE": BASE, "ACCELERATOR": "cpu", "PIP_ARGS": "--no-index --find-links=/wheels"}
        arguments = [word for name, value in given.items() for word in ("--build-arg", f"{name}={value}")]
        self.call("bud", *kind, "--volume", f"{wheels}:/wheels:ro", *arguments, "-t", IMAGE, ROOT)

    def config(self) -> dict:
        return json.loads(self.call("inspect", "--type", "image", IMAGE))["Docker"]["config"]

    def start(self, *command: object, volumes: dict[Path, str], **options) -> subprocess.Popen:
        words = [word for place, target in volumes.items() for word in ("--volume", f"{place}:{target}")]
        entry = self.config()["Entrypoint"]
        given = [*self.buildah, "run", "--isolation", "chroot", *words, self.name, "--", *entry, *map(str, command)]
        environment = {**os.environ, "TINI_SUBREAPER": "1"}
        return subprocess.Popen(
            given, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )

    def run(self, *command: object, volumes: dict[Path, str]) -> subprocess.CompletedProcess:
        process = self.start(*command, volumes=volumes)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def fetch_wheels(folder: Path) -> None:
    """What the image installs, each checked by its hash but the build of torch."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    locked = [word for name in ("build", "image") for word in ("-r", str(ROOT / f"requirements/{name}.txt"))]
    subprocess.run([*pip, "--require-hashes", *locked], check=True, capture_output=True, text=True, timeout=LIMIT_S)
    torch = ["-c", str(ROOT / "constraints.txt"), "torch"]
    subprocess.run([*pip, *torch], check=True, capture_output=True, text=True, timeout=LIMIT_S)


def make_container(folder: Path) -> Container:
    """A container of the image, built in the folder that WORKFLOW_TEST_IMAGE names, which keeps it for the next time."""
    kept = os.environ.get("WORKFLOW_TEST_IMAGE")
    if not kept:
        pytest.skip("building the image takes some minutes and 3 GB: WORKFLOW_TEST_IMAGE=FOLDER builds it there")
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("needs root: a base is made by mmdebstrap, and runs in a chroot")
    container = Container(Path(kept))
    container.build()
    container.name = f"test-{os.getpid()}-{folder.name}"
    container.call("from", "--name", container.name, IMAGE)
    return container


def children(pid: int) -> list[int]:
    """All processes below one; any of its threads may have started them."""
    own = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            own += [int(child) for child in (thread / "children").read_text().split()]
    return [*own, *(deeper for child in own for deeper in children(child))]


def first_process(pid: int, *, timeout: float = 60) -> int:
    """The entry point's process below buildah's, which is told to stop as an engine would tell it."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        for child in children(pid):
            try:
                words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            except OSError:
                continue
            if words[0].endswith("tini"):
                return child
        time.sleep(0.1)
    raise AssertionError("the entry point never started")


def without_privileges() -> list[str]:
    """Words before a command that let root write to its own files alone, as any other user may; skips where that is not to be had.

    Another user could not even start a Python that lies in root's home.
    """
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv, to be a user who may not write")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def give_away(*places: Path) -> None:
    """Makes files and folders another user's, readable for all, as in an image."""
    subprocess.run(["chmod", "-R", "a+rX", *map(str, places)], check=True)
    subprocess.run(["chown", "-R", "10001:10001", *map(str, places)], check=True)
