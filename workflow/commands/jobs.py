"""`workflow jobs render|status|cancel|logs`.

Knows nothing of schedulers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflow.commands.parsing import command_parser
from workflow.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from workflow.jobs.job import Executor, Job, JobRecord

USAGE = """usage: workflow jobs render --template slurm|kubernetes|ctl|shell|FILE ... --setting value ...
       workflow jobs status DIR [NAME...]     how the jobs of a study stand
       workflow jobs cancel DIR [NAME...]     end them; they write checkpoints, and can be started again
       workflow jobs logs [-f] DIR [NAME...]  what they said (workflow jobs COMMAND -h for more)"""
COMMANDS = ("render", "status", "cancel", "logs")
POLL_S = 0.5


def jobs(argv: Sequence[str]) -> int:
    """One of the four."""
    if argv[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if not argv or argv[0] not in COMMANDS:
        raise ConfigError(f"unknown command {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}\n{USAGE}" if argv else USAGE)
    if argv[0] == "render":
        from workflow.commands.rendering import render

        return render(argv[1:])
    return {"status": _status, "cancel": _cancel, "logs": _logs}[argv[0]](argv[1:])


def _given(command: str, text: str, argv: Sequence[str]) -> tuple[list[Job], Path, bool, str | None]:
    """(the jobs, the study's folder, whether to follow, the namespace)."""
    parser = command_parser(f"jobs {command}", text, f"workflow jobs {command} sweeps/first")
    parser.add_argument("folder", metavar="DIR", type=Path, help="a study's folder")
    parser.add_argument("names", metavar="NAME", nargs="*", help="jobs of it (default: all)")
    parser.add_argument("--namespace", metavar="NAME", help="of jobs on Kubernetes")
    if command == "logs":
        parser.add_argument("-f", "--follow", action="store_true", help="go on as long as jobs run")
    given = parser.parse_args(list(argv))
    from workflow.jobs.study import jobs_of

    return jobs_of(given.folder, given.names), given.folder, getattr(given, "follow", False), given.namespace


def _executors(jobs: Sequence[Job], folder: Path, namespace: str | None) -> list[tuple[Executor, list[Job]]]:
    from workflow.jobs.executors import by_executor
    from workflow.jobs.fields import Site

    return by_executor(jobs, folder, site=Site(named={"namespace": namespace} if namespace else {}))


def _ask(jobs: Sequence[Job], folder: Path, namespace: str | None) -> dict[str, JobRecord]:
    found: dict[str, JobRecord] = {}
    for executor, group in _executors(jobs, folder, namespace):
        found |= executor.status(group)
    return {job.name: found[job.name] for job in jobs}


def _status(argv: Sequence[str]) -> int:
    """A table, and how many stand how; tables of results as far as clusters have come. Exit code 0 whatever it says."""
    jobs, folder, _, namespace = _given(
        "status", "How the jobs of a study stand. Tables of a study on a cluster are made anew.", argv
    )
    records = _ask(jobs, folder, namespace)
    _show(records)
    if any(record.executor not in (None, "local") for record in records.values()):
        from workflow.sweep.study import read_study
        from workflow.sweep.summaries import make_files

        make_files(read_study(folder))
        print(f"table: {folder / 'table.md'}")
    return 0


def _show(records: dict[str, JobRecord]) -> None:
    from rich.table import Table

    from workflow.console import make_console

    table = Table("job", "status", "code", "attempts", "id", "ended", "last line")
    for name, record in records.items():
        code = "" if record.exit_code is None else str(record.exit_code)
        cells = (name, record.status, code, str(record.attempts), record.job_id, record.ended_at, record.last_line)
        table.add_row(*(cell or "" for cell in cells))
    console = make_console()
    console.print(table)
    counts: dict[str, int] = {}
    for record in records.values():
        counts[record.status] = counts.get(record.status, 0) + 1
    console.print(f"{len(records)} jobs: " + ", ".join(f"{count} {status}" for status, count in counts.items()))


def _cancel(argv: Sequence[str]) -> int:
    jobs, folder, _, namespace = _given("cancel", "Ends jobs of a study that are not over.", argv)
    before = _ask(jobs, folder, namespace)
    open_ = [job for job in jobs if not before[job.name].status.is_over]
    for executor, group in _executors(open_, folder, namespace):
        executor.cancel(group)
    print(f"{len(open_)} of {len(jobs)} jobs cancelled" + ("" if open_ else ": none was waiting or running"))
    return 0


def _logs(argv: Sequence[str]) -> int:
    """What each job has written, the job's name before each line where there are several."""
    jobs, folder, follows, namespace = _given("logs", "What jobs of a study said.", argv)
    places = dict.fromkeys((job.name for job in jobs), 0)
    while True:
        is_over = not follows or all(one.status.is_over for one in _ask(jobs, folder, namespace).values())
        for job in jobs:
            places[job.name] = _print_from(job, places[job.name], is_last=is_over, prefix=len(jobs) > 1)
        if is_over:
            return 0
        time.sleep(POLL_S)


def _print_from(job: Job, place: int, *, is_last: bool, prefix: bool) -> int:
    """Prints what a log holds after a place, whole lines until the last time; gives the new place."""
    from workflow.jobs.kubernetes import KubernetesExecutor

    if not job.log.exists():
        if is_last and job.record().executor == KubernetesExecutor.name and job.record().job_id:
            sys.stdout.write(KubernetesExecutor(job.folder.parent.parent).logs(job))
        return place
    with job.log.open("rb") as file:
        file.seek(place)
        text = file.read()
    if not is_last:
        text = text[: text.rfind(b"\n") + 1]
    for line in text.decode("utf-8", errors="replace").splitlines():
        print(f"{job.name}: {line}" if prefix else line, flush=True)
    return place + len(text)
