"""The `workflow` command: help at once, misspellings named, each small command once right and once wrong."""

from __future__ import annotations

import json
import os
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
    recipe = json.loads((out / "init_model.json").read_text())
    old = {key: value for key, value in recipe.items() if key not in ("arch", "labels")}
    (out / "init_model.json").write_text(json.dumps(old))
    assert "is there already" in run(*command).stdout, "a recipe from before there were architectures"
    assert "another recipe" in run(*command, "--labels", "negative").stderr


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["bert", "gpt2"])
def test_init_model_of_other_architectures(arch, mount):
    """Byte for byte the same from two processes; from rows of a classification, pairs among them."""
    rows = [{"input": "the red frog", "target": 1}, {"sentence1": "blue", "sentence2": "frogs", "target": 0}]
    (mount / "data/pairs.json").write_text(json.dumps({"train": rows * 20, "eval": rows}))
    command = ("init-model", "--arch", arch, "--like", "tiny", "--data_name", "pairs", "--mount", mount, "--out")
    for name, parallel in (("one", "true"), ("two", "false")):
        done = run(*command, mount / "models" / name, env={"TOKENIZERS_PARALLELISM": parallel})
        assert done.returncode == 0, done.stderr
        assert f"{arch} tiny from scratch" in done.stdout
    one, two = mount / "models/one", mount / "models/two"
    assert {path.name for path in one.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name
    assert "frogs" in (one / "tokenizer.json").read_text()
    assert "is there already" in run(*command, one).stdout
    assert "another recipe" in run(*command, one, "--seed", 3).stderr
    from_folder = run(*command[:5], "--tokenizer", one, "--out", mount / "models/three")
    assert from_folder.returncode == 0, from_folder.stderr


def test_init_model_refuses(mount):
    """Flags that do not go together, before anything is read or made."""
    from workflow.cli import workflow
    from workflow.errors import ConfigError, DataError

    def refusal(*arguments, error=ConfigError):
        out = mount / "models/refused"
        with pytest.raises(error) as caught:
            workflow(["init-model", "--mount", str(mount), "--out", str(out), *arguments])
        assert not out.exists()
        return str(caught.value)

    toy = ("--data_name", "toy")
    assert "no shape of bert, which has tiny, bert-base; pass --arch t5 for it" in refusal(
        "--arch", "bert", "--like", "t5-small", *toy
    )
    assert 'did you mean "bert-base"' in refusal("--arch", "bert", "--like", "bertbase", *toy)
    assert "no shape of t5, which has tiny, t5-small" in refusal("--like", "huge", *toy)
    assert "invalid choice" in refusal("--arch", "lstm", "--like", "tiny", *toy)
    assert "byt5 is for --arch t5" in refusal("--arch", "gpt2", "--like", "tiny", "--tokenizer", "byt5")
    assert "--labels is for --arch t5" in refusal("--arch", "bert", "--like", "tiny", *toy, "--labels", "good")
    assert "trained by --data_name" in refusal("--like", "tiny", "--tokenizer", "byt5", "--labels", "good")
    for odd in ("", " ", "two words", " good", "\u2581good"):
        assert "is not one word" in refusal("--like", "tiny", *toy, "--labels", "good", odd)
    assert "at least 1, not 0" in refusal("--like", "tiny", *toy, "--vocab_size", "0")

    file = mount / "data/odd.json"
    for rows, expected in (
        (
            {"train": [{"input": "a"}, {"target": 1}], "eval": []},
            "train[1]: no text under any of prompt, completion, input",
        ),
        ({"train": [{"input": "a"}], "eval": [{"input": 3, "sentence": None}]}, "eval[0]: no text under any of"),
        ({"train": [{"input": "a", "sentence": "\ud800"}], "eval": []}, 'train[0]: "sentence" holds half a surrogate'),
        ({"train": [], "eval": [{"input": "a"}]}, "no training rows"),
    ):
        file.write_text(json.dumps(rows))
        assert f"{file}: {expected}" in refusal("--like", "tiny", "--data_name", "odd", error=DataError)


def test_init_model_labels(mount):
    from transformers import AutoTokenizer

    from workflow.cli import workflow
    from workflow.models.verbalizers import single_token

    rows = [{"sentence": "it was fine", "label": "positive", "idx": 3}, {"input": "it was not", "input_pair": "at all"}]
    (mount / "data/words.json").write_text(json.dumps({"train": rows * 9, "eval": rows}))
    command = ["init-model", "--like", "tiny", "--data", "words", "--vocab_size", "60", "--mount", str(mount)]
    out = mount / "models/words"
    assert workflow([*command, "--out", str(out), "--labels", "negative", "neutral", "positive"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert len({single_token(tokenizer, word) for word in ("negative", "neutral", "positive", "yes", "no")}) == 5
    assert tokenizer.unk_token_id not in tokenizer("it was fine at all not").input_ids


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


def test_every_command_leads_to_a_function():
    import importlib

    from workflow.cli import COMMANDS

    for command in COMMANDS.values():
        module, function = command.function.split(":")
        assert callable(getattr(importlib.import_module(f"workflow.{module}"), function))


def test_ranks_are_of_the_launcher_s_package(tmp_path):
    """A checkout's seq2seq.py may be called from another folder, where `-m workflow` would find an installed package or none."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from workflow.launch import *; "
        "launch('workflow', ['--version'], nproc=1, supervision=Supervision())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("workflow "), done.stderr
