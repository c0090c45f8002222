"""`workflow jobs render` and the executors that need a cluster: golden files, validators, stand-ins for kubectl and ctl."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.manifests import cluster_tool
from workflow.cli import workflow
from workflow.config.clf_settings import ClfSettings
from workflow.config.flags import parse
from workflow.config.settings import Seq2SeqSettings
from workflow.errors import ConfigError, JobError, TemplateError
from workflow.jobs.ctl import CtlExecutor
from workflow.jobs.executors import make_executor
from workflow.jobs.fields import Site
from workflow.jobs.job import Job, JobRecord, Status
from workflow.jobs.kubernetes import KubernetesExecutor, numbers
from workflow.jobs.names import ctl_name, dns_name
from workflow.jobs.template import HERE

GOLDEN = Path(__file__).parent / "golden"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
RUN = shlex.split(
    "--model_init_name flan-t5-xxl --training_run_name 0216syn_explain --gradient_accumulation_steps 2 --train_batch_size 8 "
    "--max_steps 6001 --data synthetic_explain --eval_steps 2000 --temperature 0.001 --n_samples 1"
)
CONTRACT = [
    """ctl job run --name 0216synexplain --container IMAGE --login --high-priority --shared-host-dir /home/USER --gpu 4 """
    """--command 'bash -c "cd data/workflow; python3 seq2seq.py --model_init_name flan-t5-xxl --training_run_name """
    """0216syn_explain --gradient_accumulation_steps 2 --train_batch_size 8 --max_steps 6001 --data synthetic_explain """
    """--eval_steps 2000 --temperature 0.001 --n_samples 1"'""",
    """ctl job run --name hardnewsgold --gpus-type "NVIDIA-A100-SXM4-80GB" --container IMAGE --gpu 4 """
    """--command 'bash -c "cd data/workflow; python3 clf.py --model_pretrain_name "google/flan-t5-xl" """
    """--data_name 1226verifier_ft_all --max_steps 2001 --eval_steps 2000 --save_steps 2000"'""",
]


@pytest.fixture(autouse=True)
def plain_folder(tmp_path, monkeypatch):
    """A checkout's launchers, and nothing else that could have a say."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORKFLOW_MOUNT", raising=False)
    for name in ("seq2seq.py", "clf.py"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def render(capsys):
    def make(*argv: str) -> str:
        assert workflow(["jobs", "render", *argv]) == 0
        return capsys.readouterr().out

    return make


def inner(command: str) -> list[str]:
    """The program's argv, as the shells would see it: ctl's command, bash's, the line after `cd`."""
    argv = shlex.split(command)
    bash = shlex.split(argv[argv.index("--command") + 1])
    assert bash[:2] == ["bash", "-c"]
    return shlex.split(" ".join(bash[2:]).split("; ", 1)[1])


def test_the_contract_s_command_comes_out_word_by_word(render):
    options = "--login --high-priority --shared-host-dir /home/USER"
    made = render("--template", "ctl", "--image", "IMAGE", "--gpus", "4", "--options", options, *RUN)
    assert made == CONTRACT[0].replace("--gpu 4 ", "--gpu 4 --restart-on-failure ") + "\n"


def test_the_contract_s_second_command_means_the_same(render):
    flags = "--model_pretrain_name google/flan-t5-xl --data_name 1226verifier_ft_all --max_steps 2001 --eval_steps 2000 --save_steps 2000"
    more = ["--job_name", "hardnewsgold", "--gpus_type", "NVIDIA-A100-SXM4-80GB", "--image", "IMAGE", "--gpus", "4"]
    made = render("--template", "ctl", *more, "clf", *shlex.split(flags))
    assert inner(made) == inner(CONTRACT[1])
    before, after = (shlex.split(text) for text in (CONTRACT[1], made))
    assert before[: before.index("--command")] == [
        word for word in after[: after.index("--command")] if word != "--restart-on-failure"
    ]


@pytest.mark.parametrize("nasty", ["it's", 'a "b" c', "$(touch x) `y` $HOME \\", "a; b && c", "ünïcode\n2", "!x #y"])
def test_ctl_s_command_splits_back(render, nasty):
    made = render("--template", "ctl", "--image", "i:1", "--model_init_path", nasty, "--data_name", "d")
    assert inner(made) == ["python3", "seq2seq.py", "--model_init_path", nasty, "--data_name", "d"]


GOLDENS = {
    "slurm.sh": ["--template", "slurm", "--gpus", "4", "--timeout", "12h", "--partition", "a100", *RUN],
    "slurm-nodes.sh": ["--template", "slurm", "--nodes", "2", "--gpus", "8", "--options=--qos=high", *RUN],
    "kubernetes.yaml": ["--template", "kubernetes", "--image", "workflow:1", "--gpus", "4", "--queue", "team", *RUN],
    "kubernetes-nodes.yaml": ["--template", "kubernetes", "--nodes", "2", "--gpus", "8", "--image", "workflow:1", *RUN],
    "shell.sh": ["--template", "shell", *RUN],
}


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(render, name, plain_folder):
    golden(name, render(*GOLDENS[name]).replace(str(plain_folder), "/FOLDER"))


def golden(name: str, made: str) -> None:
    file = GOLDEN / name
    if os.environ.get("WORKFLOW_ACCEPT") == "1":
        file.parent.mkdir(exist_ok=True)
        file.write_text(made, encoding="utf-8")
    assert made == file.read_text(encoding="utf-8"), (
        f"{file} differs; look at the difference, then accept it with WORKFLOW_ACCEPT=1 pytest {Path(__file__).name}"
    )


def pod_of(job: dict) -> dict:
    return job["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", [name for name in GOLDENS if name.startswith("kubernetes")])
def test_manifests_agree_with_the_code(render, name):
    *_, job = yaml.safe_load_all(render(*GOLDENS[name]))
    pod, (container,) = pod_of(job), pod_of(job)["containers"]
    assert container["args"] == RUN
    settings = parse(Seq2SeqSettings, container["args"], prog="", example="").settings
    assert pod["terminationGracePeriodSeconds"] > settings.run.grace_s + 10
    assert f"USER {pod['securityContext']['runAsUser']}" in DOCKERFILE
    scratch = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "scratch")
    variables = {one["name"]: one.get("value") for one in container["env"]}
    for cache in re.findall(r"(HF_HOME|WORKFLOW_CACHE|TRITON_CACHE_DIR)=", DOCKERFILE):
        assert variables[cache].startswith(f"{scratch}/")
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {one["name"] for one in pod["volumes"]} == {one["name"] for one in container["volumeMounts"]}
    actions = {
        code: rule["action"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert actions == {75: "Ignore", 2: "FailJob"}


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*.yaml")))
def test_manifests_are_valid(name):
    """Other tests hold what is rendered to these files."""
    command = [cluster_tool("kubernetes-validate"), "--strict", GOLDEN / name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed for " in done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*.yaml")))
def test_pods_are_those_that_the_policies_know(name):
    policies = yaml.safe_load_all((ROOT / "k8s/base/namespace/network.yaml").read_text())
    (known,) = [one["spec"]["podSelector"] for one in policies if one["metadata"]["name"] == "workflow-train"]
    *_, job = yaml.safe_load_all((GOLDEN / name).read_text())
    assert known["matchLabels"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    variables = {one["name"]: one.get("value") for one in pod_of(job)["containers"][0]["env"]}
    assert variables["WORKFLOW_PREDS"] == f"{variables['WORKFLOW_MOUNT']}/preds"


def test_wrong_flags_come_first_and_all_at_once(capsys):
    wrong = ["--model_init_path", "x", "--data", "d", "--max_stesp", "3", "--lr", "-1"]
    with pytest.raises(ConfigError, match="2 problems") as caught:
        workflow(["jobs", "render", "--template", "slurm", *wrong])
    assert 'did you mean "--max_steps"' in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("argv", "error", "told"),
    [
        (["--template", "kubernetes", *RUN], TemplateError, "{image} has no value here; pass --image"),
        (["--template", "shell", "--partition", "p", *RUN], TemplateError, "partition was given"),
        (["--template", "ctl", "--image", "i", "--nodes", "2", *RUN], TemplateError, "nodes was given"),
        (["--template", "slurn", *RUN], TemplateError, 'did you mean "slurm"'),
        (["--template", "slurm", "--timeout", "soon", *RUN], ConfigError, "--timeout soon"),
        (["--template", "slurm", "--memory", "0", *RUN], ConfigError, "--memory 0"),
        (["--template", "slurm", "--field", "a", *RUN], ConfigError, "--field a: expected NAME=VALUE"),
        (["--template", "slurm", "--field", "args=x", *RUN], ConfigError, "--field args=...: this field has a value"),
        (["--template", "slurm", "--options", "'open", *RUN], ConfigError, "--options 'open"),
    ],
)
def test_other_wrong_input(argv, error, told):
    with pytest.raises(error) as caught:
        workflow(["jobs", "render", *argv])
    assert told in str(caught.value)
    assert caught.value.exit_code == 2


def test_memory_is_planned_or_asked_for(render, capsys):
    flags = ["--template", "slurm", "--data_name", "d", "--model_init_path"]
    sizes = [int(re.search(r"--mem=(\d+)G", render(*flags, name))[1]) for name in ("t5-small", "flan-t5-xl")]
    assert 0 < sizes[0] < sizes[1]
    assert "--mem" not in render(*flags, "nobody/knows")
    assert workflow(["jobs", "render", *flags, "nobody/knows"]) == 0
    assert "memory is not planned, pass --memory" in capsys.readouterr().err
    assert "--mem=7G" in render(*flags, "nobody/knows", "--memory", "7G")


@pytest.mark.parametrize(("template", "is_told"), [("kubernetes", True), ("ctl", True), ("slurm", False)])
def test_overwriting_at_every_restart_is_told(capsys, template, is_told):
    image = ["--image", "i"] if template != "slurm" else []
    flags = ["--memory", "8G", "--model_init_path", "m", "--data", "d", "--overwrite_output_dir"]
    assert workflow(["jobs", "render", "--template", template, *image, *flags]) == 0
    assert ("note: --overwrite_output_dir" in capsys.readouterr().err) is is_told


def test_a_template_of_one_s_own(render, plain_folder):
    mine = plain_folder / "mine.sh"
    mine.write_text(
        "#!/bin/bash\nsend --as {job_name} --team {team} --gpu {gpus} --time {timeout} --cpu {cpus} -- {args}\n"
    )
    made = render("--template", str(mine), "--gpus", "2", "--timeout", "90m", "--field", "team=a b", *RUN)
    assert shlex.split(made, comments=True)[:12] == shlex.split(
        "send --as 0216syn_explain --team 'a b' --gpu 2 --time 01:30:00 --cpu 8 --"
    )
    mine.write_text("#!/bin/bash\necho {job_name}\n")
    with pytest.raises(TemplateError, match="every job would do the same"):
        workflow(["jobs", "render", "--template", str(mine), *RUN])


def test_names():
    assert ctl_name("0216syn_explain") == "0216synexplain"
    long = "a" * 30 + "_learning_rate=0.001"
    assert len(ctl_name(long)) <= 38
    assert ctl_name(long) != ctl_name(long + "2")
    assert dns_name("lr=0.001,Seed_0") == "lr-0-001-seed-0"
    assert dns_name("0216syn") == "run-0216syn"
    assert len(dns_name("x" * 99)) <= 52
    assert all(re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", dns_name(name)) for name in ("é", "--", "A b", "9" * 80))


def test_every_template_is_reachable_from_the_top():
    assert (ROOT / "jobs").resolve() == HERE.resolve()
    listed = {path.name for path in HERE.iterdir()}
    assert listed == {*GOLDENS, "ctl.txt", "slurm-array.sh", "kubernetes-array.yaml"}


# ---- executors, with stand-ins for the clusters' commands


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A command that writes down its arguments and prints what the test put into files named after its first two."""

    def make(name: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / name
        program.write_text(
            f"#!{sys.executable}\nimport json, pathlib, sys\nhere = pathlib.Path(__file__).parent\n"
            "with (here / 'calls').open('a') as file:\n    file.write(json.dumps(sys.argv) + chr(10))\n"
            "answer = here / '-'.join(sys.argv[1:3])\nprint(answer.read_text() if answer.exists() else '')\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return folder

    return make


def jobs_in(folder: Path, count: int = 3, **needs) -> list[Job]:
    return [
        Job(f"lr={n}", folder / "points" / f"lr={n}", "seq2seq", ("--lr", f"1e-{n} $(x)"), **needs)
        for n in range(count)
    ]


def test_an_indexed_job_of_many(tmp_path, stand_in, monkeypatch):
    folder = stand_in("kubectl")
    study = tmp_path / "First Study"
    site = Site(named={"image": "workflow:1", "namespace": "ns"}, given=frozenset({"image", "namespace"}))
    executor = KubernetesExecutor(study, site=site)
    jobs = jobs_in(study, gpus=1, memory_gb=8)
    executor.submit(jobs, at_once=2)
    (manifest,) = study.glob("*.yaml")
    golden("kubernetes-array.yaml", manifest.read_text())
    calls = [json.loads(line)[1:] for line in (folder / "calls").read_text().splitlines()]
    assert calls == [["apply", "--filename", str(manifest), "--namespace=ns"]]
    assert [job.record().job_id for job in jobs] == [f"first-study-1/{n}" for n in range(3)]
    job = {"status": {"completedIndexes": "0", "failedIndexes": "2"}}
    pods = [pod(0, "Succeeded", 0), pod(1, "Running", None), pod(2, "Failed", 2)]
    (folder / "get-job").write_text(json.dumps(job))
    (folder / "get-pods").write_text(json.dumps({"items": pods}))
    found = KubernetesExecutor(study).status(
        jobs
    )  # as of `jobs status`, which is told no namespace: the manifest says it
    assert [(one.status, one.exit_code) for one in found.values()] == [("done", 0), ("running", None), ("failed", 2)]
    asked = [json.loads(line)[1:] for line in (folder / "calls").read_text().splitlines()][1:]
    assert [call[-1] for call in asked] == ["--namespace=ns"] * 2
    executor.cancel(jobs)
    assert [job.record().status for job in jobs] == ["done", "cancelled", "failed"]
    last = json.loads((folder / "calls").read_text().splitlines()[-1])
    assert last[1:4] == ["delete", "job,configmap", "first-study-1"]
    executor.submit(jobs[2:], at_once=1)
    assert jobs[2].record().job_id == "first-study-2/0"  # a Job's template cannot be changed, so it gets a new name


def pod(index: int, phase: str, code: int | None) -> dict:
    state = {"terminated": {"exitCode": code}} if code is not None else {"running": {}}
    return {
        "metadata": {"annotations": {"batch.kubernetes.io/job-completion-index": str(index)}},
        "status": {"phase": phase, "containerStatuses": [{"state": state}]},
    }


def test_indexes():
    assert numbers("") == set()
    assert numbers("0,2-4,7") == {0, 2, 3, 4, 7}


def test_ctl_sends_what_it_shows(tmp_path, stand_in):
    folder = stand_in("ctl")
    executor = CtlExecutor(tmp_path / "s", site=Site(named={"image": "i"}))
    jobs = jobs_in(tmp_path / "s")
    with pytest.raises(JobError, match="3 would start at once"):
        executor.submit(jobs, at_once=2)
    assert not (folder / "calls").exists()
    executor.submit(jobs, at_once=3)
    calls = [json.loads(line) for line in (folder / "calls").read_text().splitlines()]
    assert [call[1:] for call in calls] == [shlex.split(job.script.read_text())[1:] for job in jobs]
    assert inner(jobs[1].script.read_text())[2:] == ["--lr", "1e-1 $(x)"]
    executor.submit(jobs, at_once=3)
    assert len((folder / "calls").read_text().splitlines()) == 3
    assert {one.status for one in executor.status(jobs).values()} == {Status.SENT}
    with pytest.raises(JobError, match="ctl's own commands end jobs; these were sent: lr0, lr1, lr2"):
        executor.cancel(jobs)


def test_a_missing_command_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JobError, match="sbatch is not installed here"):
        make_executor("slurm", tmp_path / "s").submit(jobs_in(tmp_path / "s"), at_once=1)
    with pytest.raises(ConfigError, match='did you mean "slurm"'):
        make_executor("slrum", tmp_path)


# ---- status, cancel and logs of a study


@pytest.fixture
def study(tmp_path) -> Path:
    folder = tmp_path / "studié s"
    jobs = jobs_in(folder)
    folder.mkdir()
    points = [{"name": job.name, "entry": job.entry} for job in jobs]
    (folder / "study.json").write_text(json.dumps({"schema_version": 1, "points": points}))
    JobRecord(Status.DONE, exit_code=0, attempts=2, executor="local").write(jobs[0].folder)
    JobRecord(Status.FAILED, exit_code=1, executor="local", last_line="error: [red] ü").write(jobs[1].folder)
    jobs[0].log.write_text("first\nsecond")
    return folder


def test_status_of_a_study(study, capsys):
    assert workflow(["jobs", "status", str(study)]) == 0
    shown = capsys.readouterr().out
    assert "3 jobs: 1 done, 1 failed, 1 written" in shown
    assert "error: [red] ü" in shown
    assert workflow(["jobs", "status", str(study), "lr=0"]) == 0
    assert "1 jobs: 1 done" in capsys.readouterr().out


def test_cancel_of_a_study(study, capsys):
    assert workflow(["jobs", "cancel", str(study)]) == 0
    assert "1 of 3 jobs cancelled" in capsys.readouterr().out
    assert workflow(["jobs", "cancel", str(study)]) == 0
    assert "none was waiting or running" in capsys.readouterr().out


def test_logs_of_a_study(study, capsys):
    assert workflow(["jobs", "logs", str(study)]) == 0
    assert capsys.readouterr().out == "lr=0: first\nlr=0: second\n"
    assert workflow(["jobs", "logs", "-f", str(study), "lr=0"]) == 0
    assert capsys.readouterr().out == "first\nsecond\n"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "usage:"),
        (["stats"], 'did you mean "status"'),
        (["status", "nowhere"], "no study here"),
        (["logs", "STUDY", "lr=9"], "no job 'lr=9'; did you mean"),
    ],
)
def test_wrong_questions(study, argv, told):
    with pytest.raises(ConfigError, match=told):
        workflow(["jobs", *(str(study) if one == "STUDY" else one for one in argv)])


def test_documented_commands_are_read(render, plain_folder):
    """Every command of docs/jobs.md that renders does so; the others name commands and options that there are."""
    text = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("workflow jobs ")]
    rendered = [command for command in commands if command[2] == "render"]
    assert len(rendered) >= 5
    (plain_folder / "team.sh").write_text("#!/bin/bash\nsend --team {team} {args}\n")
    for command in rendered:
        words = command[3 : command.index(">")] if ">" in command else command[3:]
        assert render(*words)
    assert {command[2] for command in commands} == {"render", "status", "cancel", "logs"}
    assert ClfSettings.model_fields  # clf is among them
    assert any("clf" in command for command in rendered)
