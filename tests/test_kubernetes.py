"""The server's manifests render, hold together, and say what the server's own settings, routes and image say."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import PurePosixPath

import pytest
import yaml

from tests.conftest import ROOT
from workflow.cli import COMMANDS
from workflow.config.flags import parse
from workflow.config.settings import Seq2SeqSettings
from workflow.launch import LAST_WORDS_S
from workflow.server.main import DEAD_S, GIVE_UP_S
from workflow.server.middleware import FREE
from workflow.server.settings import PREFIX, ServeSettings, serve_layers

K8S = ROOT / "k8s"
NAME = "workflow-server"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
UNITS = {"Gi": 2**30, "Mi": 2**20}


def test_training_has_time_to_stop_and_is_tried_again():
    [job] = read_folder(K8S / "base")
    pod = job["spec"]["template"]["spec"]
    settings = parse(Seq2SeqSettings, pod["containers"][0]["args"], prog="seq2seq.py", example="x").settings
    assert pod["terminationGracePeriodSeconds"] > settings.run.grace_s + LAST_WORDS_S
    actions = {
        code: rule["action"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert actions == {75: "Ignore", 2: "FailJob"}


def read_folder(folder) -> list[dict]:
    """The resources of a kustomization, as they are written."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    return [
        document
        for name in kustomization["resources"]
        for document in yaml.safe_load_all((folder / name).read_text(encoding="utf-8"))
    ]


def render(folder) -> list[dict]:
    """The resources as kustomize makes them; skipped where neither tool is installed."""
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize", folder]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build", folder]
    else:
        pytest.skip("neither kubectl nor kustomize is installed")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [*yaml.safe_load_all(done.stdout)]


@pytest.fixture(params=["as written", "server", "overlays/server-gpu"])
def resources(request) -> dict:
    """Each kind's one resource."""
    found = read_folder(K8S / "server") if request.param == "as written" else render(K8S / request.param)
    kinds = {resource["kind"]: resource for resource in found}
    assert len(kinds) == len(found)
    assert {resource["metadata"]["name"] for resource in found} == {NAME}
    return kinds


@pytest.fixture
def pod(resources) -> dict:
    return resources["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture
def container(pod) -> dict:
    (container,) = pod["containers"]
    return container


@pytest.fixture
def settings(container) -> ServeSettings:
    """What the server makes of its arguments and environment."""
    environment = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    assert any(name.startswith(PREFIX) for name in environment)
    return parse(
        ServeSettings,
        container["args"],
        prog="workflow serve",
        example="x",
        layers=lambda files, flags: serve_layers(files, flags, environment),
    ).settings


def test_the_command_exists(container):
    program, command = container["command"]
    assert program == "workflow"
    assert command in COMMANDS


def test_the_port_is_one_everywhere(resources, container, settings):
    (port,) = container["ports"]
    assert port["containerPort"] == settings.server.port
    assert settings.server.host == "0.0.0.0"
    assert [found["targetPort"] for found in resources["Service"]["spec"]["ports"]] == [port["name"]]
    allowed = [rule["port"] for way in resources["NetworkPolicy"]["spec"]["ingress"] for rule in way["ports"]]
    assert allowed == [settings.server.port]
    annotations = resources["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(settings.server.port)
    assert annotations["prometheus.io/path"] in FREE


def test_probes_ask_routes_that_need_no_key(container, settings):
    from workflow.server.routes.operations import router

    routes = {route.path for route in router.routes if "GET" in route.methods}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/ready",
        "readiness": "/ready",
        "liveness": "/health",  # never /ready: a pod that drains must not be killed
    }
    assert {probe["path"] for probe in probes.values()} <= routes & FREE
    assert {probe["port"] for probe in probes.values()} == {container["ports"][0]["name"]}
    assert not settings.access.protect_all


def test_there_is_time_for_every_accepted_answer(pod, container, settings):
    before_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert settings.server.grace_s > settings.queue.timeout_s
    assert pod["terminationGracePeriodSeconds"] > before_s + settings.server.grace_s + DEAD_S + GIVE_UP_S
    readiness = container["readinessProbe"]
    assert before_s >= 3 * readiness["periodSeconds"]  # as many failures as make a pod unready


def test_files_stand_where_the_flags_say(pod, container, settings):
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert PurePosixPath(settings.models.models).parent == PurePosixPath(mounts["models"]["mountPath"])
    assert mounts["models"]["readOnly"]
    assert volumes["models"]["persistentVolumeClaim"]["readOnly"]
    keys = PurePosixPath(settings.access.api_key_file)
    assert keys.parent == PurePosixPath(mounts["keys"]["mountPath"])
    assert mounts["keys"]["readOnly"]
    assert [item["path"] for item in volumes["keys"]["secret"]["items"]] == [keys.name]
    assert "optional" not in volumes["keys"]["secret"]  # without keys a server must not start


def test_the_training_job_s_claim_is_the_server_s(pod):
    (job,) = read_folder(K8S / "base")
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volumes in (pod["volumes"], job["spec"]["template"]["spec"]["volumes"])
        for volume in volumes
        if "persistentVolumeClaim" in volume
    ]
    assert claims[0] == claims[1]


def test_the_secret_is_made_as_the_comment_says(pod):
    text = (K8S / "server/kustomization.yaml").read_text(encoding="utf-8")
    secret = next(volume["secret"] for volume in pod["volumes"] if "secret" in volume)
    name, key = re.search(r"create secret generic (\S+) --from-file=(\w+)=", text).groups()
    assert (name, key) == (secret["secretName"], secret["items"][0]["key"])


def test_selectors_find_the_pods(resources):
    labels = resources["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        resources["Deployment"]["spec"]["selector"]["matchLabels"],
        resources["Service"]["spec"]["selector"],
        resources["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        resources["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        resources["Deployment"]["spec"]["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"][
            "matchLabels"
        ],
    ]
    for selector in selectors:
        assert selector == labels
    (job,) = read_folder(K8S / "base")
    assert not labels.items() <= job["spec"]["template"]["metadata"]["labels"].items()


def test_nothing_more_is_allowed_than_needed(resources, pod, container):
    assert resources["ServiceAccount"]["metadata"]["name"] == pod["serviceAccountName"]
    assert resources["ServiceAccount"]["automountServiceAccountToken"] is pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    policy = resources["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert not policy.get("egress")


def test_the_image_runs_as_this_user_and_writes_to_scratch_only(pod, container):
    assert f"USER {pod['securityContext']['runAsUser']}" in DOCKERFILE.splitlines()
    scratch = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "scratch")
    caches = dict(re.findall(r"(HF_HOME|WORKFLOW_CACHE|TRITON_CACHE_DIR)=(\S+)", DOCKERFILE))
    assert len(caches) == 3
    assert all(path.startswith(f"{scratch}/") for path in caches.values())


def test_weights_leave_room(container, settings):
    limit = container["resources"]["limits"]["memory"]
    if "nvidia.com/gpu" not in container["resources"]["limits"]:
        assert settings.models.device == "auto"
        assert settings.models.memory_bytes <= 0.75 * int(limit[:-2]) * UNITS[limit[-2:]]
    else:
        assert settings.models.device == "cuda"
        assert settings.models.preload
    assert container["resources"]["requests"]["memory"] == limit
    assert container["image"].startswith(("workflow", "registry.example.com/workflow:"))


def test_the_training_job_renders():
    assert [resource["kind"] for resource in render(K8S / "base")] == ["Job"]
