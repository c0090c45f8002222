"""The Slurm executor against a real slurmctld and slurmd; the jobs are small shell programs."""

from __future__ import annotations

import pytest

from tests.jobs.slurm_node import SlurmNode, missing, until
from workflow.jobs.fields import Site, job_fields
from workflow.jobs.job import Job, Status
from workflow.jobs.render import render
from workflow.jobs.slurm import SlurmExecutor, refused
from workflow.jobs.template import Template

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
SCRIPT = Template("program.sh", "#!/bin/bash\ncd {directory}\nexec bash {script} {args}\n")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with SlurmNode.running(tmp_path_factory.mktemp("slurm")) as node:
        yield node


@pytest.fixture
def study(tmp_path):
    """Makes an executor and jobs, a list of flags each, that run a shell program."""

    def make(name: str, program: str, flags: list[tuple[str, ...]], **needs):
        folder = tmp_path / f"a study's {name}"
        folder.mkdir()
        script = folder / "program.sh"
        script.write_text(program)
        site = Site(named={"script": str(script)}, directory=folder)
        jobs = [
            Job(f"p{number}", folder / "points" / f"p{number}", "seq2seq", one, **needs)
            for number, one in enumerate(flags)
        ]
        return SlurmExecutor(folder, site=site, template=SCRIPT), jobs

    return make


def over(executor, jobs):
    """The records when all jobs are over."""

    def ask():
        found = executor.status(jobs)
        return found if all(one.status.is_over for one in found.values()) else None

    return until(ask, "the end of all jobs", within_s=90)


def test_an_array_is_sent_limited_and_collected(slurm, study):
    program = 'echo "$1 on [$CUDA_VISIBLE_DEVICES]"; [ "$1" != wrong ] || { echo "error: the input is wrong"; exit 2; }'
    executor, jobs = study("array", program, [('it\'s; $(x)\n"quoted"',), ("wrong",), ("third",)], gpus=2)
    (script,) = executor.write(jobs)
    assert refused(script) is None
    executor.submit(jobs, at_once=1)
    ids = [job.record().job_id for job in jobs]
    assert [id_.split("_")[1] for id_ in ids] == ["0", "1", "2"]
    assert {job.record().status for job in jobs} == {Status.SENT}
    found = over(executor, jobs)
    assert [found[job.name].status for job in jobs] == [Status.DONE, Status.FAILED, Status.DONE]
    assert [found[job.name].exit_code for job in jobs] == [0, 2, 0]
    assert found["p1"].last_line == "error: the input is wrong"
    log = jobs[0].log.read_text()
    assert 'it\'s; $(x)\n"quoted" on [' in log
    assert len(log.split("on [")[1].split("]")[0].split(",")) == 2  # two GPUs


def test_a_job_that_was_stopped_is_requeued_and_goes_on(slurm, study):
    """By its own 75, by the warning before its end, which the batch shell must pass on, and by preemption; cancelled ones end."""
    program = """
        trap 'touch warned; exit 75' USR1
        trap 'echo terminated; exit 75' TERM
        [ "$1" != again ] || [ -e stopped ] || { touch stopped; exit 75; }
        [ "$1" != warned ] || [ -e warned ] || { touch waiting; while :; do sleep 0.1; done; }
        [ "$1" != preempted ] || [ -e preempt ] || { touch preempt; while :; do sleep 0.1; done; }
        [ "$1" != cancelled ] || { touch begun; while :; do sleep 0.1; done; }
        echo "finished $1"
    """
    executor, jobs = study("requeue", program, [("again",), ("warned",), ("preempted",), ("cancelled",)])
    executor.submit(jobs, at_once=4)
    folder = executor.folder
    until(lambda: (folder / "waiting").exists(), "the second job")
    slurm.warn(jobs[1].record().job_id)
    until(lambda: (folder / "preempt").exists(), "the third job")
    slurm.ask("scontrol", "requeue", jobs[2].record().job_id)  # as preemption with PreemptMode=REQUEUE does
    until(lambda: (folder / "begun").exists(), "the fourth job")
    executor.cancel(jobs[3:])
    found = over(executor, jobs)
    cancelled = found.pop("p3")
    assert {(one.status, one.exit_code, one.attempts) for one in found.values()} == {(Status.DONE, 0, 2)}
    assert (folder / "warned").exists()
    assert [job.log.read_text().count("=== ") for job in jobs] == [2, 2, 2, 1]
    assert cancelled.status is Status.CANCELLED
    until(lambda: not slurm.ask("squeue", "--noheader").stdout.strip(), "an empty queue")
    assert "terminated" in jobs[3].log.read_text()


def test_who_is_in_the_queue_is_not_sent_again(slurm, study):
    executor, jobs = study("twice", "sleep 600", [("a",), ("b",)])
    executor.submit(jobs, at_once=1)
    before = [job.record().job_id for job in jobs]
    executor.submit(jobs, at_once=1)
    assert [job.record().job_id for job in jobs] == before
    executor.cancel(jobs)
    assert {one.status for one in executor.status(jobs).values()} == {Status.CANCELLED}


def test_a_job_that_slurm_killed_is_told_apart(slurm, study):
    executor, jobs = study("killed", "touch begun; exec sleep 600", [("a",)])
    executor.submit(jobs, at_once=1)
    until(lambda: (executor.folder / "begun").exists(), "the job")
    slurm.ask("scancel", jobs[0].record().job_id)
    (found,) = over(executor, jobs).values()
    assert (found.status, found.exit_code, found.attempts) == (Status.CANCELLED, 143, 1)


def test_rendered_scripts_are_taken(slurm, tmp_path):
    """Slurm itself is the oracle; of several nodes it has only one to give."""
    job = Job("run", tmp_path, "seq2seq", ("--data_name", "a b"), gpus=2, cpus=1, memory_gb=1, timeout_s=3600)
    script = tmp_path / "job.sh"
    script.write_text(render(job, Site(directory=tmp_path, options=("--comment=it's fine", "--nice=5")), "slurm"))
    assert refused(script) is None
    script.write_text(render(job, Site(directory=tmp_path, nodes=2), "slurm"))
    assert "node configuration is not available" in (refused(script) or "")


def test_one_rendered_job_runs(slurm, tmp_path):
    """The single-job script, with a seq2seq.py that is stopped once; it must go on and keep one log."""
    (tmp_path / "seq2seq.py").write_text(
        "import pathlib, sys\nmark = pathlib.Path('mark')\nprint('args', sys.argv[1:], flush=True)\n"
        "if not mark.exists():\n    mark.touch()\n    sys.exit(75)\n"
    )
    job = Job("run", tmp_path, "seq2seq", ("--data_name", "a 'b' $c"))
    (tmp_path / "job.sh").write_text(render(job, Site(directory=tmp_path), "slurm"))
    done = slurm.ask("sbatch", "--parsable", "--wait", str(tmp_path / "job.sh"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log.txt").read_text().count(f"args {[*job.flags]}") == 2


def test_ranks_of_a_job_of_several_nodes_are_warned_and_go_on(slurm, tmp_path):
    """The script of several nodes on the one there is: two ranks by srun, stopped by the warning, requeued."""
    (tmp_path / "seq2seq.py").write_text(
        "import os, pathlib, signal, sys, time\nrank = os.environ['SLURM_PROCID']\nmark = pathlib.Path(f'mark-{rank}')\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\nprint('rank', rank, flush=True)\n"
        "if not mark.exists():\n    mark.touch()\n    time.sleep(60)\n"
    )
    job = Job("run", tmp_path, "seq2seq", (), gpus=2)
    fields = job_fields(job, Site(directory=tmp_path), kind="slurm") | {"nodes": 1}
    (tmp_path / "job.sh").write_text(Template.named("slurm-nodes.sh").fill(fields))
    sent = slurm.ask("sbatch", "--parsable", str(tmp_path / "job.sh"))
    assert sent.returncode == 0, sent.stderr
    until(lambda: (tmp_path / "mark-0").exists() and (tmp_path / "mark-1").exists(), "both ranks")
    slurm.warn(sent.stdout.strip())
    until(lambda: "COMPLETED" in slurm.ask("scontrol", "show", "job", sent.stdout.strip()).stdout, "the end")
    log = (tmp_path / "log.txt").read_text()
    assert log.count("rank 0") == log.count("rank 1") == 2
