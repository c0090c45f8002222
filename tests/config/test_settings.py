"""Flags, files and their cascade: who wins, where values come from, what is refused and how."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from workflow.config.cascade import Layer, resolve
from workflow.config.flags import parse
from workflow.config.sections import field_aliases, section_fields
from workflow.config.settings import Seq2SeqSettings
from workflow.data.registry import read_registry
from workflow.errors import ConfigError
from workflow.sweep.ablation_file import read_ablation
from workflow.sweep.suite_file import read_suite
from workflow.sweep.transfer_file import read_transfer

STUDIES = {
    "transfer-example.json": read_transfer,
    "language-database-example.json": read_registry,
    "suite-glue-small.json": read_suite,
    **dict.fromkeys(("ablation-cola.json", "ablation-cola-t5.json"), lambda path: read_ablation(path, study="study")),
}
"""The files under configs/ that are no settings, and what reads them."""
NEEDED = ("--model_init_path", "m", "--data", "d")


def flags(*argv: str, **options):
    return parse(Seq2SeqSettings, argv, prog="seq2seq.py", example="x", **options)


def test_defaults_of_the_contract():
    settings = flags(*NEEDED).settings
    assert (settings.training.train_batch_size, settings.training.num_epochs) == (16, 4)
    assert (settings.optim.warmup_steps, settings.evaluation.temperature, settings.evaluation.n_samples) == (
        2000,
        0.001,
        1,
    )


def test_the_contracts_commands_parse():
    command = (
        "--model_init_name flan-t5-xxl --training_run_name 0216syn_explain --gradient_accumulation_steps 2 --train_batch_size 8 "
        "--max_steps 6001 --data synthetic_explain --eval_steps 2000 --temperature 0.001 --n_samples 1"
    )
    settings = flags(*command.split()).settings
    assert settings.model.model_init_name == "flan-t5-xxl"
    assert (settings.training.max_steps, settings.data.data_name) == (6001, "synthetic_explain")
    every = "--warmup_steps 1 --num_epochs 2 --eval_batch_size 3 --save_steps 4 --no_train --debug --overwrite_output_dir --pred_dir p --seed 5"
    assert flags(*NEEDED, *every.split()).settings.run.pred_dir == "p"


def test_spellings_of_flags():
    assert flags(*NEEDED, "--max-steps=7").settings.training.max_steps == 7
    assert flags(*NEEDED, "--batch_size", "9", "--learning_rate", "1e-3").settings.optim.lr == 1e-3
    assert flags(*NEEDED, "--no_train", "false").settings.run.no_train is False
    assert flags(*NEEDED, "--local_rank=1").settings.training.max_steps is None


def test_cascade_is_deep_and_keeps_origins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/default.json").write_text('{"optim": {"lr": 1e-3, "weight_decay": 0.1}, "seed": 3}')
    (tmp_path / "a.json").write_text('{"training": {"max_steps": 10}, "learning_rate": 2e-3, "data": "x" /* why */ }')
    (tmp_path / "b.yaml").write_text("training:\n  epochs: 2\noptim: {lr: 3e-3}\n")
    found = flags("--config", "a.json", "b.yaml", "--seed", "8", "--model_init_path", "m")
    settings = found.settings
    assert (settings.optim.lr, settings.optim.weight_decay, settings.run.seed) == (3e-3, 0.1, 8)
    assert (settings.training.max_steps, settings.training.num_epochs, settings.data.data_name) == (None, 2, "x")
    origins = {name: found.origin_text(name) for name in ("lr", "weight_decay", "seed", "max_steps", "temperature")}
    assert origins == {
        "lr": "b.yaml",
        "weight_decay": "configs/default.json",
        "seed": "flag",
        "max_steps": "default (10 of a.json unset by num_epochs of b.yaml)",
        "temperature": "default",
    }


def test_all_problems_at_once(tmp_path):
    (tmp_path / "a.json").write_text('{"optim": {"learning_rat": 1, "eval_steps": 3}, "training": 4}')
    with pytest.raises(ConfigError) as caught:
        flags("--config", str(tmp_path / "a.json"), "--max_stepz", "5", "--lr", "abc", "--n_samples", "0")
    text = str(caught.value)
    for part in (
        '--max_stepz; did you mean "--max_steps"',
        'unknown key "optim.learning_rat"; did you mean "learning_rate"',
        'unknown key "optim.eval_steps"',
        '"training" is a section',
        "no model",
        "no data",
        '--lr = "abc"',
        '--n_samples = "0"',
    ):
        assert part in text, part
    assert text.startswith("8 problems")


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("{", "a.json", "not a valid settings file"),
        ("[1]", "a.json", "holds one object"),
        ('{"lr": 1, "lr": 2}', "a.json", "not a valid settings file"),
        ('{"lr": 1, "learning_rate": 2}', "a.json", "given twice"),
        ("a: [", "a.yaml", "not a valid settings file"),
    ],
)
def test_bad_settings_files(tmp_path, text, name, expected):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=expected):
        flags(*NEEDED, "--config", str(tmp_path / name))


def test_missing_settings_file():
    with pytest.raises(ConfigError, match=r"nowhere.json: cannot read"):
        flags(*NEEDED, "--config", "nowhere.json")


def test_values_are_checked_together():
    with pytest.raises(ConfigError, match="num_beams needs greedy"):
        flags(*NEEDED, "--num_beams", "4", "--temperature", "0.7")
    with pytest.raises(ConfigError, match="unexpected argument"):
        flags(*NEEDED, "stray")
    with pytest.raises(ConfigError, match="finite"):
        flags(*NEEDED, "--lr", "nan")


def test_an_empty_model_is_none(tmp_path):
    (tmp_path / "a.json").write_text('{"model_init_path": null}')
    for argv in (("--model_init_path", ""), ("--config", str(tmp_path / "a.json"))):
        with pytest.raises(ConfigError, match="no model"):
            flags("--data", "d", *argv)


def test_a_misspelt_stage():
    with pytest.raises(ConfigError, match='did you mean "zero2"'):
        flags(*NEEDED, "--deepspeed", "zreo2")


def test_fp16_is_refused_with_the_reason():
    """F10: fp16 overflows T5."""
    with pytest.raises(ConfigError, match='--precision = "fp16": fp16 overflows in T5'):
        flags(*NEEDED, "--precision", "fp16")


def test_flags_win_over_files_for_nested_objects():
    merged = resolve(
        Seq2SeqSettings,
        [Layer("a", {"lr": 1.0, "data": "x", "model_init_path": "m"}), Layer("b", {"optim": {"lr": 0.5}})],
    )
    assert merged.settings.optim.lr == 0.5


def test_every_setting_is_documented_and_unique():
    fields = section_fields(Seq2SeqSettings)
    spellings = [spelling for name, (_, field) in fields.items() for spelling in (name, *field_aliases(field))]
    assert len(spellings) == len(set(spellings))
    assert all(field.description and len(field.description) > 10 for _, field in fields.values())


def test_help_needs_no_torch():
    code = (
        "import sys; sys.argv = ['seq2seq.py', '-h']\n"
        "from workflow.seq2seq import seq2seq\n"
        "try:\n    seq2seq(['-h'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--train_batch_size" in done.stdout
    assert "(default: 16)" in done.stdout
    assert "example:" in done.stdout


def test_schema_accepts_our_own_config_files():
    done = subprocess.run(
        [sys.executable, "-m", "workflow", "config", "schema"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    schema = json.loads(done.stdout)
    assert schema["additionalProperties"] is False
    assert {"training", "learning_rate", "data_name"} <= set(schema["properties"])
    for path in (ROOT / "configs").glob("*.json"):
        if path.name not in STUDIES:
            assert flags("--config", str(path), complete=False)


@pytest.mark.parametrize("name", STUDIES)
def test_our_own_files_of_studies_are_what_their_readers_take(name):
    assert STUDIES[name](ROOT / "configs" / name)
