"""What trains on Kubernetes: words, exit codes, time to stop and network are those of the program, on one node and on several."""

from __future__ import annotations

import json
import re

import pytest
from prometheus_client import generate_latest

from tests.conftest import ROOT
from tests.manifests import K8S, OVERLAYS, TRAINING, only, rendered, resources, settings_of, trainer
from tests.test_many_nodes import free_port
from workflow import __version__
from workflow.errors import BackendError, ConfigError, DataError, ModelError, RunExistsError, StartAgain, Stopped
from workflow.launch import LAST_WORDS_S
from workflow.paths import run_name
from workflow.training.exporter import Exporter

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture(params=TRAINING)
def overlay(request) -> str:
    return request.param


def test_the_words_are_understood(overlay):
    _, pod, words = trainer(overlay)
    assert (ROOT / words[words.index("seq2seq.py")]).is_file()
    assert f"COPY pyproject.toml README.md LICENSE {words[words.index('seq2seq.py')]}" in DOCKERFILE
    assert settings_of(words).run.max_restarts == 0
    assert "command" not in pod["containers"][0], "it would take the place of the image's entry point"
    assert words[0] == "python3"


def test_exit_codes_are_the_program_s(overlay):
    """75 is tried again without counting, 2 never, 1 counts."""
    job, pod, _ = trainer(overlay)
    rules = job["spec"]["podFailurePolicy"]["rules"]
    again, never = StartAgain("").exit_code, ConfigError("").exit_code
    assert Stopped(15).exit_code == again
    assert {kind("").exit_code for kind in (DataError, ModelError, RunExistsError)} == {never}
    by_code = {code: rule for rule in rules for code in rule.get("onExitCodes", {}).get("values", [])}
    assert by_code.keys() == {again, never}
    assert BackendError("").exit_code not in by_code
    assert by_code[again]["action"] == "Ignore"
    assert by_code[never]["action"] == ("FailIndex" if overlay == "sweep" else "FailJob")
    assert {rule["onExitCodes"]["containerName"] for rule in by_code.values()} == {pod["containers"][0]["name"]}
    (disrupted,) = [rule for rule in rules if "onPodConditions" in rule]
    assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert job["spec"]["podReplacementPolicy"] == "Failed"


def test_there_is_time_to_stop(overlay):
    """Pod > what the ranks have > the update and the save, which only the user knows."""
    _, pod, words = trainer(overlay)
    environment = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    own_s = settings_of(words).run.grace_s
    stop_s = float(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) if "workflow.torchrun" in words else own_s
    assert pod["terminationGracePeriodSeconds"] > stop_s + LAST_WORDS_S


def test_a_wrong_input_ends_all_nodes():
    for name, kind in (("train-multinode", "TrainingRuntime"), ("train-jobset", "JobSet")):
        spec = only(resources(name), kind)["spec"]
        policy = (spec["template"]["spec"] if kind == "TrainingRuntime" else spec)["failurePolicy"]
        assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [
            ("FailJobSet", ["PodFailurePolicy"])
        ]
        assert policy["maxRestarts"] > 0


def test_ranks_are_the_gpus():
    """A TrainJob's numbers and a JobSet's flags are those of the resources."""
    job = only(resources("train-multinode"), "TrainJob")["spec"]["trainer"]
    assert str(job["numProcPerNode"]) == job["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    assert job["numNodes"] == 2
    jobset = only(resources("train-jobset"), "JobSet")
    part, pod, words = jobset["spec"]["replicatedJobs"][0], *trainer("train-jobset")[1:]
    flags = dict(word.lstrip("-").split("=") for word in words if word.startswith("--n"))
    assert flags["nproc_per_node"] == pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert int(flags["nnodes"]) == part["template"]["spec"]["completions"] == part["template"]["spec"]["parallelism"]
    first = f"{jobset['metadata']['name']}-{part['name']}-0-0.{jobset['metadata']['name']}"
    assert f"--master_addr={first}" in words
    assert jobset["spec"]["network"]["enableDNSHostnames"]


def test_several_nodes_run_what_one_node_runs():
    one = settings_of(trainer("train")[2])
    for name in ("train-multinode", "train-jobset"):
        assert settings_of(trainer(name)[2]).training == one.training


def test_an_index_is_a_run_of_its_own():
    job, pod, words = trainer("sweep")
    settings = settings_of(words)
    assert settings.run.seed == 7
    assert settings.run.training_run_name is None
    assert run_name("model", "data", "7").endswith("_7")
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["maxFailedIndexes"] == job["spec"]["completions"]
    assert "JOB_COMPLETION_INDEX" in {one["name"] for one in pod["containers"][0]["env"]}


def test_files_stand_where_the_program_looks(overlay):
    _, pod, _ = trainer(overlay)
    (container,) = pod["containers"]
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert mounts.keys() == volumes.keys()
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert environment["WORKFLOW_MOUNT"] == mounts["mount"]
    assert environment["WORKFLOW_PREDS"] == f"{mounts['mount']}/preds"
    claim = only(resources(overlay), "PersistentVolumeClaim")
    assert volumes["mount"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    caches = re.findall(r"(?:_HOME|_CACHE|_DIR|HOME)=(\S+)", DOCKERFILE.rpartition("\nFROM ")[2])
    assert len(caches) >= 7
    assert {path.split("/")[1] for path in caches} == {mounts["scratch"].strip("/")}
    assert mounts["shared-memory"] == "/dev/shm"
    assert volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"


def test_pods_are_restricted(overlay):
    _, pod, _ = trainer(overlay)
    assert f"USER {pod['securityContext']['runAsUser']}" in DOCKERFILE.splitlines()
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    labels = only(resources(overlay), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_ranks_reach_each_other_and_names_and_nothing_else(overlay):
    found, (job, _, _) = resources(overlay), trainer(overlay)
    policies = {one["metadata"]["name"]: one["spec"] for one in found if one["kind"] == "NetworkPolicy"}
    assert policies["workflow-nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ours = policies["workflow-train"]
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert ours["podSelector"]["matchLabels"].items() <= labels.items()
    assert ours["ingress"] == [{"from": [{"podSelector": ours["podSelector"]}]}]
    each_other, names = ours["egress"]
    assert each_other == {"to": [{"podSelector": ours["podSelector"]}]}
    assert {port["port"] for port in names["ports"]} == {53}
    hub = policies["workflow-train-hub"]["egress"][0]
    assert hub["ports"] == [{"protocol": "TCP", "port": 443}]
    assert "10.0.0.0/8" in hub["to"][0]["ipBlock"]["except"]
    server = {**labels, "app.kubernetes.io/component": "server"}
    assert not any(
        spec["podSelector"].get("matchLabels", {"x": 1}).items() <= server.items() for spec in policies.values()
    )


def test_jobs_wait_in_the_queue(overlay):
    import yaml

    queues = [*yaml.safe_load_all((K8S / "components/kueue/queues.yaml").read_text())]
    queue = only(queues, "LocalQueue")["metadata"]
    kind = {"train-multinode": "TrainJob", "train-jobset": "JobSet"}.get(overlay, "Job")
    job = only(resources(overlay), kind)["metadata"]
    assert job["labels"]["kueue.x-k8s.io/queue-name"] == queue["name"]
    assert job["namespace"] == queue["namespace"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_images_are_this_version_s(name):
    found = re.findall(r"image: (\S+)", rendered(name))
    assert found
    assert set(found) == {f"registry.example.com/workflow:{__version__}"}


def test_what_is_monitored_is_what_a_run_tells():
    """Port and names of figures are the program's; only who watches may reach the port."""
    found = resources("train")
    _, pod, words = trainer("train")
    settings = settings_of(words).tracking
    (port,) = pod["containers"][0]["ports"]
    assert (settings.metrics_port, settings.metrics_host) == (port["containerPort"], "0.0.0.0")
    monitor = only(found, "PodMonitor")["spec"]
    assert [(end["port"], end["path"]) for end in monitor["podMetricsEndpoints"]] == [(port["name"], "/metrics")]
    labels = only(found, "Job")["spec"]["template"]["metadata"]["labels"]
    policy = only(found, "NetworkPolicy", "workflow-train-monitoring")["spec"]
    for chosen in (monitor["selector"], policy["podSelector"]):
        assert chosen["matchLabels"].items() <= labels.items()
    (rule,) = policy["ingress"]
    assert [one["port"] for one in rule["ports"]] == [port["containerPort"]]
    board = (K8S / "components/train-monitoring/dashboard.json").read_text(encoding="utf-8")
    assert only(found, "ConfigMap")["data"]["dashboard.json"] == board
    queries = [target["expr"] for panel in json.loads(board)["panels"] for target in panel["targets"]]
    shown = {name for query in queries for name in re.findall(r"workflow_training_\w+", query)}
    assert shown == told()


def told() -> set[str]:
    """Every name of a sample that a run tells, once each has been used."""
    exporter = Exporter(free_port(), "127.0.0.1", {"run": "r", "task": "clf"})
    try:
        exporter.log(1, dict.fromkeys(("loss", "lr", "grad_norm", "tokens_per_s", "examples"), 1.0), "train")
        exporter.log(1, {"auc": 0.5}, "eval")
        exporter.log(1, {}, "checkpoint")
        text = generate_latest(exporter.registry).decode()
    finally:
        exporter.close(finished=True)
    found = set(re.findall(r"^(workflow_training_\w+)(?:\{| )", text, re.MULTILINE))
    return {name for name in found if not name.endswith("_created")}
