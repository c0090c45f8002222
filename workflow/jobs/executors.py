"""The executors by name.

Knows nothing of how any of them works.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workflow.errors import ConfigError, did_you_mean
from workflow.jobs.ctl import CtlExecutor
from workflow.jobs.fields import Site
from workflow.jobs.job import Executor, Job
from workflow.jobs.kubernetes import KubernetesExecutor
from workflow.jobs.local import LocalExecutor
from workflow.jobs.slurm import SlurmExecutor
from workflow.jobs.template import Template

CLUSTERS: dict[str, type[SlurmExecutor] | type[KubernetesExecutor] | type[CtlExecutor]] = {
    "slurm": SlurmExecutor,
    "kubernetes": KubernetesExecutor,
    "ctl": CtlExecutor,
}
NAMES = ("local", *CLUSTERS)


def make_executor(name: str, folder: Path, *, site: Site | None = None, template: Path | None = None) -> Executor:
    """The executor of a folder's jobs. Raises ConfigError for an unknown name, TemplateError for a template of no use."""
    if name == "local":
        if template is not None:
            raise ConfigError(
                "--template: jobs run here need no script; templates are for --executor slurm, kubernetes or ctl"
            )
        return LocalExecutor(folder)
    if name not in CLUSTERS:
        raise ConfigError(f"--executor {name}: unknown{did_you_mean(name, NAMES)}; there are {', '.join(NAMES)}")
    return CLUSTERS[name](folder, site=site, template=Template.read(template) if template is not None else None)


def by_executor(jobs: Sequence[Job], folder: Path, *, site: Site | None = None) -> list[tuple[Executor, list[Job]]]:
    """Who runs which of the jobs, by their records."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.record().executor or "local", []).append(job)
    return [(make_executor(name, folder, site=site), group) for name, group in groups.items()]
