"""The Kubernetes executor: one Indexed Job for all jobs with the same needs, by kubectl.

Knows nothing of what a job does. What an index runs stands in a config map, so that flags must name nothing of this machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workflow.errors import TemplateError
from workflow.files import whole_file
from workflow.jobs.fields import Site, job_fields, scheduler_name, site_fields
from workflow.jobs.holding import driving
from workflow.jobs.job import Job, JobRecord, Status, now
from workflow.jobs.template import Template
from workflow.jobs.tools import ask

LARGEST_MAP = 1_000_000
"""Bytes: Kubernetes takes a MiB of an object."""
SHELL = Template("job.sh", "#!/bin/bash\n# {job_name}\nexec {program} {args}\n")


class KubernetesExecutor:
    """Jobs of a folder as Indexed Jobs; a user's template is a manifest with {scripts}, {count} and {at_once}."""

    name = "kubernetes"

    def __init__(self, folder: Path, *, site: Site | None = None, template: Template | None = None) -> None:
        self.folder, self.site = folder, site or Site()
        self.template = template or Template.named("kubernetes-array.yaml")
        if absent := {"scripts", "count", "at_once"} - self.template.fields():
            raise TemplateError(
                f"{self.template.name}: a template of many jobs for Kubernetes needs {', '.join(f'{{{one}}}' for one in sorted(absent))}; "
                "jobs/kubernetes-array.yaml shows one"
            )

    def write(self, jobs: Sequence[Job]) -> list[Path]:
        """Each job's script, and the manifest; it lets one job run at a time."""
        return self._write(jobs, at_once=1)

    def submit(self, jobs: Sequence[Job], *, at_once: int) -> None:
        """Applies the manifests of jobs that are not there already."""
        with driving(self.folder):
            found = self.status(jobs)
            waiting = [job for job in jobs if found[job.name].status not in (Status.SENT, Status.RUNNING)]
            for manifest, (name, group) in zip(
                self._write(waiting, at_once=at_once), self._groups(waiting), strict=True
            ):
                ask(["kubectl", "apply", "--filename", str(manifest), *self._namespace()])
                for index, job in enumerate(group):
                    JobRecord(Status.SENT, job_id=f"{name}/{index}", executor=self.name).write(job.folder)

    def status(self, jobs: Sequence[Job]) -> dict[str, JobRecord]:
        """By what each Indexed Job lists as completed and failed, and its pods."""
        records = {job.name: job.record() for job in jobs}
        open_ = [job for job in jobs if records[job.name].job_id and not records[job.name].status.is_over]
        answers: dict[str, dict[str, Any]] = {}
        for job in open_:
            record = records[job.name]
            name, _, index = (record.job_id or "").partition("/")
            if name not in answers:
                answers[name] = self._ask_about(name)
            settled = settle(record, int(index), answers[name])
            if settled != record:
                settled.write(job.folder)
            records[job.name] = settled
        return records

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Deletes the Indexed Jobs that these belong to: Kubernetes cannot end one index alone, so none may be left out."""
        found = self.status(jobs)
        open_ = [job for job in jobs if not found[job.name].status.is_over]
        for name in dict.fromkeys(id_.partition("/")[0] for job in open_ if (id_ := found[job.name].job_id)):
            ask(
                [
                    "kubectl",
                    "delete",
                    "job,configmap",
                    name,
                    "--ignore-not-found",
                    "--wait=false",
                    *self._namespace(name),
                ]
            )
        for job in open_:
            found[job.name].but(status=Status.CANCELLED, ended_at=now()).write(job.folder)

    def logs(self, job: Job) -> str:
        """What the job's newest pod said."""
        name, _, index = (job.record().job_id or "").partition("/")
        selector = f"batch.kubernetes.io/job-name={name},batch.kubernetes.io/job-completion-index={index}"
        return ask(["kubectl", "logs", f"--selector={selector}", "--tail=-1", *self._namespace(name)])

    def _groups(self, jobs: Sequence[Job]) -> list[tuple[str, list[Job]]]:
        """(name, jobs with the same needs and environment). The name holds a number that no earlier Indexed Job has."""
        groups: dict[tuple[int | None, ...], list[Job]] = {}
        for job in jobs:
            groups.setdefault((job.gpus, job.cpus, job.memory_gb), []).append(job)
        sent = {job_id.partition("/")[0] for job_id in self._sent_ids()}
        stem = self.folder.absolute().name
        free = (
            name
            for number in range(1, 10_000)
            if (name := scheduler_name(f"{stem}-{number}", "kubernetes")) not in sent
        )
        return [(next(free), group) for group in groups.values()]

    def _sent_ids(self) -> list[str]:
        ids = []
        for file in sorted(self.folder.glob("points/*/job.json")):
            with file.open(encoding="utf-8") as opened:
                ids.append(json.load(opened).get("job_id") or "")
        return ids

    def _write(self, jobs: Sequence[Job], *, at_once: int) -> list[Path]:
        return [self._write_group(name, group, at_once=at_once) for name, group in self._groups(jobs)]

    def _write_group(self, name: str, group: Sequence[Job], *, at_once: int) -> Path:
        scripts = {}
        for index, job in enumerate(group):
            scripts[f"{index}.sh"] = SHELL.fill(job_fields(job, self.site, kind="kubernetes"))
            with whole_file(job.script) as file:
                file.write(scripts[f"{index}.sh"])
            if not job.record_file.exists():
                JobRecord(executor=self.name).write(job.folder)
        if sum(map(len, scripts.values())) > LARGEST_MAP:
            raise TemplateError(f"{len(group)} jobs do not fit into one config map: send them in several parts")
        fields = site_fields(group[0], self.site, kind="kubernetes") | {
            "job_name": name,
            "count": len(group),
            "at_once": min(at_once, len(group)),
            "scripts": scripts,
        }
        manifest = self.folder / f"{name}.yaml"
        with whole_file(manifest) as file:
            file.write(self.template.fill(fields, given=self.site.given - {"gpus", "cpus", "memory"}))
        return manifest

    def _namespace(self, sent: str | None = None) -> list[str]:
        """The namespace that is asked for, else that which the manifest of what was sent says."""
        name = self.site.named.get("namespace") or (self._manifest_namespace(sent) if sent is not None else None)
        return [f"--namespace={name}"] if name else []

    def _manifest_namespace(self, sent: str) -> str | None:
        import yaml

        try:
            documents = [*yaml.safe_load_all((self.folder / f"{sent}.yaml").read_text(encoding="utf-8"))]
        except (OSError, yaml.YAMLError):
            return None
        found = (one["metadata"].get("namespace") for one in documents if isinstance(one, dict) and "metadata" in one)
        return next(filter(None, found), None)

    def _ask_about(self, name: str) -> dict[str, Any]:
        text = ask(["kubectl", "get", "job", name, "--ignore-not-found", "--output=json", *self._namespace(name)])
        if not text.strip():
            return {}
        selector = f"--selector=batch.kubernetes.io/job-name={name}"
        pods = ask(["kubectl", "get", "pods", selector, "--output=json", *self._namespace(name)])
        return {"job": json.loads(text), "pods": json.loads(pods)["items"]}


def settle(record: JobRecord, index: int, answer: dict[str, Any]) -> JobRecord:
    """How an index of a Job stands, by the cluster's answer about the Job and its pods; empty where it has no such Job."""
    if not answer:
        return record.but(status=Status.FAILED, ended_at=now(), last_line="the cluster has no such Job any more")
    status = answer["job"].get("status", {})
    pods = [pod for pod in answer["pods"] if _index_of(pod) == index]
    if index in numbers(status.get("completedIndexes", "")):
        return record.but(status=Status.DONE, exit_code=0, attempts=max(1, len(pods)), ended_at=now())
    code = next((found for pod in reversed(pods) if (found := _exit_code(pod)) is not None), None)
    is_failed = any(one["type"] == "Failed" and one["status"] == "True" for one in status.get("conditions", []))
    if is_failed or index in numbers(status.get("failedIndexes", "")):
        told = f"a pod ended with {code}; `workflow jobs logs` shows its log while the cluster keeps it"
        return record.but(
            status=Status.FAILED, exit_code=code, attempts=max(1, len(pods)), ended_at=now(), last_line=told
        )
    runs = any(pod["status"].get("phase") == "Running" for pod in pods)
    return record.but(status=Status.RUNNING if runs else Status.SENT, attempts=len(pods))


def numbers(ranges: str) -> set[int]:
    """`0,2-4` -> {0, 2, 3, 4}, as an Indexed Job lists its indexes."""
    found: set[int] = set()
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _index_of(pod: dict[str, Any]) -> int:
    return int(pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index", -1))


def _exit_code(pod: dict[str, Any]) -> int | None:
    for container in pod["status"].get("containerStatuses", []):
        if (ended := container["state"].get("terminated")) is not None:
            return int(ended["exitCode"])
    return None
