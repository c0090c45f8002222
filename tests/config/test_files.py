"""Settings files of all kinds say the same by the same words, and keys of other files and programs are named."""

from __future__ import annotations

import json

import pytest

from workflow.config.cascade import Layer, read_settings_file, resolve
from workflow.config.clf_settings import ClfSettings
from workflow.config.flags import parse
from workflow.config.yaml_text import document
from workflow.errors import ConfigError


def resolved(*argv):
    return parse(ClfSettings, argv, prog="clf.py", example="x", complete=False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1e3),
        ("-2.5e+1", -25.0),
        ("5", 5),
        ("-5", -5),
        (".5", 0.5),
        ("1.", 1.0),
        ("010", 10),
        ("1:30", "1:30"),
        ("2024-05-01", "2024-05-01"),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("1e", "1e"),
        ("e5", "e5"),
        ('"1e-3"', "1e-3"),
    ],
)
def test_yaml_has_json_s_numbers_and_words(text, value):
    found = document(f"a: {text}\n")["a"]
    assert (found, type(found)) == (value, type(value))


def test_yaml_and_json_files_are_one(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 1e-3\nlabels: [no, yes]\nbase: &b {swa: true}\nmore: {<<: *b, seed: 3}\n")
    (tmp_path / "a.json").write_text(
        json.dumps({"lr": 1e-3, "labels": ["no", "yes"], "base": {"swa": True}, "more": {"swa": True, "seed": 3}})
    )
    assert read_settings_file(tmp_path / "a.yaml") == read_settings_file(tmp_path / "a.json")


def test_a_doubled_key_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 1e-3\nseed: 1\nlr: 1e-4\n")
    with pytest.raises(ConfigError, match=r'a\.yaml: .*key "lr" stands twice in the object at line 1'):
        read_settings_file(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("parameters", "it is of a grid file: workflow sweep FILE"),
        ("registry", "it is of a transfer file: workflow suite transfer FILE"),
        ("tasks", "it is of a suite file"),
        ("variants", "it is of an ablation file"),
        ("zero_optimization", "it is of a DeepSpeed file: --deepspeed FILE"),
        ("num_train_epochs", 'here it is "num_epochs"'),
        ("per_device_train_batch_size", 'here it is "train_batch_size"'),
        ("max_seq_length", 'here it is "max_length"'),
        ("metric_for_best_model", 'here it is "save_best_metric"'),
        ("learning_rat", 'did you mean "learning_rate"'),
    ],
)
def test_keys_of_other_files_are_named(tmp_path, key, told):
    (tmp_path / "a.json").write_text(json.dumps({key: 1}))
    with pytest.raises(ConfigError) as error:
        resolved("--config", str(tmp_path / "a.json"))
    assert f'a.json: unknown key "{key}"' in str(error.value)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("flag", "ours"), [("--num_train_epochs", "--num_epochs"), ("--max-seq-length", "--max_length")]
)
def test_flags_of_other_programs_are_named(flag, ours):
    with pytest.raises(ConfigError, match=f"; here it is {ours}$"):
        resolved(flag, "3")


@pytest.mark.parametrize("word", ["False", "FALSE", "false", "no", "No", "off", "0"])
def test_off_in_any_spelling(word):
    flags = ("--r_drop", word, "--swa", word, "--swa.start", "3", "--no_train", word, "--ft_head_first", word)
    found = resolved(*flags).settings
    assert (found.strategies.r_drop, found.strategies.swa) == (None, None)
    assert (found.run.no_train, found.optim.ft_head_first) == (False, False)


@pytest.mark.parametrize("word", ["True", "TRUE", "true", "yes", "on", "1"])
def test_on_in_any_spelling(word):
    found = resolved("--r_drop", word, "--swa", word, "--swa.start", "3", "--no_train", word).settings
    assert (found.strategies.r_drop.alpha, found.strategies.swa.start, found.run.no_train) == (1.0, 3, True)


def test_cascading_files_of_another_practice(tmp_path):
    """Its hyper-parameters are taken; what says something else is told by name."""
    file = tmp_path / "finetune.json"
    taken = {"hyperparameters": {"epochs": 2, "learning_rate": 2.5e-5, "warmup_ratio": 0.05, "batch_size": 32}}
    file.write_text(json.dumps(taken))
    flags = {"model_init_path": "m", "data_name": "d"}
    settings = resolve(ClfSettings, [Layer(str(file), read_settings_file(file)), Layer("flag", flags)]).settings
    assert (settings.training.num_epochs, settings.optim.lr, settings.training.train_batch_size) == (2, 2.5e-5, 32)
    others = {
        "checkpoints": {"ipa": "a"},
        "tokenizers": {"prefix": "b"},
        "datasets": {"russian": "c"},
        "wandb": {},
        "hf_cache": "e",
    }
    with pytest.raises(ConfigError) as refused:
        resolve(ClfSettings, [Layer(str(file), {**taken, **others}), Layer("flag", flags)])
    told = str(refused.value)
    assert told.count("a transfer file") == 3
    assert '"hf_cache"; here: HF_HOME' in told
    assert '"wandb"; here: trackers' in told
