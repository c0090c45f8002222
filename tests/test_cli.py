"""The `workflow` command: help at once, misspellings named, each small command once right and once wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT, run_program


def run(*arguments, **options):
    return run_program(*arguments, module="workflow", **options)


def test_help_and_misspellings_need_no_torch():
    code = (
        "import sys\n"
        "from workflow import cli, errors\n"
        "assert cli.workflow(['-h']) == 0\n"
        "for argv in (['generat'], ['generate', 'x', '--promt', 'y'], ['data', 'chek'],\n"
        "             ['init-model', '--like', 'huge', '--out', 'x'], ['seq2seq', '--dat', 'x']):\n"
        "    try: cli.workflow(argv)\n"
        "    except errors.ConfigError as error: print(error, file=sys.stderr)\n"
        "assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout
    assert 'did you mean "generate"' in done.stderr
    assert 'unknown flag --dat; did you mean "--data"' in done.stderr


def test_version_and_no_command():
    assert run("--version").stdout.startswith("workflow ")
    assert run().returncode == 2


def test_config_show_tells_origins():
    done = run("config", "show", "--config", "configs/quickstart.json", "--lr", "1e-3")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert lines["lr"] == ["0.001", "flag"]
    assert lines["train_batch_size"] == ["64", "configs/quickstart.json"]
    assert lines["seed"] == ["0", "default"]


def test_data_check(mount, flan_like):
    done = run("data", "check", "toy", "--mount", mount, "--model_init_path", flan_like, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["splits"]["train"]["rows"] == 40
    assert found["splits"]["train"]["lengths"]["prompt"]["p100"] > 3
    assert isinstance(found["warnings"], list)
    people = run("data", "check", "toy", "--mount", mount)
    assert "no tokenizer given" in people.stdout
    (mount / "data/bad.json").write_text('{"train": [{"prompt": "a"}], "eval": []}')
    bad = run("data", "check", "bad", "--mount", mount)
    assert bad.returncode == 2
    assert 'train[0]: missing "completion"' in bad.stderr


@pytest.mark.slow
def test_init_model(mount):
    out = mount / "models/new"
    command = ("init-model", "--like", "tiny", "--data_name", "toy", "--mount", mount, "--out", out)
    assert run(*command).returncode == 0
    weights = (out / "model.safetensors").read_bytes()
    again = run(*command)
    assert "is there already" in again.stdout
    other = run(*command, "--seed", 3)
    assert other.returncode == 2
    assert "another recipe" in other.stderr
    assert run(*command[:-1], mount / "models/same").returncode == 0
    assert (mount / "models/same/model.safetensors").read_bytes() == weights
    assert run("init-model", "--like", "tiny", "--tokenizer", "byt5", "--out", mount / "models/bytes").returncode == 0
    assert "pass either" in run("init-model", "--like", "tiny", "--out", out).stderr


@pytest.mark.slow
def test_bytes_train_without_label_tokens(mount):
    """ByT5 has no single token for yes and no: scores are null, everything else works."""
    assert run("init-model", "--like", "tiny", "--tokenizer", "byt5", "--out", mount / "models/bytes").returncode == 0
    done = run_program(
        "--mount",
        mount,
        "--model_init_name",
        "bytes",
        "--data",
        "toy",
        "--max_steps",
        2,
        "--training_run_name",
        "b",
        "--no_eval_at_start",
    )
    assert done.returncode == 0, done.stderr
    records = json.loads((mount / "models/b/temperature=0.00_n=1_step=2.json").read_text())
    assert records[0]["generations"][0]["scores"] is None


def test_generate_refuses(mount):
    assert "either prompts or --data" in run("generate", "x").stderr
    assert "needs --out" in run("generate", "x", "--data", "y").stderr
    (mount / "models/right").mkdir(parents=True)
    wrong = run("generate", "rihgt", "hello", "--mount", mount)
    assert wrong.returncode == 2
    assert 'did you mean "right"' in wrong.stderr
    assert "no config.json" in run("generate", "right", "hello", "--mount", mount).stderr


def test_quickstart_outside_a_checkout(tmp_path):
    done = run("quickstart", cwd=tmp_path)
    assert done.returncode == 2
    assert "checkout" in done.stderr
