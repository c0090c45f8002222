"""The local executor, with tiny shell programs and real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.jobs.slurm_node import until
from workflow.errors import ConfigError, RunExistsError
from workflow.jobs.drive import outcome
from workflow.jobs.job import Job, JobRecord, Status, read_record
from workflow.jobs.local import GONE, LocalExecutor
from workflow.jobs.logs import last_line
from workflow.jobs.processes import identity, is_alive

DRIVER = """
import sys
from pathlib import Path
from workflow.exits import run_main
from workflow.jobs.job import Job
from workflow.jobs.local import LocalExecutor

def drive(argv):
    folder, programs = Path(argv[0]), argv[1:]
    jobs = [Job(f"p{n}", folder / "points" / f"p{n}", "seq2seq", (p,)) for n, p in enumerate(programs)]
    executor = LocalExecutor(folder, command=lambda job: ["bash", "-c", *job.flags], gpu_ids=(), grace_s=%s)
    executor.run(jobs, at_once=2, on_end=lambda job, record: print(job.name, record.status, flush=True))
    return 0

run_main(drive, sys.argv[1:])
"""


def make(folder: Path, *programs: str, **needs) -> list[Job]:
    return [Job(f"p{n}", folder / "points" / f"p{n}", "seq2seq", (one,), **needs) for n, one in enumerate(programs)]


def local(folder: Path, *, gpus: int = 0, **more) -> LocalExecutor:
    return LocalExecutor(
        folder, command=lambda job: ["bash", "-c", *job.flags], gpu_ids=[str(n) for n in range(gpus)], **more
    )


def start(folder: Path, *programs: str, grace_s: float = 20) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER % grace_s, str(folder), *programs],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_failures_are_recorded_and_the_rest_goes_on(tmp_path):
    programs = (
        "echo fine",
        "echo 'error: 2 problems:'; echo '  --lr'; echo '  --x'; exit 2",
        "kill -9 $$",
        "echo last",
    )
    ended = []
    found = local(tmp_path).run(make(tmp_path, *programs), at_once=2, on_end=lambda job, _: ended.append(job.name))
    assert sorted(ended) == ["p0", "p1", "p2", "p3"]
    assert [(found[name].status, found[name].exit_code) for name in sorted(found)] == [
        ("done", 0),
        ("failed", 2),
        ("failed", 137),
        ("done", 0),
    ]
    assert found["p1"].last_line == "error: 2 problems: --lr --x"
    assert found["p2"].last_line.startswith("killed by SIGKILL")
    assert read_record(tmp_path / "points/p1") == found["p1"]
    assert (tmp_path / "points/p3/log.txt").read_text().endswith("last\n")


def test_at_most_so_many_run_at_once_and_gpus_are_nobody_else_s(tmp_path):
    mine = f"{tmp_path}/${{CUDA_VISIBLE_DEVICES/,/-}}"
    program = f"echo $CUDA_VISIBLE_DEVICES >> {tmp_path}/gpus; mkdir {mine} || exit 1; sleep 0.2; rmdir {mine}"
    found = local(tmp_path, gpus=5).run(make(tmp_path, *[program] * 6, gpus=2), at_once=4)
    assert {one.status for one in found.values()} == {Status.DONE}
    used = (tmp_path / "gpus").read_text().split()
    assert len(used) == 6
    assert all(len(one.split(",")) == 2 for one in used)


def test_without_gpus_none_is_visible(tmp_path):
    found = local(tmp_path, gpus=2).run(make(tmp_path, "echo [$CUDA_VISIBLE_DEVICES]"), at_once=1)
    assert found["p0"].last_line == "[]"


def test_more_gpus_than_there_are(tmp_path):
    with pytest.raises(ConfigError, match="job p0 needs 3 GPUs, 2 are visible"):
        local(tmp_path, gpus=2).run(make(tmp_path, "true", gpus=3), at_once=1)


def test_75_starts_again_within_bounds(tmp_path):
    again = f"[ -e {tmp_path}/mark ] && exit 0; touch {tmp_path}/mark; exit 75"
    found = local(tmp_path, max_stops=2).run(make(tmp_path, again, "exit 75"), at_once=1)
    assert (found["p0"].status, found["p0"].attempts) == (Status.DONE, 2)
    assert (found["p1"].status, found["p1"].attempts) == (Status.STOPPED, 3)
    assert (tmp_path / "points/p0/log.txt").read_text().count("=== ") == 2


@pytest.mark.parametrize(
    ("code", "asked", "again", "status"),
    [
        (0, Status.STOPPED, True, Status.DONE),
        (75, None, True, None),
        (75, None, False, Status.STOPPED),
        (75, Status.STOPPED, True, Status.STOPPED),
        (143, Status.STOPPED, True, Status.STOPPED),
        (2, Status.STOPPED, True, Status.FAILED),
        (75, Status.PRUNED, True, Status.PRUNED),
        (1, Status.CANCELLED, True, Status.CANCELLED),
        (137, None, True, Status.FAILED),
    ],
)
def test_outcomes(code, asked, again, status):
    assert outcome(code, asked=asked, may_start_again=again) is status


def test_time_limits_and_what_is_left_of_a_job(tmp_path):
    program = f"sleep 600 & echo $! > {tmp_path}/child; echo waiting; wait"
    (found,) = local(tmp_path).run(make(tmp_path, program, timeout_s=1), at_once=1).values()
    assert found.status is Status.FAILED
    assert found.last_line == "not done within 1 s; last: waiting"
    assert identity(int((tmp_path / "child").read_text())) is None


def test_pruning_and_jobs_made_on_the_way(tmp_path):
    jobs = make(tmp_path, "trap 'exit 75' TERM; while :; do sleep 0.05; done", "echo second")
    told = []

    def ask():
        yield jobs[0]
        yield None  # nothing to start now
        assert told == ["p0"]
        yield jobs[1]

    found = local(tmp_path).run(
        ask(),
        at_once=1,
        on_end=lambda job, _: told.append(job.name),
        should_stop=lambda job: Status.PRUNED if job.name == "p0" else None,
    )
    assert (found["p0"].status, found["p0"].exit_code, found["p1"].status) == (Status.PRUNED, 75, Status.DONE)


def test_an_error_of_the_caller_leaves_nothing_running(tmp_path):
    jobs = make(tmp_path, "true", f"echo $$ > {tmp_path}/pid; exec sleep 600")

    def fail(job, record):
        until((tmp_path / "pid").exists, "the second job")
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        local(tmp_path).run(jobs, at_once=2, on_end=fail)
    assert identity(int((tmp_path / "pid").read_text())) is None
    assert jobs[1].record().status is Status.STOPPED


def test_a_program_that_is_not_there(tmp_path):
    executor = LocalExecutor(tmp_path, command=lambda job: ["/nowhere/program"], gpu_ids=())
    (found,) = executor.run(make(tmp_path, "x"), at_once=1).values()
    assert found.status is Status.FAILED
    assert "cannot be started" in found.last_line


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_all_jobs_with_their_checkpoints(tmp_path, number, code):
    program = f"trap 'echo saved; exit 75' TERM; touch {tmp_path}/begun-$RANDOM; while :; do sleep 0.05; done"
    driver = start(tmp_path, program, program, f"touch {tmp_path}/never")
    until(lambda: len([*tmp_path.glob("begun-*")]) == 2, "both jobs")
    driver.send_signal(number)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == code, said
    assert f"stopped by {number.name} with 2 jobs ended; the same command continues" in said
    for name in ("p0", "p1"):
        record = read_record(tmp_path / "points" / name)
        assert (record.status, record.exit_code, record.last_line) == (Status.STOPPED, 75, "saved")
    assert not (tmp_path / "never").exists()


def test_a_job_that_does_not_listen_is_killed_with_its_group(tmp_path):
    program = f"trap '' TERM; (trap '' TERM; echo $BASHPID > {tmp_path}/pid; sleep 600) & wait"
    driver = start(tmp_path, program, grace_s=0.5)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the job")
    driver.terminate()
    driver.communicate(timeout=60)
    assert read_record(tmp_path / "points/p0").status is Status.STOPPED
    assert identity(int((tmp_path / "pid").read_text())) is None


def test_a_killed_driver_takes_our_programs_with_it(tmp_path):
    """What every entry program calls first (runtime.die_with_launcher) ends it; the next driver starts it anew."""
    code = f"from workflow.runtime import die_with_launcher as d; d(); open('{tmp_path}/begun', 'w').close(); import time; time.sleep(600)"
    program = f'[ -e {tmp_path}/begun ] && exit 0; exec {sys.executable} -c "{code}"'
    driver = start(tmp_path, program)
    until((tmp_path / "begun").exists, "the job")
    job = make(tmp_path, program)[0]
    who = until(lambda: job.record().job_id, "the record")
    driver.kill()
    driver.communicate(timeout=60)
    until(lambda: not is_alive(who), "the end of the job")
    assert job.record().status is Status.RUNNING
    (found,) = local(tmp_path).status([job]).values()
    assert (found.status, found.last_line) == (Status.STOPPED, GONE)
    (found,) = local(tmp_path).run([job], at_once=1).values()
    assert (found.status, found.attempts) == (Status.DONE, 2)


def test_an_orphan_is_waited_for_and_never_doubled(tmp_path):
    program = f"echo x >> {tmp_path}/count; [ -e {tmp_path}/go ] || {{ until [ -e {tmp_path}/go ]; do sleep 0.05; done; exit 3; }}"
    driver = start(tmp_path, program)
    job = make(tmp_path, program)[0]
    until(lambda: (tmp_path / "count").exists() and job.record().job_id, "the job")
    driver.kill()
    driver.communicate(timeout=60)
    second = start(tmp_path, program)
    time.sleep(1.0)
    assert (tmp_path / "count").read_text() == "x\n"
    (tmp_path / "go").touch()
    _, said = second.communicate(timeout=60)
    assert "p0 still runs, of a driver that was killed; waiting for it" in said
    assert (tmp_path / "count").read_text() == "x\nx\n"  # how it ended nobody knows: the same command says so
    assert job.record().status is Status.DONE


def test_two_drivers(tmp_path):
    program = f"touch {tmp_path}/begun; until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    driver = start(tmp_path, program)
    until((tmp_path / "begun").exists, "the job")
    jobs = make(tmp_path, program, "true")
    with pytest.raises(RunExistsError, match=f"driven by process {driver.pid} on "):
        local(tmp_path).run(jobs, at_once=1)
    assert [*local(tmp_path).run(jobs, at_once=1, shared=True)] == ["p1"]  # p0 is the other one's
    (tmp_path / "go").touch()
    driver.communicate(timeout=60)
    assert driver.returncode == 0


def test_cancelling_from_elsewhere(tmp_path):
    program = f"trap 'exit 75' TERM; touch {tmp_path}/begun; while :; do sleep 0.05; done"
    driver = start(tmp_path, program, "sleep 2", f"touch {tmp_path}/never")
    until((tmp_path / "begun").exists, "the job")
    jobs = make(tmp_path, program, "sleep 2", f"touch {tmp_path}/never")
    local(tmp_path).cancel([jobs[0], jobs[2]])
    said, _ = driver.communicate(timeout=60)
    assert set(said.splitlines()) == {"p0 cancelled", "p1 done", "p2 cancelled"}
    assert [job.record().status for job in jobs] == ["cancelled", "done", "cancelled"]
    assert [one.status for one in local(tmp_path).run(jobs[2:], at_once=1).values()] == [Status.DONE]  # asked for anew


def test_scripts_can_be_run_by_hand(tmp_path):
    executor = LocalExecutor(tmp_path, gpu_ids=())
    (script,) = executor.write([Job("p", tmp_path / "points/p", "clf", ("--data_name", "a b"))])
    assert script.read_text().endswith("-m workflow.clf --data_name 'a b'\n")
    assert json.loads((tmp_path / "points/p/job.json").read_text())["status"] == "written"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", None),
        ("one\n\n", "one"),
        ("10%\r20%\r\x1b[31mred\x1b[0m\n", "red"),
        ("error: first\nmore\nerror: last\n  detail\nTraceback\n", "error: last detail"),
    ],
)
def test_last_lines(tmp_path, text, line):
    (tmp_path / "log").write_text(text)
    assert last_line(tmp_path / "log") == line


@pytest.mark.parametrize(
    "change", [{"name": "a/b"}, {"name": ""}, {"entry": "other"}, {"cpus": 0}, {"flags": ("a\0b",)}]
)
def test_jobs_that_cannot_be(tmp_path, change):
    with pytest.raises(ConfigError, match="job "):
        Job(**{"name": "n", "folder": tmp_path, "entry": "clf", "flags": (), **change})


def test_a_record_that_is_none(tmp_path):
    JobRecord(Status.DONE, gpus=("1",)).write(tmp_path)
    assert read_record(tmp_path) == JobRecord(Status.DONE, gpus=("1",))
    (tmp_path / "job.json").write_text('{"status": "odd"}')
    with pytest.raises(Exception, match="remove it"):
        read_record(tmp_path)
