"""`workflow plan` and --dry_run as users call them: what is said, what is refused, what is left untouched."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import ROOT, run_program
from workflow.cli import workflow
from workflow.errors import ConfigError, DataError, ModelError
from workflow.models.published import published_config
from workflow.recipe import plan_inputs

MULTINODE = ROOT / "ds_configs/zero3_multinode.json"
XXL = ("--model_init_path", "google/flan-t5-xxl")


@pytest.fixture(autouse=True)
def no_gpu_here(monkeypatch):
    monkeypatch.setattr(plan_inputs, "_gpus_here", list)


def planned(capsys, *arguments) -> dict:
    assert workflow(["plan", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_xxl_on_four_gpus(capsys):
    found = planned(capsys, *XXL, "--gpus", 4, "--max_source_length", 512, "--max_target_length", 114)
    assert found["parameters"] == 11_135_332_352
    (four,) = found["plans"]
    pick = four["pick"]
    assert (pick["deepspeed"], pick["gradient_checkpointing"], pick["fits"]) == ("zero3", False, True)
    assert pick["weights_bytes"] + pick["gradients_bytes"] + pick["optimizer_bytes"] == 18 * 11_135_332_352 / 4
    names = {one["deepspeed"] for one in four["estimates"]}
    assert names == {"zero1", "zero2", "zero3", "ds_configs/zero2_offload.json", "ds_configs/zero3_offload.json"}
    assert found["work"] is None, "neither steps nor rows are known"


def test_xxl_on_one_small_gpu_is_refused(capsys):
    with pytest.raises(ConfigError) as caught:
        workflow(["plan", *XXL, "--gpus", "1", "--gpu_memory", "24GB"])
    text = str(caught.value)
    assert "does not fit 1 x 24 GB" in text
    assert "such GPUs (zero3" in text
    assert "ds_configs/zero3_offload.json" in text
    assert "add --lora_r 16" in text
    shown = capsys.readouterr().out
    assert "1 GPU: nothing fits." in shown
    assert "zero3_offload" in shown


def test_a_table_for_people(capsys):
    assert workflow(["plan", *XXL, "--max_steps", "6000", "--gpu", "H100", "--mfu", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert "11,135.3 M parameters; bf16 with fp32 masters, adamw" in shown
    assert "4 GPUs: pass --deepspeed zero3" in shown
    assert "no --data_name given: every row is taken to be as long as the limits, 1024 + 512 tokens" in shown
    assert "50% of the 989 TFLOP/s" in shown
    assert all(len(line) <= 140 for line in shown.splitlines() if line[:1] in "┃│")


def test_what_is_given_is_kept_to(capsys):
    asked = ("--deepspeed", "zero2", "--gradient_checkpointing", "--micro_batch_tokens", 4096)
    found = planned(capsys, "--model_init_path", "google/flan-t5-large", "--gpus", 2, *asked)
    (two,) = found["plans"]
    assert {one["deepspeed"] for one in two["estimates"]} == {"zero2"}
    assert two["pick"]["gradient_checkpointing"]
    assert found["rows_at_once"] == 4096 // 1536
    fp32 = planned(capsys, "--model_init_path", "t5-small", "--precision", "fp32", "--gpus", 1)
    assert fp32["plans"][0]["pick"]["deepspeed"] == "zero0"
    assert fp32["plans"][0]["hours"] is None


@pytest.mark.parametrize(
    ("flags", "error", "told"),
    [
        (
            ("clf", "--model_pretrain_name", "gpt2-xl", "--lora_r", "8", "--lora_base", "nf4"),
            ConfigError,
            "--lora_base nf4",
        ),
        (("--model_init_path", "bert-base-uncased"), ModelError, "a bert model; seq2seq fine-tunes t5"),
        ((*XXL, "--deepspeed", str(MULTINODE)), ConfigError, "zero_hpz_partition_size 8 does not divide 4 GPUs"),
    ],
)
def test_what_training_refuses_is_refused(flags, error, told):
    with pytest.raises(error, match=told):
        workflow(["plan", *flags, "--gpus", "4"])


@pytest.mark.parametrize("adapters", [(), ("--lora_r", 8)])
def test_a_second_set_of_shares_is_counted(capsys, adapters):
    """Two bytes a weight, of those that do not train too, divided by the 8 of a group."""
    weights = []
    for name in ("zero3", MULTINODE):
        found = planned(capsys, *XXL, "--gpus", 16, "--deepspeed", name, *adapters)
        weights.append(found["plans"][0]["pick"]["weights_bytes"])
    assert weights[1] - weights[0] == pytest.approx(2 * found["parameters"] / 8, rel=0.01)


def test_strategies_are_counted(capsys):
    """R-Drop's second pass, and an fp32 average, which ZeRO shares out."""
    large = ("--model_init_path", "google/flan-t5-large", "--gpus", 2, "--max_steps", 10, "--deepspeed", "zero2")
    plain, more = planned(capsys, *large), planned(capsys, *large, "--r_drop", "--swa", "--ema")
    assert (more["passes"], more["averages"]) == (2, 2)
    assert more["work"]["flops"] == 2 * plain["work"]["flops"]
    assert more["work"]["tokens"] == plain["work"]["tokens"]
    (one,), (other,) = plain["plans"], more["plans"]
    one, other = one["pick"], other["pick"]
    assert other["optimizer_bytes"] - one["optimizer_bytes"] == 2 * 4 * plain["parameters"] // 2
    assert 1.8 < other["activations_bytes"] / one["activations_bytes"] <= 2


def test_a_file_of_ones_own(capsys, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3, "reduce_buckt_size": 1000}}))
    with pytest.raises(ConfigError, match='did you mean "reduce_bucket_size"'):
        workflow(["plan", *XXL, "--max_steps", "10", "--deepspeed", str(file)])
    file.write_text(json.dumps({"zero_optimization": {"stage": 3, "reduce_bucket_size": 1000}}))
    found = planned(capsys, "--model_init_path", "google/flan-t5-base", "--deepspeed", file, "--gpus", 2)
    assert found["plans"][0]["pick"]["deepspeed"] == str(file)


def test_lengths_and_steps_of_the_data(capsys, flan_like, mount):
    """40 rows in 4 passes of 16 rows an update; the longest row is the data's own."""
    from workflow.data.encoders import LengthLimits, Seq2SeqEncoder
    from workflow.data.examples import SEQ2SEQ, load_examples
    from workflow.data.features import load_features
    from workflow.data.sources import find_source
    from workflow.models.load import load_tokenizer
    from workflow.paths import cache_dir

    found = planned(capsys, "--model_init_path", flan_like, "--data", "toy", "--mount", mount, "--gpus", 1)
    encoder = Seq2SeqEncoder(load_tokenizer(str(flan_like)), LengthLimits(1024, 512))
    features = load_features(
        load_examples(find_source("toy", mount), SEQ2SEQ, cache_dir()), "train", encoder, cache_dir()
    )
    sums = features.lengths("prompt") + features.lengths("completion")
    assert found["work"]["steps"] == 10
    assert found["work"]["tokens"] == pytest.approx(10 * 16 * float(np.mean(sums)))
    assert sum(found["longest_row"].values()) == sums.max()
    assert found["lengths"] == "lengths of the 40 training rows"


def test_a_name_under_the_mount(capsys, flan_like, mount):
    (mount / "models").mkdir()
    (mount / "models/mine").symlink_to(flan_like)
    mine = planned(capsys, "--model_init_name", "mine", "--mount", mount, "--gpus", 1)
    assert mine["parameters"] < 10**6
    published = planned(capsys, "--model_init_name", "flan-t5-small", "--mount", mount, "--gpus", 1)
    assert published["parameters"] == 76_961_152


def test_data_that_is_elsewhere_is_no_obstacle(capsys, tmp_path):
    more = ("--data_name", "elsewhere", "--mount", tmp_path, "--max_steps", 10)
    assert "the data is not here" in planned(capsys, "--model_init_path", "t5-small", *more)["lengths"]


def test_clf(capsys, bert_like, t5_like, mount):
    for model in (bert_like, t5_like):
        found = planned(
            capsys, "clf", "--model_pretrain_name", model, "--data", "scored", "--mount", mount, "--gpus", 1
        )
        assert found["work"]["steps"] == 3000
        assert found["longest_row"]["source_tokens"] > 5
        assert found["longest_row"]["target_tokens"] == (model == t5_like)


def test_a_model_of_the_hubs_cache(capsys, monkeypatch, tmp_path, flan_like):
    import huggingface_hub

    def cached(name, file):
        path = flan_like / file
        return str(path) if name == "somebody/mine" and path.exists() else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert planned(capsys, "--model_init_path", "somebody/mine", "--gpus", 1)["parameters"] < 10**6
    with pytest.raises(ModelError, match=r"no config\.json in the hub's cache"):
        workflow(["plan", "--model_init_path", "somebody/others"])


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((), ConfigError, "no model: pass --model_init_path"),
        (("--model_init_path", "google/flan-t5-xll"), ModelError, 'did you mean "flan-t5-xl"'),
        ((*XXL, "--gpus", "0"), ConfigError, "at least 1"),
        ((*XXL, "--gpu_memory", "huge"), ConfigError, "a size such as 80GB"),
        ((*XXL, "--gpu", "H10"), ModelError, 'did you mean "H100"'),
        ((*XXL, "--mfu", "40"), ConfigError, "at most 1"),
        ((*XXL, "--max_stesp", "4"), ConfigError, 'did you mean "--max_steps"'),
        ((*XXL, "--optimizer", "adafactor"), ConfigError, "nothing is factored"),
        ((*XXL, "--deepspeed", "zero0"), ConfigError, "bias correction"),
    ],
)
def test_refusals(arguments, error, says):
    with pytest.raises(error, match=says):
        workflow(["plan", *arguments])


def test_no_torch_for_a_published_model(tmp_path):
    """Fast on a laptop: neither torch nor transformers is imported."""
    code = (
        "import sys\nfrom workflow.cli import workflow\nfrom workflow.recipe import plan_inputs\n"
        "plan_inputs._gpus_here = list\n"
        f"assert workflow(['plan', *{XXL!r}, '--max_steps', '10']) == 0\n"
        "assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules)"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("script", "more"),
    [
        ("seq2seq.py", ("--model_init_path", "MODEL", "--data", "toy", "--training_run_name", "r")),
        ("clf.py", ("--model_pretrain_name", "MODEL", "--data", "scored", "--training_run_name", "r")),
    ],
)
def test_dry_run_touches_nothing(script, more, flan_like, mount):
    arguments = [flan_like if part == "MODEL" else part for part in more]
    done = run_program("--mount", mount, *arguments, "--dry_run", script=script)
    assert done.returncode == 0, done.stderr
    assert "pass --deepspeed" in done.stdout
    assert not (mount / "models").exists()


def test_dry_run_wants_the_data(mount, flan_like):
    from workflow.seq2seq import seq2seq

    with pytest.raises(DataError):
        seq2seq(["--mount", str(mount), "--model_init_path", str(flan_like), "--data", "toyy", "--dry_run"])


def test_of_several_ranks_one_speaks(mount, flan_like, capsys, monkeypatch):
    from workflow.seq2seq import seq2seq

    arguments = ["--mount", str(mount), "--model_init_path", str(flan_like), "--data", "toy", "--dry_run"]
    for rank in (0, 1):
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, str(value))
        assert seq2seq(arguments) == 0
        shown = capsys.readouterr().out
        assert ("2 CPU ranks: pass --deepspeed zero2" in shown) == (rank == 0)


def test_the_machines_gpus(monkeypatch, capsys):
    here = [("NVIDIA H200", 150 * 10**9), ("NVIDIA H200", 140 * 10**9)]
    monkeypatch.setattr(plan_inputs, "_gpus_here", lambda: here)
    found = planned(capsys, "--model_init_path", "google/flan-t5-xl", "--max_steps", 10)
    assert [one["world_size"] for one in found["plans"]] == [2]
    assert found["memory_bytes"] == 140 * 10**9, "the smallest counts"
    assert found["assumed"]["gpu"] == "NVIDIA H200"


def test_auto_asks_the_estimate(flan_like, mount, monkeypatch):
    """What a run on GPUs would do with `--deepspeed auto`, decided from the loaded model and the data; the same on every rank."""
    import transformers

    from workflow.config.cascade import Layer, resolve
    from workflow.config.settings import Seq2SeqSettings
    from workflow.console import make_console
    from workflow.recipe import backend_choice
    from workflow.recipe.backend_choice import choose_backend, fitted_backend, planned_backend
    from workflow.recipe.place import Place
    from workflow.recipe.seq2seq_task import Seq2SeqTask
    from workflow.runtime import Ranks

    values = {"model_init_path": str(flan_like), "data_name": "toy", "precision": "bf16"}
    resolved = resolve(Seq2SeqSettings, [Layer("flag", values)])
    task = Seq2SeqTask(resolved, Place(Ranks(1, 4, 1), "cpu", mount, make_console(quiet=True)))
    task.load_model(str(flan_like), trained=False)
    lengths = SimpleNamespace(source_lengths=np.array([9, 30]), target_lengths=np.array([40, 8]), passes=1)
    monkeypatch.setattr(backend_choice, "on_first", lambda work, ranks: work())
    plan = planned_backend(task)
    assert plan.name == "zero2"
    assert fitted_backend(task, plan, lengths) is plan, "on CPUs nothing changes"
    wide = choose_backend(task, plan, lengths, memory=80 * 10**9)
    assert (wide.name, wide.stage) == ("zero2", 2)
    assert "longest row takes" in wide.why
    task.loaded.model.config.update(published_config("google/flan-t5-xxl"))
    narrow = choose_backend(task, plan, lengths, memory=80 * 10**9)
    assert (narrow.name, narrow.stage, narrow.config["zero_optimization"]["stage"]) == ("zero3", 3, 3)
    assert "zero2 would not fit" in narrow.why
    long = {"source_lengths": np.array([900]), "target_lengths": np.array([400])}
    once, twice = (
        choose_backend(task, plan, SimpleNamespace(**long, passes=passes), memory=80 * 10**9) for passes in (1, 2)
    )
    assert once.why != twice.why, "R-Drop's second pass takes memory"
    none = choose_backend(task, plan, lengths, memory=40 * 10**9)
    assert none.name == "zero3"
    assert "will not fit" in none.why
    other = transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(n_layers=1, vocab_size=9))
    task.loaded = replace(task.loaded, model=other)
    kept = choose_backend(task, plan, lengths, memory=10**9)
    assert kept == replace(plan, why="this model's memory is not estimated")


def test_a_base_in_4_bits(capsys):
    """Flan-T5 XXL on one GPU of 24 GB: 4.127 bits a number of its linear maps, and no stage that shards."""
    small = (*XXL, "--gpus", "1", "--gpu_memory", "24GB", "--lora_r", "8")
    with pytest.raises(ConfigError, match="add --lora_base nf4"):
        workflow(["plan", *small])
    capsys.readouterr()
    found = planned(capsys, *small, "--lora_base", "nf4", "--gradient_checkpointing")
    layers, attentions = 48, 72
    maps = layers * 3 * 4096 * 10240 + attentions * 4 * 4096 * 4096
    assert found["quantised_parameters"] == maps
    pick = found["plans"][0]["pick"]
    adapters = 8 * attentions * 4 * 2 * 4096
    rest = 2 * (found["parameters"] - maps + adapters)
    assert pick["weights_bytes"] == pytest.approx(maps * 4.127 / 8 + rest, rel=1e-4)
    assert {one["deepspeed"] for one in found["plans"][0]["estimates"]} == {
        "zero1",
        "zero2",
        "ds_configs/zero2_offload.json",
    }
    assert workflow(["plan", *small, "--lora_base", "nf4"]) == 0
    assert "of them frozen in NF4 (5.6" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="with zero3"):
        planned(capsys, *small, "--lora_base", "nf4", "--deepspeed", "zero3")
