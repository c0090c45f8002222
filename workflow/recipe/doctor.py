"""`workflow doctor`: what this machine offers a run, what is wrong with it, and what to do about each.

Knows nothing of any run. Nothing is loaded or downloaded; the only thing written is an empty file that is removed again.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from workflow import __version__
from workflow.console import make_console
from workflow.paths import cache_dir, find_mount

PACKAGES = (
    "torch",
    "transformers",
    "deepspeed",
    "peft",
    "datasets",
    "pyarrow",
    "tokenizers",
    "numpy",
    "fastapi",
    "uvicorn",
)
GIB = 2**30
FREE_GIB = 10
"""Below this, a run of a small model still fits; checkpoints of flan-t5-base, two with their states, take about 9 GiB."""
SHARED_GIB = 1
"""NCCL's buffers between the GPUs of a machine; containers have 64 MiB unless told."""
OPEN_FILES = 4096
KERNEL_CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR")


@dataclass(frozen=True)
class Finding:
    """What was looked at and what was found; `problem` and what to `do` where something is wrong, `fatal` where no run can start."""

    name: str
    found: str
    problem: str = ""
    do: str = ""
    fatal: bool = False


def doctor(*, mount: Path | None, as_json: bool) -> int:
    """Looks at everything and tells it. 0 where runs can start here, 1 where something must be mended first."""
    findings = [finding for look in LOOKS for finding in look(mount)]
    fatal = [finding for finding in findings if finding.fatal]
    if as_json:
        print(json.dumps({"healthy": not fatal, "findings": [asdict(finding) for finding in findings]}, indent=1))
        return 1 if fatal else 0
    console = make_console()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = "WRONG" if finding.fatal else "note " if finding.problem else "ok   "
        console.print(f"{mark}  {finding.name:<{width}}  {finding.found}")
        if finding.problem:
            console.print(f"{'':<{width + 9}}{finding.problem}: {finding.do}")
    console.print(f"\n{len(fatal)} to be mended before a run" if fatal else "\nruns can start here")
    return 1 if fatal else 0


def versions(_: Path | None) -> Iterator[Finding]:
    """Ours, Python's, and those of what we stand on, against the ranges of our own metadata."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("workflow", f"{__version__}, Python {python}, in {Path(__file__).resolve().parents[1]}")
    wanted = _wanted()
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "not installed", "a run needs it", "install workflow with its dependencies", fatal=True)
            continue
        if wanted.get(name, SpecifierSet()).contains(version.partition("+")[0], prereleases=True):
            yield Finding(name, version)
        else:
            yield Finding(name, version, "outside the tested range", "install with -c constraints.txt")


def _wanted() -> dict[str, SpecifierSet]:
    """The ranges that our metadata names; nothing where we are run from a plain checkout."""
    try:
        texts = importlib.metadata.requires("workflow") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {found.name: found.specifier for found in map(Requirement, texts)}


def gpus(_: Path | None) -> Iterator[Finding]:
    """Every visible GPU with its memory; whether the driver is one that torch can use."""
    import torch

    built = torch.version.cuda or torch.version.hip
    count = torch.cuda.device_count()
    if not built:
        if Path("/proc/driver/nvidia/version").exists():
            yield Finding(
                "GPUs", "none", "torch is a CPU build, but there is a driver", "install torch's standard build", True
            )
        else:
            yield Finding("GPUs", "none; torch is a CPU build")
        return
    if not count:
        what = "give the container GPUs (docker run --gpus all), or look at nvidia-smi and CUDA_VISIBLE_DEVICES"
        yield Finding("GPUs", f"none visible; torch is built for {built}", "runs will use the CPU", what)
        return
    for number in range(count):
        shape = torch.cuda.get_device_properties(number)
        try:
            free = f", {torch.cuda.mem_get_info(number)[0] / GIB:.1f} free"
        except RuntimeError as error:
            yield Finding(f"GPU {number}", shape.name, str(error).splitlines()[0], "look at nvidia-smi", fatal=True)
            continue
        yield Finding(f"GPU {number}", f"{shape.name}, {shape.total_memory / GIB:.1f} GiB{free}, CUDA {built}")


def communication(_: Path | None) -> Iterator[Finding]:
    """NCCL where there are GPUs, gloo else."""
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        yield Finding(
            "ranks", "torch has no distributed part", "several ranks cannot run", "another build of torch", fatal=True
        )
        return
    if torch.cuda.device_count() and not dist.is_nccl_available():
        yield Finding("NCCL", "missing", "ranks on GPUs cannot meet", "install torch's standard build", fatal=True)
    elif torch.cuda.device_count():
        yield Finding("NCCL", ".".join(map(str, torch.cuda.nccl.version())))  # type: ignore[no-untyped-call]
    else:
        yield Finding("ranks", "gloo, on CPU")


def memory(_: Path | None) -> Iterator[Finding]:
    """Shared memory, and how many files a process may open."""
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total / GIB
        small = size < SHARED_GIB
        wrong = (
            ("ranks on GPUs may fail for want of it", "docker run --shm-size 16g, or a memory volume") if small else ()
        )
        yield Finding("shared memory", f"{size:.1f} GiB", *wrong)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = 0 <= limit < OPEN_FILES
    wrong = ("a server with many clients needs more", f"ulimit -n {OPEN_FILES}") if few else ()
    yield Finding("open files", "no limit" if limit < 0 else str(limit), *wrong)


def places(mount: Path | None) -> Iterator[Finding]:
    """The mount and the caches: there, writable, with room."""
    root = find_mount(mount)
    if not root.is_dir():
        do = "make it with data/ and models/ in it, or name another by --mount or WORKFLOW_MOUNT"
        yield Finding("mount", str(root), "no such folder", do, fatal=True)
    else:
        models = root / "models"
        why = "data/ and models/ of every run are there"
        yield _place("mount", root, why, fatal=not models.exists())
        if models.exists():
            yield _place("models", models, "runs are written there", fatal=True)
    yield _place("token cache", cache_dir(), "set WORKFLOW_CACHE", fatal=True)
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    yield _place("hub cache", hub, "set HF_HOME, if models are fetched from a hub", fatal=False)
    for variable in KERNEL_CACHES:
        if given := os.environ.get(variable):
            yield _place(variable, Path(given), "compiled kernels are kept there", fatal=False)
    yield _place("temporary files", Path(tempfile.gettempdir()), "set TMPDIR", fatal=True)


def _place(name: str, folder: Path, why: str, *, fatal: bool) -> Finding:
    """Whether a file can be made in a folder, or in the nearest one above it that is there."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        return Finding(name, str(folder), f"{there} is no folder", f"remove it, or name another place; {why}", fatal)
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".tmp-doctor-"):
            pass
    except OSError as error:
        return Finding(name, str(folder), error.strerror or str(error), f"make it writable for this user; {why}", fatal)
    free = shutil.disk_usage(there).free / GIB
    if free < FREE_GIB:
        return Finding(name, f"{folder}, {free:.1f} GiB free", "little room", "a checkpoint takes 12 bytes a parameter")
    return Finding(name, f"{folder}, {free:.1f} GiB free")


LOOKS: tuple[Callable[[Path | None], Iterator[Finding]], ...] = (versions, gpus, communication, memory, places)
