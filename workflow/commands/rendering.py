"""`workflow jobs render`, and the options that say where jobs go, which other commands have too.

Knows nothing of templates; imports nothing heavy before its arguments are known to be good.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflow.commands.parsing import CommandParser, command_parser
from workflow.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from workflow.config.clf_settings import ClfSettings
    from workflow.config.settings import Seq2SeqSettings
    from workflow.jobs.fields import Site

DESCRIPTION = """Prints a run's flags as a job: a script of Slurm, a manifest of Kubernetes, a command of ctl, a shell script, or
a template of yours (docs/jobs.md). Beside the options below it takes every flag of seq2seq.py, or after `clf` of clf.py; they
are checked as the program checks them. Nothing is sent."""
EXAMPLE = """workflow jobs render --template slurm --gpus 4 --timeout 12h --model_init_name flan-t5-xxl --data synthetic_explain > job.sh
  workflow jobs render --template ctl --image IMAGE --gpus 4 --model_init_name flan-t5-xxl --data synthetic_explain"""
TEXTS = {
    "image": "container image",
    "partition": "Slurm's partition",
    "account": "Slurm's account",
    "queue": "Kueue's queue",
    "namespace": "Kubernetes' namespace",
    "gpus_type": "kind of GPU, by the name that ctl or the nodes' label nvidia.com/gpu.product has",
}
TASKS = ("seq2seq", "clf")


def add_site(parser: CommandParser) -> None:
    """The options that say where jobs go and what they get."""
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of each node")
    parser.add_argument(
        "--cpus", type=int, metavar="N", help="CPU cores of each node (default: 4 for each GPU, else 4)"
    )
    parser.add_argument(
        "--memory", metavar="SIZE", help="memory of each node, such as 64G (default: by `workflow plan`)"
    )
    parser.add_argument(
        "--timeout", metavar="TIME", help="time limit: 90m, 12h, 2d or HH:MM:SS (default: the cluster's)"
    )
    for name, text in TEXTS.items():
        parser.add_argument(f"--{name}", metavar="NAME", help=text)
    parser.add_argument("--claim", metavar="NAME", help="volume claim that is the mount (default: workflow-mount)")
    parser.add_argument(
        "--options",
        metavar="TEXT",
        help='further options of sbatch or `ctl job run`, as --options="--qos=high ..."',
    )
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="value of a template's own {NAME}; may be repeated",
    )


def site_of(given: argparse.Namespace, *, grace_s: float = 60.0, nodes: int = 1, log: str | None = None) -> Site:
    """Where jobs go, by the options of `add_site`. Raises ConfigError with every problem."""
    from workflow.jobs.fields import Site

    problems, named = [], {name: value for name in TEXTS if (value := getattr(given, name)) is not None}
    for text in given.field:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            problems.append(f"--field {text}: expected NAME=VALUE, the name in small letters, digits and _")
        elif name in named:
            problems.append(f"--field {name}=...: given twice")
        else:
            named[name] = value
    try:
        options = tuple(shlex.split(given.options or ""))
    except ValueError as error:
        problems.append(f"--options {given.options}: {error}")
    problems += [f"--{name}: empty" for name, value in named.items() if name in TEXTS and not value]
    if problems:
        raise ConfigError("\n".join(problems))
    asked = {name for name in ("gpus", "cpus", "memory", "timeout", "claim", "options") if getattr(given, name)}
    return Site(
        named=named,
        given=frozenset({*asked, *named, *({"nodes"} if nodes > 1 else ())}),
        nodes=nodes,
        options=options,
        claim=given.claim or Site.claim,
        grace_s=grace_s,
        log=log,
    )


def needs_of(given: argparse.Namespace) -> tuple[int, int, int | None, int | None]:
    """(gpus, cpus, memory in GB or None, time limit in seconds or None). Raises ConfigError."""
    gpus, cpus = given.gpus or 0, given.cpus
    if gpus < 0 or (cpus is not None and cpus < 1):
        raise ConfigError("--gpus must not be negative, --cpus is at least 1")
    memory = gigabytes(given.memory) if given.memory is not None else None
    return gpus, cpus or 4 * max(1, gpus), memory, seconds(given.timeout) if given.timeout is not None else None


def gigabytes(text: str) -> int:
    """`64G`, `64GB`, `64Gi`, `64`. Raises ConfigError."""
    match = re.fullmatch(r"([1-9]\d*)\s*(?:G|GB|Gi|GiB)?", text, flags=re.IGNORECASE)
    if match is None:
        raise ConfigError(f"--memory {text}: expected whole gigabytes such as 64G")
    return int(match[1])


def seconds(text: str) -> int:
    """`90m`, `12h`, `2d`, `HH:MM:SS`, `D-HH:MM:SS`. Raises ConfigError."""
    if match := re.fullmatch(r"([1-9]\d*)([smhd])", text):
        return int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    if match := re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text):
        total = int(match[1] or 0) * 86400 + int(match[2]) * 3600 + int(match[3]) * 60 + int(match[4])
        if total:
            return total
    raise ConfigError(f"--timeout {text}: expected a time such as 90m, 12h, 2d or 12:00:00")


def render(argv: Sequence[str]) -> int:
    """Prints the job that the flags make."""
    parser = command_parser("jobs render", DESCRIPTION, EXAMPLE)
    parser.usage = (
        "workflow jobs render --template slurm|kubernetes|ctl|shell|FILE ... [seq2seq|clf] --setting value ..."
    )
    parser.add_argument(
        "-t", "--template", required=True, metavar="NAME", help="slurm, kubernetes, ctl, shell, or a FILE"
    )
    parser.add_argument("--job_name", metavar="NAME", help="by default the run's name")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes of one run (default: 1)")
    add_site(parser)
    given, flags = parser.parse_known_args(list(argv))
    task = next((name for name in TASKS if name in flags[:1]), TASKS[0])
    flags = flags[1:] if flags[:1] == [task] else flags
    if given.nodes < 1:
        raise ConfigError("--nodes is at least 1")
    gpus, cpus, memory, timeout = needs_of(given)
    settings = _checked(task, flags)
    from workflow.jobs.job import Job
    from workflow.jobs.render import render

    name = _job_name(given.job_name, settings)
    site = site_of(given, grace_s=settings.run.grace_s, nodes=given.nodes, log=f"{Path.cwd() / name}-%j.txt")
    job = Job(
        name,
        Path(),
        task,
        tuple(flags),
        gpus=gpus,
        cpus=cpus,
        memory_gb=memory or _planned(settings, given.template, nodes=given.nodes, gpus=gpus),
        timeout_s=timeout,
    )
    sys.stdout.write(render(job, site, given.template))
    if settings.run.overwrite_output_dir and given.template in ("kubernetes", "ctl"):
        print(
            f"note: --overwrite_output_dir: what {given.template} starts again cannot be told from a first start, and would move "
            "its own work aside and begin anew; leave it out",
            file=sys.stderr,
        )
    return 0


def _checked(task: str, flags: Sequence[str]) -> Seq2SeqSettings | ClfSettings:
    """The run's settings. Raises ConfigError with every problem of the flags."""
    from workflow.config.clf_settings import ClfSettings
    from workflow.config.flags import parse
    from workflow.config.sections import CommandSettings
    from workflow.config.settings import Seq2SeqSettings

    settings_type: type[CommandSettings] = ClfSettings if task == "clf" else Seq2SeqSettings
    settings = parse(settings_type, flags, prog="workflow jobs render", example=EXAMPLE).settings
    assert isinstance(settings, ClfSettings | Seq2SeqSettings)
    return settings


def _job_name(asked: str | None, settings: Seq2SeqSettings | ClfSettings) -> str:
    from workflow.paths import run_name

    model = settings.model.model_init_path or settings.model.model_init_name
    model = model or getattr(settings.model, "model_pretrain_name", None)
    name = asked or settings.run.training_run_name or run_name(str(model), str(settings.data.data_name))
    return re.sub(r"[^A-Za-z0-9._=,+-]", "_", name).lstrip("._=,+-")[:80] or "run"


def _planned(settings: Seq2SeqSettings | ClfSettings, template: str, *, nodes: int, gpus: int) -> int | None:
    """By the model's size; None, with a word on standard error, where its size is not known here."""
    if template in ("ctl", "shell"):  # which need no number
        return None
    from workflow.recipe.node_memory import node_memory_gb

    try:
        return node_memory_gb(settings, nodes=nodes, gpus=gpus)
    except ModelError as error:
        print(f"notice: memory is not planned, pass --memory: {error}", file=sys.stderr)
        return None
