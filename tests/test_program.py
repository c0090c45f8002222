"""The program as users run it: a mount, a command, and what is then in the run folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.conftest import ROOT, losses, metrics_lines, run_program, write_data
from workflow.evaluation.report import Report

pytestmark = pytest.mark.slow

SMALL_RUN = (
    "--max_steps",
    5,
    "--eval_steps",
    2,
    "--train_batch_size",
    4,
    "--gradient_accumulation_steps",
    2,
    "--logging_steps",
    1,
    "--dropout",
    0,
)


def train(mount, model, *more, name="run", **options):
    return run_program(
        "--mount",
        mount,
        "--model_init_path",
        model,
        "--data",
        "toy",
        "--training_run_name",
        name,
        *SMALL_RUN,
        *more,
        **options,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, flan_like):
    """A finished run (read only) and what it printed."""
    mount = tmp_path_factory.mktemp("finished") / "mount"
    path = write_data(mount, "toy")
    data = json.loads(path.read_text())
    data["eval"][3] = data["eval"][1]  # duplicate prompts stay apart
    path.write_text(json.dumps(data))
    done = train(mount, flan_like, "--slice_by", "id", "--lr", "1e-2")
    assert done.returncode == 0, done.stderr
    return mount, mount / "models" / "run", done


def test_the_run_folder(finished):
    _, run, done = finished
    expected = {
        "training_args.json",
        "metrics.jsonl",
        "param_groups.json",
        "report.html",
        "report.json",
        "tensorboard",
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-5",
        "checkpoint-best-ckpt",
        "run.lock",
    }
    expected |= {f"temperature=0.00_n=1_step={step}.json" for step in (0, 2, 4, 5)}
    assert {path.name for path in run.iterdir()} == expected
    assert list((run / "tensorboard").glob("events*"))
    lines = metrics_lines(run)
    assert [line["step"] for line in lines] == [0, 1, 2, 2, 3, 4, 4, 5, 5]
    assert {"loss", "grad_norm", "lr", "tokens_per_s"} <= set(lines[1])
    assert {"eval_loss", "exact_match", "token_f1", "bleu", "chrf", "rougeL", "cut_by_length"} <= set(lines[0])
    assert "final, step 5" in done.stdout
    assert done.stderr == ""


def test_training_args_hold_every_setting_and_its_origin(finished):
    args = json.loads((finished[1] / "training_args.json").read_text())
    assert args["settings"]["lr"] == 1e-2
    assert args["origins"]["lr"] == "flag"
    assert args["origins"]["seed"] == "default"
    assert args["settings"].keys() == args["origins"].keys()


def test_the_report(finished):
    report = Report.model_validate_json((finished[1] / "report.json").read_text())
    assert (report.schema_version, report.steps, report.examples, report.final.step) == (1, 5, 40, 5)
    assert report.final.metrics["exact_match"].n == 7
    assert len(report.final.slices) == 6
    assert report.speed.tokens_per_s > 0
    assert report.speed.mfu is None
    assert report.environment["versions"]["torch"]
    assert report.best.step in (2, 4, 5)


def test_predictions_are_in_the_order_of_the_rows(finished):
    mount, run, _ = finished
    rows = json.loads((mount / "data/toy.json").read_text())["eval"]
    records = json.loads((run / "temperature=0.00_n=1_step=5.json").read_text())
    assert [record["orig_d"] for record in records] == rows
    assert [record["prompt"] for record in records] == [row["prompt"] for row in rows]
    for record in records:
        assert set(record) == {"prompt", "generations", "demonstration", "orig_d"}
        assert set(record["generations"][0]) == {"lm_postprocess", "scores", "full_generated"}
        assert sum(record["generations"][0]["scores"]) == pytest.approx(1)


def test_plain_transformers_generates_the_same_answers(finished):
    """The best checkpoint, by nothing but transformers, gives the prediction file of its step."""
    _, run, _ = finished
    best = Report.model_validate_json((run / "report.json").read_text()).best.step
    model = AutoModelForSeq2SeqLM.from_pretrained(run / "checkpoint-best-ckpt")
    tokenizer = AutoTokenizer.from_pretrained(run / "checkpoint-best-ckpt")
    for record in json.loads((run / f"temperature=0.00_n=1_step={best}.json").read_text()):
        with torch.no_grad():
            ids = model.generate(**tokenizer(record["prompt"], return_tensors="pt"))[0]
        assert tokenizer.decode(ids, skip_special_tokens=True) == record["generations"][0]["full_generated"]


def test_a_finished_run_is_shown(finished, flan_like):
    mount, run, _ = finished
    before = (run / "report.json").read_text()
    again = train(mount, flan_like, "--slice_by", "id", "--lr", "1e-2")
    assert again.returncode == 0
    assert "is finished" in again.stdout
    assert "exact_match" in again.stdout
    assert (run / "report.json").read_text() == before


def test_other_settings_are_refused_with_a_table(finished, flan_like):
    mount, _, _ = finished
    other = train(mount, flan_like, "--slice_by", "id", "--lr", "3e-2")
    assert other.returncode == 2
    assert ["lr", "0.01", "0.03"] in [line.split() for line in other.stderr.splitlines()]
    assert "--overwrite_output_dir" in other.stderr
    assert "Traceback" not in other.stderr


def test_generate_answers_like_the_run(finished):
    mount, run, _ = finished
    best = Report.model_validate_json((run / "report.json").read_text()).best.step
    records = json.loads((run / f"temperature=0.00_n=1_step={best}.json").read_text())
    prompts = [record["prompt"] for record in records[:3]]
    done = run_program("generate", "run", *prompts, "--mount", mount, module="workflow")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [record["generations"][0]["full_generated"] for record in records[:3]]


def test_generate_for_a_file(finished, tmp_path):
    mount, _, _ = finished
    (tmp_path / "in.jsonl").write_text('{"prompt": "reverse red", "k": 1}\n{"prompt": "reverse blue"}\n')
    out = tmp_path / "sub/out.json"
    done = run_program(
        "generate",
        "run",
        "--data",
        tmp_path / "in.jsonl",
        "--out",
        out,
        "--n_samples",
        2,
        "--temperature",
        1,
        "--mount",
        mount,
        module="workflow",
    )
    assert done.returncode == 0, done.stderr
    records = json.loads(out.read_text())
    assert records[0]["orig_d"] == {"prompt": "reverse red", "k": 1}
    assert [len(record["generations"]) for record in records] == [2, 2]


def test_no_train_touches_no_run(finished, tmp_path):
    mount, run, _ = finished
    before = sorted(path.name for path in (mount / "models").iterdir())
    done = run_program(
        "--mount", mount, "--model_init_name", "run", "--data", "toy", "--no_train", "--pred_dir", "p", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    best = Report.model_validate_json((run / "report.json").read_text()).best.step
    written = json.loads((tmp_path / "preds/p/temperature=0.00_n=1_step=0.json").read_text())
    assert written == json.loads((run / f"temperature=0.00_n=1_step={best}.json").read_text())
    assert json.loads((tmp_path / "preds/p/metrics.json").read_text())["metrics"]["exact_match"]["n"] == 7
    assert sorted(path.name for path in (mount / "models").iterdir()) == before


def test_predictions_without_a_run_need_a_place(finished, tmp_path, monkeypatch):
    mount, _, _ = finished
    arguments = ("--mount", mount, "--model_init_name", "run", "--data", "toy", "--no_train", "--pred_dir", "p")
    (tmp_path / "preds").write_text("")
    done = run_program(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "predictions cannot be written there" in done.stderr
    assert "WORKFLOW_PREDS" in done.stderr
    monkeypatch.setenv("WORKFLOW_PREDS", str(tmp_path / "elsewhere"))
    done = run_program(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "elsewhere/p/metrics.json").is_file()


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_two_ranks_give_the_same_run(finished, mount, flan_like, stage):
    """The program launches its own ranks; losses, answers and the best checkpoint are those of one rank."""
    shutil.copy(finished[0] / "data/toy.json", mount / "data/toy.json")
    done = train(mount, flan_like, "--slice_by", "id", "--lr", "1e-2", "--nproc", 2, "--deepspeed", stage)
    assert done.returncode == 0, done.stderr
    run = mount / "models/run"
    for step, (loss, norm) in losses(finished[1]).items():
        assert losses(run)[step] == (pytest.approx(loss, rel=1e-5), pytest.approx(norm, rel=1e-4))
    for step in (0, 5):
        name = f"temperature=0.00_n=1_step={step}.json"
        texts = [
            [record["generations"][0]["full_generated"] for record in json.loads((folder / name).read_text())]
            for folder in (run, finished[1])
        ]
        assert texts[0] == texts[1]
    assert done.stdout.count("final, step 5") == 1, "ranks above 0 are silent"


def test_the_same_seed_gives_the_same_files(finished, mount, flan_like):
    shutil.copy(finished[0] / "data/toy.json", mount / "data/toy.json")
    assert train(mount, flan_like, "--slice_by", "id", "--lr", "1e-2").returncode == 0
    for name in ("checkpoint-5/model.safetensors", "temperature=0.00_n=1_step=5.json"):
        assert (mount / "models/run" / name).read_bytes() == (finished[1] / name).read_bytes()


def command_line(mount, model):
    """The program and the arguments that every run of these tests has."""
    program = [ROOT / "seq2seq.py", "--mount", mount, "--model_init_path", model]
    return [*map(str, program), "--data", "toy", "--training_run_name", "run"]


def start(mount, model, *more):
    command = [
        sys.executable,
        *command_line(mount, model),
    ]
    command += [*map(str, SMALL_RUN), *map(str, more)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, timeout=120):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def test_a_killed_run_continues_bitwise(mount, flan_like, tmp_path):
    """kill -9 after the first checkpoint; the same command again ends with the numbers of a run left alone."""
    long = ("--max_steps", 40, "--eval_steps", 10, "--dropout", 0.1, "--lr", "1e-2")
    run = mount / "models/run"
    process = start(mount, flan_like, *long)
    wait_for(lambda: (run / "checkpoint-10").is_dir())
    process.kill()
    process.communicate()
    assert not (run / "report.json").exists()
    again = train(mount, flan_like, *long)
    assert again.returncode == 0, again.stderr
    assert "continued after step" in again.stdout
    write_data(tmp_path / "alone", "toy")
    assert train(tmp_path / "alone", flan_like, *long).returncode == 0
    alone = tmp_path / "alone/models/run"
    assert losses(run) == losses(alone)
    assert len(metrics_lines(run)) == len(metrics_lines(alone)), "no doubled lines"
    assert (run / "checkpoint-40/model.safetensors").read_bytes() == (
        alone / "checkpoint-40/model.safetensors"
    ).read_bytes()
    reports = [Report.model_validate_json((folder / "report.json").read_text()) for folder in (run, alone)]
    assert reports[0].final == reports[1].final
    assert reports[0].best == reports[1].best
    assert reports[0].initial == reports[1].initial


def test_two_processes_cannot_hold_one_run(mount, flan_like):
    process = start(mount, flan_like, "--max_steps", 2000)
    try:
        wait_for(lambda: (mount / "models/run/metrics.jsonl").exists())
        second = train(mount, flan_like, "--max_steps", 2000)
        assert second.returncode == 2
        assert f"held by process {process.pid}" in second.stderr
        third = train(mount, flan_like, "--overwrite_output_dir")
        assert third.returncode == 2
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_overwrite_moves_aside(finished, mount, flan_like):
    shutil.copytree(finished[1], mount / "models/run")
    done = train(mount, flan_like, "--overwrite_output_dir", "--max_steps", 1)
    assert done.returncode == 0, done.stderr
    aside = list((mount / "models").glob("run.old-*"))
    assert len(aside) == 1
    assert (aside[0] / "checkpoint-5/config.json").is_file()


def test_a_new_run_continues_from_a_named_checkpoint(finished, mount, flan_like):
    """The same data and settings from checkpoint-2 of another run give that run's later steps."""
    shutil.copy(finished[0] / "data/toy.json", mount / "data/toy.json")
    more = ("--slice_by", "id", "--lr", "1e-2", "--save_steps", 2)
    assert train(mount, flan_like, *more, "--save_total_limit", 9, name="first").returncode == 0
    done = train(mount, flan_like, *more, "--resume", mount / "models/first/checkpoint-4", name="second")
    assert done.returncode == 0, done.stderr
    assert losses(mount / "models/second") == {5: losses(mount / "models/first")[5]}
    assert json.loads((mount / "models/second/report.json").read_text())["best"]["step"] == 5
    assert (mount / "models/second/checkpoint-best-ckpt/config.json").is_file()
    over = train(mount, flan_like, *more, "--resume", mount / "models/first/checkpoint-5", name="fourth")
    assert over.returncode == 2
    assert "already at step 5" in over.stderr
    wrong = train(mount, flan_like, "--resume", mount / "nowhere", name="third")
    assert wrong.returncode == 2
    assert "no checkpoint there" in wrong.stderr


def test_answers_may_be_as_long_as_the_longest_completion(finished):
    """F12: generate() without a length stops after 20 tokens."""
    mount, run, _ = finished
    tokenizer = AutoTokenizer.from_pretrained(run / "checkpoint-5")
    rows = json.loads((mount / "data/toy.json").read_text())
    longest = max(len(tokenizer(row["completion"]).input_ids) for split in rows.values() for row in split)
    settings = json.loads((run / "checkpoint-5/generation_config.json").read_text())
    assert settings["max_new_tokens"] == longest


def test_retention_keeps_the_newest_and_the_best(mount, flan_like):
    done = train(mount, flan_like, "--save_total_limit", 1, "--save_steps", 1)
    assert done.returncode == 0, done.stderr
    run = mount / "models/run"
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-5", "checkpoint-best-ckpt"}
    assert (run / "checkpoint-best-ckpt/model.safetensors").is_file()


def rank_processes(mount):
    listed = subprocess.run(["pgrep", "-f", f"workflow.seq2seq.*{mount}"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def test_ranks_die_with_their_launcher(mount, flan_like):
    """Each rank has a session of its own; kill -9 of the launcher must not leave them running."""
    process = start(mount, flan_like, "--max_steps", 100000, "--nproc", 2)
    wait_for(lambda: (mount / "models/run/metrics.jsonl").exists())
    ranks = rank_processes(mount)
    assert len(ranks) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not rank_processes(mount), timeout=20)


def test_sigterm_stops_launcher_and_ranks(mount, flan_like):
    process = start(mount, flan_like, "--max_steps", 100000, "--nproc", 2)
    wait_for(lambda: (mount / "models/run/metrics.jsonl").exists())
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "Traceback" not in output
    assert not rank_processes(mount)


@pytest.mark.parametrize("nproc", [1, 2])
def test_errors_keep_their_exit_code_through_the_launcher(mount, flan_like, nproc):
    done = train(mount, flan_like, "--nproc", nproc, "--data", "toi")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1, done.stderr
    assert 'did you mean "toy"' in done.stderr
    assert "Traceback" not in done.stderr


def test_torchrun(mount, flan_like):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "0",
        "--rdzv_backend",
        "c10d",
        "--rdzv_endpoint",
        "localhost:0",
    ]
    command += [
        *command_line(mount, flan_like),
        *map(str, SMALL_RUN),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((mount / "models/run/report.json").read_text())["backend"]["ranks"] == 2


def test_wrong_input(mount, flan_like, tmp_path):
    def refused(expected, *arguments):
        done = run_program("--mount", mount, "--training_run_name", "w", "--max_steps", 2, *arguments)
        assert done.returncode == 2, (expected, done.stdout, done.stderr)
        assert expected in done.stderr
        assert "Traceback" not in done.stderr

    model = ("--model_init_path", flan_like)
    refused('did you mean "toy"', *model, "--data", "toi")
    refused("no such folder", "--model_init_path", tmp_path / "nowhere", "--data", "toy")
    refused("not a plain name", *model, "--data", "toy", "--training_run_name", "../w")
    refused("Input should be 'exact_match'", *model, "--data", "toy", "--best_metric", "accuracy")
    refused('did you mean "id"', *model, "--data", "toy", "--slice_by", "idd")
    refused("fp16 overflows", *model, "--data", "toy", "--deepspeed", fp16_file(tmp_path))
    refused("nothing is factored", *model, "--data", "toy", "--optimizer", "adafactor", "--deepspeed", "zero2")
    write_data(mount, "noeval", evaluation=0)
    refused("no eval rows", *model, "--data", "noeval", "--no_train")
    write_data(mount, "notrain", train=0)
    refused("no training rows", *model, "--data", "notrain")
    (mount / "data/empty.json").write_text("")
    refused("empty.json", *model, "--data", "empty")


def fp16_file(tmp_path):
    path = tmp_path / "fp16.json"
    path.write_text('{"fp16": {"enabled": true}, "zero_optimization": {"stage": 1}}')
    return path


def test_without_eval_rows_the_last_step_is_the_best(mount, flan_like):
    write_data(mount, "toy", evaluation=0)
    done = train(mount, flan_like)
    assert done.returncode == 0, done.stderr
    assert (mount / "models/run/checkpoint-best-ckpt/config.json").is_file()
    assert "no eval rows" in done.stdout


def test_a_full_disk_keeps_the_last_good_checkpoint(mount, flan_like):
    """RLIMIT_FSIZE stands in for a full disk: weights no longer fit, small files do."""
    import resource

    assert train(mount, flan_like).returncode == 0
    (mount / "models/run/report.json").unlink()
    shutil.rmtree(mount / "models/run/checkpoint-5")
    limit = (mount / "models/run/checkpoint-4/model.safetensors").stat().st_size // 2
    command = [
        sys.executable,
        *command_line(mount, flan_like),
    ]
    done = subprocess.run(
        [*command, *map(str, SMALL_RUN)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: (
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
        ),
    )
    assert done.returncode == 1, done.stderr
    assert "checkpoint-5: could not be saved" in done.stderr
    assert not (mount / "models/run/checkpoint-5").exists()
    assert not (mount / "models/run/report.json").exists()
    assert (mount / "models/run/checkpoint-4/model.safetensors").is_file()
    assert train(mount, flan_like).returncode == 0
