"""Strategies in flags and files: on and off by a word, field by field, presets below everything else."""

from __future__ import annotations

import json

import pytest

from workflow.config.clf_settings import ClfSettings
from workflow.config.flags import named_settings, parse
from workflow.config.settings import Seq2SeqSettings
from workflow.config.strategy_settings import steps_of
from workflow.errors import ConfigError


def resolved(*argv, kind=ClfSettings):
    return parse(kind, argv, prog="x", example="x", complete=False)


def strategies(*argv, kind=ClfSettings):
    return resolved(*argv, kind=kind).settings.strategies


@pytest.mark.parametrize("kind", [ClfSettings, Seq2SeqSettings])
def test_flags(kind):
    found = strategies("--r_drop.alpha", "2", "--strategies.swa.start=0.5", "--ema", "--reinit", "false", kind=kind)
    assert (found.r_drop.alpha, found.swa.start, found.ema.decay, found.reinit) == (2.0, 0.5, 0.999, None)
    assert strategies(kind=kind).r_drop is None


def test_files_are_merged_field_by_field(tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.yaml"
    first.write_text(json.dumps({"swa": {"start": 5, "every": 2}, "strategies": {"r_drop": True}, "ema": True}))
    second.write_text("swa:\n  start: 7\nema: false\nfreeze:\n  every: 3\n")
    found = strategies("--config", str(first), str(second), "--r-drop.alpha", "3")
    assert (found.swa.start, found.swa.every, found.r_drop.alpha, found.ema) == (7, 2, 3, None)
    assert found.freeze.every == 3
    one = resolved("--config", str(first), "--swa", "false")
    assert one.settings.strategies.swa is None
    assert (one.origin("swa"), one.origin("ema")) == ("flag", str(first))
    assert one.flat()["r_drop"] == {"alpha": 1.0}


def test_a_flag_that_turns_one_off_wins_over_its_fields():
    assert strategies("--swa", "false", "--swa.start", "3").swa is None
    assert strategies("--swa", "--swa.start", "3").swa.start == 3


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--r_drop.alhpa", "1"], 'did you mean "--r_drop.alpha"'),
        (["--r_drop.alpha", "-1"], "--r_drop.alpha = "),
        (["--grouped_layerwise_lrd.factors", "1", "-1.75", "3.5"], "--grouped_layerwise_lrd.factors"),
        (["--grouped_layerwise_lrd.factors", "0", "1", "2"], "each factor must be above 0"),
        (["--swa", "5"], "turned on and off by true and false"),
        (["--strategy", "layerwise"], "--strategy"),
        (["--layerwise_lrd", "--grouped_layerwise_lrd"], "pass one of them"),
        (["--freeze", "--ft_head_first"], "pass one of them"),
        (["--freeze.head", "0"], "does nothing"),
    ],
)
def test_mistakes_are_told(argv, told):
    with pytest.raises(ConfigError) as error:
        resolved(*argv)
    assert told in str(error.value)


def test_unknown_fields_of_files_are_told_once(tmp_path):
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"swa": {"strat": 1}}))
    with pytest.raises(ConfigError) as error:
        resolved("--config", str(file))
    assert str(error.value) == f'{file}: unknown key "swa.strat"; did you mean "start"?'


def test_presets_keep_their_meaning(tmp_path):
    found = strategies("--strategy", "layerwise_lrd").layerwise_lrd
    assert (found.top_lr, found.decay, found.head_lr) == (3.5e-6, 0.9, None)
    assert strategies("--strategy", "layerwise_lrd", "--lr", "1e-5").layerwise_lrd.top_lr is None
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"layerwise_lrd": {"decay": 0.5}, "lr_scheduler": "cosine"}))
    over = resolved("--config", str(file), "--strategy", "layerwise_lrd")
    assert over.settings.strategies.layerwise_lrd.decay == 0.5
    assert over.settings.strategies.layerwise_lrd.top_lr == 3.5e-6
    assert resolved("--strategy", "linear_scheduler", "--config", str(file)).settings.optim.lr_scheduler == "cosine"
    grouped = strategies("--strategy", "grouped_layerwise_lrd").grouped_layerwise_lrd
    assert (grouped.base_lr, grouped.factors, grouped.head) == (1e-6, (1, 1.75, 3.5), 3.6)
    assert resolved("--strategy", "layerwise_lrd").origin("layerwise_lrd") == "--strategy layerwise_lrd"


def test_flags_name_the_setting_that_they_belong_to():
    assert named_settings(ClfSettings, ["--r_drop.alpha", "1", "--lr", "2"]) == {"r_drop", "lr"}


@pytest.mark.parametrize(("value", "steps"), [(0.5, 50), (1, 1), (7, 7), (0.0, 0), (0.999, 100)])
def test_shares_and_numbers(value, steps):
    assert steps_of(value, 100) == steps
