"""What others say of the manifests: Kubernetes' own schemas, the models of Kubeflow Trainer and JobSet, checkov.

The tools stand beside this Python or in the environment that WORKFLOW_CLUSTER_TOOLS names (`make cluster-tools`), because checkov pins
what it needs.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.manifests import K8S, OVERLAYS, cluster_tool, only, rendered, resources

OWN_SCHEMAS = {
    "HTTPRoute",
    "ScaledObject",
    "ServiceMonitor",
    "PodMonitor",
    "InferenceService",
    "TrainJob",
    "TrainingRuntime",
    "JobSet",
}
"""Kinds of operators, of which Kubernetes has no schema."""
PARSE = """
import json, sys
from kubeflow_trainer_api import models
wanted = json.load(sys.stdin)
model = getattr(models, sys.argv[1]).from_dict(wanted)
json.dump(model.to_dict(), sys.stdout)
"""


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_own_schemas(overlay, tmp_path):
    validate = cluster_tool("kubernetes-validate")
    file = tmp_path / "all.yaml"
    file.write_text(rendered(overlay))
    done = subprocess.run([validate, "--strict", file], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    unknown = {line.split("for kind ")[1].split()[0] for line in said.splitlines() if "Couldn't find schema" in line}
    assert unknown == {resource["kind"] for resource in resources(overlay)} & OWN_SCHEMAS
    assert said.count(" passed for ") == len(resources(overlay)) - len(unknown)


@pytest.mark.parametrize(
    ("overlay", "kind", "model"),
    [
        ("train-multinode", "TrainJob", "TrainerV1alpha1TrainJob"),
        ("train-multinode", "TrainingRuntime", "TrainerV1alpha1TrainingRuntime"),
        ("train-jobset", "JobSet", "JobsetV1alpha2JobSet"),
    ],
)
def test_operators_models_lose_no_key(overlay, kind, model):
    resource = only(resources(overlay), kind)
    command = [cluster_tool("python"), "-c", PARSE, model]
    given = json.dumps(resource)
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if "No module named" in done.stderr:
        pytest.skip("kubeflow-trainer-api is not installed")
    assert done.returncode == 0, done.stderr
    assert lost(resource, json.loads(done.stdout)) == []


def lost(before, after, where: str = "") -> list[str]:
    """Paths of keys that are not there any more."""
    if isinstance(before, dict):
        missing = [f"{where}.{key}" for key in before if key not in (after or {})]
        return missing + [
            path for key in before if key in (after or {}) for path in lost(before[key], after[key], f"{where}.{key}")
        ]
    if isinstance(before, list):
        if len(before) != len(after):
            return [f"{where}: {len(before)} became {len(after)}"]
        return [path for number, one in enumerate(before) for path in lost(one, after[number], f"{where}.{number}")]
    return []


EXCEPTIONS = {
    "CKV_DOCKER_7": "the base image is an argument, whose default has a tag",
    "CKV_K8S_11": "no CPU limit: throttling would stall collective calls and the server's event loop; memory is limited",
    "CKV_K8S_15": "images are pinned by version: pulling always would only make starts depend on the registry",
    "CKV_K8S_43": "a digest is a site's own: it builds the image",
    "CKV_K8S_35": "HF_TOKEN is what huggingface_hub reads; it may be absent",
}


@pytest.mark.slow
def test_checkov_finds_nothing_unexplained(tmp_path):
    checkov = cluster_tool("checkov")
    for overlay in OVERLAYS:
        (tmp_path / f"{overlay}.yaml").write_text(rendered(overlay))
    kinds = ["--framework", "kubernetes", "dockerfile", "secrets"]
    (tmp_path / "Dockerfile").write_text((ROOT / "Dockerfile").read_text())
    command = [checkov, "--skip-download", "--quiet", "--compact", "--output", "json", *kinds, "-d", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    reports = json.loads(done.stdout)
    reports = reports if isinstance(reports, list) else [reports]
    assert sum(report["summary"]["passed"] for report in reports) > 200
    found = {check["check_id"] for report in reports for check in report["results"]["failed_checks"]}
    assert not EXCEPTIONS.keys() - found, f"explained, and not found any more: {EXCEPTIONS.keys() - found}"
    failed = {
        f"{check['check_id']} {check['check_name']}: {check['resource']}"
        for report in reports
        for check in report["results"]["failed_checks"]
        if check["check_id"] not in EXCEPTIONS
    }
    assert not failed, "\n".join(sorted(failed))


def test_every_file_belongs_to_an_overlay():
    """No manifest lies about that nothing renders; queues.yaml is an administrator's."""
    used: set[Path] = set()

    def follow(folder: Path) -> None:
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        used.add(folder / "kustomization.yaml")
        patches = [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
        files = [name for made in kustomization.get("configMapGenerator", []) for name in made["files"]]
        for name in [*kustomization.get("resources", []), *kustomization.get("components", []), *patches, *files]:
            place = (folder / name).resolve()
            used.add(place)
            if place.is_dir():
                follow(place)

    for overlay in OVERLAYS:
        follow(K8S / "overlays" / overlay)
    files = {path for path in K8S.rglob("*") if path.is_file()}
    assert files - used == {K8S / "components/kueue/queues.yaml"}
    folders = {path for path in (K8S / "components").iterdir() if path.is_dir()}
    assert folders <= used
