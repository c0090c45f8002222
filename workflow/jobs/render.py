"""One job's script or manifest, from the package's templates or a user's.

Knows nothing of how it is sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from workflow.errors import TemplateError
from workflow.jobs.fields import Site, job_fields
from workflow.jobs.job import Job
from workflow.jobs.template import Template, check_shell

KINDS = ("shell", "slurm", "kubernetes", "ctl")


def find_template(which: str, *, nodes: int = 1) -> tuple[str, Template]:
    """(kind, template) of a kind's name or a user's file, whose kind is told by its text. Raises TemplateError."""
    if which in KINDS:
        suffix = {"kubernetes": ".yaml", "ctl": ".txt"}.get(which, ".sh")
        return which, Template.named(
            f"{which}{'-nodes' if nodes > 1 and which in ('slurm', 'kubernetes') else ''}{suffix}"
        )
    if not Path(which).is_file() and "/" not in which and "." not in which:
        raise TemplateError(f"--template {which}: neither one of {', '.join(KINDS)} nor a file")
    return kind_of(template := Template.read(Path(which))), template


def kind_of(template: Template) -> str:
    """Which scheduler a user's template is for."""
    if template.is_yaml:
        return "kubernetes"
    if "#SBATCH" in template.text:
        return "slurm"
    return "ctl" if template.text.lstrip().startswith("ctl ") else "shell"


def render(job: Job, site: Site, which: str) -> str:
    """The filled template. Raises TemplateError with every problem of it."""
    kind, template = find_template(which, nodes=site.nodes)
    return fill(template, job, site, kind=kind)


def fill(template: Template, job: Job, site: Site, *, kind: str, given: Iterable[str] | None = None) -> str:
    """Fills a template that has the job's flags in it, and has bash read what is a script."""
    if not template.fields() & {"args", "command"}:
        raise TemplateError(f"{template.name}: has neither {{args}} nor {{command}}: every job would do the same")
    text = template.fill(job_fields(job, site, kind=kind), given=site.given if given is None else given)
    if not template.is_yaml:
        check_shell(text, name=template.name)
    return text
