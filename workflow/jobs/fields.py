"""The fields of templates: what a job and the place it goes to say.

Knows nothing of how a template is filled.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow.errors import ConfigError
from workflow.jobs.job import Job
from workflow.jobs.names import ctl_name, dns_name
from workflow.jobs.shell_text import in_double_quotes

OF_JOBS = frozenset({"job_name", "entry", "args", "program", "command", "tasks", "cpus_per_task", "log"})
OF_ARRAYS = frozenset({"array", "folders", "scripts", "count", "at_once"})
OPTIONAL = ("image", "partition", "account", "queue", "namespace", "gpus_type")


@dataclass(frozen=True)
class Site:
    """Where jobs go. `named` are the optional texts and further fields by name; `given` what the user asked for by name.

    `directory` is where programs start; `checkout` the same within ctl's containers, whose home is mounted at data/.
    """

    named: Mapping[str, str] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    nodes: int = 1
    options: tuple[str, ...] = ()
    directory: Path = field(default_factory=Path.cwd)
    checkout: str = "data/workflow"
    claim: str = "workflow-mount"
    grace_s: float = 60.0


def job_fields(job: Job, site: Site, *, kind: str) -> dict[str, Any]:
    """Name -> text, number or list of every field of one job; None for those without value. ConfigError for a clash."""
    known: dict[str, Any] = dict.fromkeys(OPTIONAL)
    known |= {
        "job_name": scheduler_name(job.name, kind),
        "entry": job.entry,
        "args": job.flags,
        "program": program(job, site, kind),
        "command": f"bash -c {in_double_quotes(_in_checkout(job, site))}",
        "tasks": max(1, job.gpus),
        "cpus_per_task": max(1, job.cpus // max(1, job.gpus)),
        "log": str(job.log.absolute()),
    } | site_fields(job, site, kind=kind)
    return known


def site_fields(job: Job, site: Site, *, kind: str) -> dict[str, Any]:
    """Those that jobs with the same needs share."""
    is_asked = {name: kind != "ctl" or name in site.given for name in ("cpus", "memory")}
    known: dict[str, Any] = dict.fromkeys(OPTIONAL)
    known |= {
        "gpus": job.gpus or None,
        "cpus": job.cpus if is_asked["cpus"] else None,
        "memory": f"{job.memory_gb}G" if job.memory_gb is not None and is_asked["memory"] else None,
        "shared_memory": "16G" if job.gpus > 1 else "2G",
        "timeout": _clock(job.timeout_s) if job.timeout_s is not None else None,
        "timeout_s": job.timeout_s,
        "nodes": site.nodes,
        "options": site.options or None,
        "directory": str(site.directory.absolute()),
        "claim": site.claim,
        "warning_s": math.ceil(site.grace_s) + 30,
        "grace_s": math.ceil(site.grace_s) + 40,
        "shutdown_s": str(math.ceil(site.grace_s)),
    }
    if clash := sorted(set(site.named) & (set(known) | OF_JOBS | OF_ARRAYS) - set(OPTIONAL)):
        raise ConfigError(
            f"--field {clash[0]}=...: this field has a value of its own; templates may have any other name"
        )
    return known | dict(site.named)


def scheduler_name(name: str, kind: str) -> str:
    """A job's name as this scheduler takes it."""
    return {"ctl": ctl_name, "kubernetes": dns_name}.get(kind, str)(name)


def program(job: Job, site: Site, kind: str) -> tuple[str, ...]:
    """The program as containers and checkouts have it; the package's own module where there is no such file."""
    is_there = kind == "kubernetes" or (site.directory / f"{job.entry}.py").is_file()
    start = ("python3", f"{job.entry}.py") if is_there else ("python3", "-m", f"workflow.{job.entry}")
    variables = tuple(f"{name}={value}" for name, value in job.environment.items())
    return ("env", *variables, *start) if variables else start


def _in_checkout(job: Job, site: Site) -> str:
    variables = tuple(f"{name}={value}" for name, value in job.environment.items())
    start = ("env", *variables) if variables else ()
    line = shlex.join((*start, "python3", f"{job.entry}.py", *job.flags))
    return f"cd {shlex.quote(site.checkout)}; {line}"


def _clock(seconds: int) -> str:
    """HH:MM:SS, hours as many as there are."""
    return f"{seconds // 3600:02}:{seconds % 3600 // 60:02}:{seconds % 60:02}"
