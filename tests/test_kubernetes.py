"""The server's manifests render, hold together, and say what the server's own settings, routes, metrics and image say."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath

import pytest
import yaml

from tests.conftest import ROOT
from tests.manifests import K8S, only, resources
from workflow.cli import COMMANDS
from workflow.config.flags import parse
from workflow.server.main import DEAD_S, GIVE_UP_S
from workflow.server.metrics import Metrics
from workflow.server.middleware import FREE
from workflow.server.settings import PREFIX, ServeSettings, serve_layers

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
UNITS = {"Gi": 2**30, "Mi": 2**20}


@pytest.fixture(params=["serve", "kserve"])
def found(request) -> list[dict]:
    """Everything of an overlay that serves."""
    return resources(request.param)


@pytest.fixture
def pod(found) -> dict:
    for resource in found:
        if resource["kind"] == "Deployment":
            return resource["spec"]["template"]["spec"]
        if resource["kind"] == "InferenceService":
            return resource["spec"]["predictor"]
    raise AssertionError("nothing serves")


@pytest.fixture
def labels(found) -> dict:
    """Of the server's pods."""
    of_kind = {resource["kind"]: resource.get("spec") for resource in found}
    if "Deployment" in of_kind:
        return of_kind["Deployment"]["template"]["metadata"]["labels"]
    return of_kind["InferenceService"]["predictor"]["labels"]


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
        container["args"][2:],
        prog="workflow serve",
        example="x",
        layers=lambda files, flags: serve_layers(files, flags, environment),
    ).settings


def test_the_command_exists(container):
    program, command = container["args"][:2]
    assert "command" not in container, "it would take the place of the image's entry point"
    assert program == "workflow"
    assert command in COMMANDS


def test_the_port_is_one_everywhere(found, container, settings, labels):
    (port,) = container["ports"]
    assert port["containerPort"] == settings.server.port
    assert settings.server.host == "0.0.0.0"
    allowed = [
        rule["port"]
        for policy in policies_of(found, labels)
        for way in policy["spec"].get("ingress", [])
        for rule in way["ports"]
    ]
    assert allowed
    assert set(allowed) == {settings.server.port}
    assert f"EXPOSE {settings.server.port}" in DOCKERFILE.splitlines()


def policies_of(found: list[dict], labels: dict) -> list[dict]:
    """The network policies that name these pods."""
    policies = [one for one in found if one["kind"] == "NetworkPolicy"]
    return [
        one for one in policies if labels.items() >= one["spec"]["podSelector"].get("matchLabels", {"": ""}).items()
    ]


def test_what_stands_before_and_beside_the_server():
    """Service, route, monitor and scaling mean the same port, routes, names and metrics as the program."""
    found = resources("serve")
    service, route = only(found, "Service"), only(found, "HTTPRoute")["spec"]
    deployment = only(found, "Deployment")
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] == deployment["spec"]["template"]["spec"]["containers"][0]["ports"][0]["name"]
    (rule,) = route["rules"]
    assert rule["backendRefs"] == [{"name": service["metadata"]["name"], "port": port["port"]}]
    ways = {match["path"]["value"]: match["path"]["type"] for match in rule["matches"]}
    assert len(ways) <= 8, "more matches than older versions of the Gateway API take"
    for way, kind in ways.items():
        routes = [
            route for route in app_routes() if route == way or (kind == "PathPrefix" and route.startswith(f"{way}/"))
        ]
        assert routes, way
    assert not ways.keys() & FREE, "what needs no key stays inside"
    prefixes = tuple(f"{way}/" for way, kind in ways.items() if kind == "PathPrefix")
    inside = {way for way in app_routes() if way not in ways and not way.startswith(prefixes)}
    assert inside == FREE - {"/openapi.json"} | {"/"}, "the page and operators' routes alone"
    timeouts = {name: float(value.removesuffix("s")) for name, value in rule["timeouts"].items()}
    assert timeouts["request"] >= timeouts["backendRequest"] > ServeSettings().queue.timeout_s
    monitor = only(found, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [(way["port"], way["path"]) for way in monitor["endpoints"]] == [(port["name"], "/metrics")]
    scaled = only(found, "ScaledObject")["spec"]
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"], "two would set it"
    check_scaling(**{name: scaled["triggers"][0]["metadata"][name] for name in ("query", "threshold")})


def test_kserve_scales_by_the_same():
    service = only(resources("kserve"), "InferenceService")
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "keda"
    (metric,) = service["spec"]["predictor"]["autoScaling"]["metrics"]
    external = metric["external"]
    assert external["target"]["type"] == "Value"
    check_scaling(query=external["metric"]["query"], threshold=external["target"]["value"])


def check_scaling(*, query: str, threshold: str) -> None:
    """By the requests that a server has, before all its rows are taken."""
    assert set(re.findall(r"(\w+:\w+)\{", query)) == {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
    }
    assert metrics_in(query) <= exported()
    assert int(threshold) < ServeSettings().engine.max_rows


def app_routes() -> set[str]:
    from workflow.server.routes import generating, openai, operations, scoring

    return {route.path for module in (generating, openai, operations, scoring) for route in module.router.routes}


def exported() -> set[str]:
    """Every name of a sample that the server tells, once each has been used."""
    metrics = Metrics()
    metrics.accepted("run", [3])
    metrics.answered("run", "stop", 2)
    metrics.ended("run", 200, 0.1)
    metrics.occupied("run", requests=1, rows=1, loaded_bytes=1)
    metrics.first_token.labels("run").observe(1)
    metrics.token_gap.labels("run").observe(1)
    metrics.responses.labels("/generate", "200").inc()
    return set(re.findall(r"^([\w:]+)(?:\{| )", metrics.text().decode(), re.MULTILINE))


def metrics_in(query: str) -> set[str]:
    return set(re.findall(r"\b((?:vllm|workflow):\w+)", query))


def test_the_dashboard_shows_what_is_exported():
    text = (K8S / "components/monitoring/dashboard.json").read_text(encoding="utf-8")
    assert only(resources("serve"), "ConfigMap")["data"]["dashboard.json"] == text
    dashboard = json.loads(text)
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = set().union(*map(metrics_in, queries))
    assert shown <= exported(), shown - exported()
    every = {name for name in exported() if not re.search("_(sum|count|created)$", name)}
    assert every <= shown, every - shown
    labels = {
        label for query in queries for group in re.findall(r"by \(([^)]+)\)", query) for label in group.split(", ")
    }
    assert labels <= {"model_name", "route", "status", "finished_reason", "le"}


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


def test_the_claim_is_the_one_that_is_trained_on(found, pod):
    volume = next(volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume)
    assert volume["persistentVolumeClaim"]["claimName"] == only(found, "PersistentVolumeClaim")["metadata"]["name"]


def test_the_secret_is_made_as_the_comment_says(pod):
    text = (K8S / "base/serve/kustomization.yaml").read_text(encoding="utf-8")
    secret = next(volume["secret"] for volume in pod["volumes"] if "secret" in volume)
    name, key = re.search(r"create secret generic (\S+) --from-file=(\w+)=", text).groups()
    assert (name, key) == (secret["secretName"], secret["items"][0]["key"])


def test_selectors_find_the_pods():
    found = resources("serve")
    deployment = only(found, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    for selector in (
        deployment["selector"]["matchLabels"],
        only(found, "Service")["spec"]["selector"],
        only(found, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        deployment["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector == labels
    assert len(policies_of(found, labels)) == 3


def test_nothing_more_is_allowed_than_needed(found, pod, container, labels):
    assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    policies = policies_of(found, labels)
    assert ["Ingress", "Egress"] in [policy["spec"]["policyTypes"] for policy in policies]
    assert not any(policy["spec"].get("egress") for policy in policies), "the server connects to nobody"
    assert only(found, "NetworkPolicy", "workflow-nothing")["spec"]["podSelector"] == {}


def test_the_image_runs_as_this_user_and_writes_to_scratch_only(pod, container):
    assert f"USER {pod['securityContext']['runAsUser']}" in DOCKERFILE.splitlines()
    scratch = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "scratch")
    caches = re.findall(r"(?:_HOME|_CACHE|_DIR|HOME)=(\S+)", DOCKERFILE.rpartition("\nFROM ")[2])
    assert len(caches) >= 7
    assert {PurePosixPath(path).parts[1] for path in caches} == {PurePosixPath(scratch).parts[1]}


def test_weights_leave_room(container, settings):
    limits = container["resources"]["limits"]
    assert settings.models.device == ("cuda" if "nvidia.com/gpu" in limits else "auto")
    assert container["resources"]["requests"]["memory"] == limits["memory"]
    assert settings.models.memory_bytes > 0


def test_the_base_s_weights_leave_room():
    """Without a GPU, weights and work share one limit."""
    _, deployment = yaml.safe_load_all((K8S / "base/serve/deployment.yaml").read_text(encoding="utf-8"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (weights,) = [int(one["value"]) for one in container["env"] if one["name"] == PREFIX + "MEMORY_BYTES"]
    limit = container["resources"]["limits"]["memory"]
    assert weights <= 0.75 * int(limit[:-2]) * UNITS[limit[-2:]]
