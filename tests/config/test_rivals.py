"""Settings that silence one another: by layer the later one wins and unsets its rivals, within a layer both are refused."""

from __future__ import annotations

import json

import pytest

from workflow.commands.configuring import config
from workflow.config.affects import PROGRAMS, names_that_affect
from workflow.config.cascade import FLAGS, Layer, resolve
from workflow.config.clf_settings import ClfSettings
from workflow.config.rivals import dependents_of, is_set, rivals_of, silenced_by, without_silenced
from workflow.config.sections import affected_by, section_fields
from workflow.config.settings import Seq2SeqSettings
from workflow.errors import ConfigError
from workflow.results.best import chosen_settings
from workflow.server.settings import ServeSettings

CLF, SEQ2SEQ = ClfSettings, Seq2SeqSettings
PAIRS = [
    (SEQ2SEQ, "max_steps", 10, "num_epochs", 2.0),
    (CLF, "max_steps", 10, "num_epochs", 2.0),
    (SEQ2SEQ, "warmup_ratio", 0.1, "warmup_steps", 7),
    (SEQ2SEQ, "model_init_path", "a", "model_init_name", "b"),
    (CLF, "model_init_path", "a", "model_init_name", "b"),
    (SEQ2SEQ, "lora_r", 8, "train_only", "bias"),
    (CLF, "ft_head_first", True, "freeze", {"head": 2}),
    (CLF, "layerwise_lrd", {"decay": 0.5}, "grouped_layerwise_lrd", {"head": 2.0}),
    (CLF, "layerwise_lrd", {"top_lr": 1e-5}, "lr", 1e-3),
    (CLF, "grouped_layerwise_lrd", {"base_lr": 1e-5}, "lr", 1e-3),
]
COMPANIONS = [
    (CLF, "model_init_path", "a", "model_pretrain_name", "b"),
    (CLF, "model_init_name", "a", "model_pretrain_name", "b"),
    (ServeSettings, "models", "/a", "mount", "/b"),
]


def layered(kind, *layers):
    """The first is a file, the last one the flags, between them the environment."""
    names = ["a.json", "environment", FLAGS][-len(layers) :] if len(layers) > 1 else [FLAGS]
    return resolve(kind, [Layer(name, values) for name, values in zip(names, layers, strict=True)], complete=False)


@pytest.mark.parametrize(("kind", "one", "first", "other", "second"), [*PAIRS, *COMPANIONS])
def test_the_later_layer_wins_and_unsets_the_rival(kind, one, first, other, second):
    defaults = resolve(kind, [], complete=False).flat()
    for earlier, later in (({one: first}, {other: second}), ({other: second}, {one: first})):
        found, alone = layered(kind, earlier, later), layered(kind, later).flat()
        (name,) = earlier
        if "lr" not in (name, *later) or name == "lr":  # of a strategy only the rate goes: the next test
            assert found.flat()[name] == defaults[name]
        assert {key: found.flat()[key] for key in alone if key != name} == {
            key: value for key, value in alone.items() if key != name
        }
        assert "unset by" in found.origin_text(name)
        assert "environment" in found.origin_text(name)


@pytest.mark.parametrize(("kind", "one", "first", "other", "second"), PAIRS)
def test_one_layer_may_not_set_both(kind, one, first, other, second):
    with pytest.raises(ConfigError, match=r"cannot both count; pass one of them"):
        layered(kind, {one: first, other: second})
    with pytest.raises(ConfigError, match=r"^a\.json: .*cannot both count; pass one of them$"):
        resolve(kind, [Layer("a.json", {one: first, other: second})], complete=False)


@pytest.mark.parametrize(("kind", "one", "first", "other", "second"), COMPANIONS)
def test_companions_may_stand_in_one_layer(kind, one, first, other, second):
    found = layered(kind, {one: first, other: second}).flat()
    assert (found[one], found[other]) == (first, second)


def test_what_is_off_is_no_rival():
    for values in (
        {"model_init_path": None, "model_init_name": "m"},
        {"model_init_path": "", "model_init_name": "m"},
        {"lora_r": "0", "train_only": "bias"},
        {"max_steps": None, "num_epochs": 2},
        {"layerwise_lrd": "false", "grouped_layerwise_lrd": True},
        {"layerwise_lrd": {"top_lr": None}, "lr": 1e-3},
    ):
        assert layered(SEQ2SEQ, values)
    assert layered(SEQ2SEQ, {"model_init_name": "m"}, {"model_init_path": None}).flat()["model_init_name"] == "m"
    assert is_set(SEQ2SEQ, "warmup_steps", 0)  # none is a wish, where 2000 is the default


def test_a_rate_of_a_strategy_goes_by_layer_and_the_strategy_stays():
    found = layered(CLF, {"layerwise_lrd": {"top_lr": 1e-5, "decay": 0.5}}, {"lr": 1e-3})
    assert found.settings.strategies.layerwise_lrd.top_lr is None
    assert found.settings.strategies.layerwise_lrd.decay == 0.5
    assert found.origin_text("layerwise_lrd") == "environment (top_lr: 1e-05 of environment unset by lr of flag)"


def test_presets_have_rivals_too():
    found = layered(CLF, {"strategy": "layerwise_lrd"}, {"grouped_layerwise_lrd": True}).settings.strategies
    assert (found.strategy, found.layerwise_lrd) == (None, None)
    found = layered(CLF, {"grouped_layerwise_lrd": True}, {"strategy": "layerwise_lrd"}).settings.strategies
    assert found.grouped_layerwise_lrd is None
    assert found.layerwise_lrd.top_lr == 3.5e-6
    with pytest.raises(ConfigError, match=r"--strategy and --grouped_layerwise_lrd cannot both count"):
        layered(CLF, {"strategy": "layerwise_lrd", "grouped_layerwise_lrd": True})
    assert layered(CLF, {"strategy": "layerwise_lrd", "lr": 1e-3}).settings.strategies.layerwise_lrd.top_lr is None
    assert layered(CLF, {"lr": 1e-3}, {"strategy": "layerwise_lrd"}).settings.optim.lr == 1e-3


@pytest.mark.parametrize(
    ("below", "above", "gone"),
    [
        ({"lora_r": 8, "lora_alpha": 4}, {"train_only": "bias"}, ("lora_r", "lora_alpha")),
        ({"lora_r": 8, "lora_kind": "dora"}, {"lora_r": 0}, ("lora_kind",)),
        ({"ft_head_first": True, "head_steps": 3}, {"freeze": True}, ("ft_head_first", "head_steps")),
        ({"ft_head_first": True, "head_steps": 3}, {"ft_head_first": "false"}, ("head_steps",)),
        ({"metrics_port": 9400, "metrics_host": "0.0.0.0"}, {"metrics_port": None}, ("metrics_host",)),
    ],
)
def test_what_needs_an_unset_setting_goes_with_it(below, above, gone):
    found = layered(CLF, below, above)
    assert not set(gone) & set(found.origins)
    assert set(gone) <= set(found.unset)


def test_what_the_value_of_another_setting_silences_goes_by_layer_too():
    model = {"model_init_path": "m", "data_name": "d"}

    def found(*layers):
        return resolve(
            SEQ2SEQ, [Layer(f"{n}.json", {**(model if not n else {}), **one}) for n, one in enumerate(layers)]
        )

    kept = found({"top_p": 0.9, "temperature": 1.0, "top_k": 0})
    assert kept.settings.evaluation.top_p == 0.9
    greedy = found({"top_p": 0.9, "temperature": 1.0}, {"temperature": 0.0})
    assert (greedy.settings.evaluation.top_p, greedy.unset.keys()) == (1.0, {"top_p"})
    assert greedy.origin_text("top_p") == "default (0.9 of 0.json unset by temperature of 1.json)"
    for layers in ([{"top_p": 0.9}], [{"top_k": 5, "temperature": 0.001}], [{"temperature": 0.0}, {"top_p": "0.9"}]):
        with pytest.raises(ConfigError, match=r'"top_[pk]" says nothing with this temperature: decoding is greedy'):
            found(*layers)


def test_protection_without_keys_is_refused():
    with pytest.raises(ConfigError, match="--protect_all needs --api_key_file"):
        layered(ServeSettings, {"protect_all": True})
    found = layered(ServeSettings, {"protect_all": True, "api_key_file": "/keys"}, {"api_key_file": None})
    assert not found.settings.access.protect_all


def test_a_third_layer_can_set_it_again():
    found = layered(SEQ2SEQ, {"max_steps": 10}, {"num_epochs": 2}, {"max_steps": 5})
    assert (found.flat()["max_steps"], found.flat()["num_epochs"]) == (5, 4.0)
    assert found.origin_text("max_steps") == "flag"
    assert found.origin_text("num_epochs") == "default (2 of environment unset by max_steps of flag)"


@pytest.mark.parametrize(
    ("kind", "below", "above", "off"),
    [
        (SEQ2SEQ, {"num_epochs": 3}, {"max_steps": 10}, {"max_steps": None}),
        (SEQ2SEQ, {"train_only": "bias"}, {"lora_r": 8, "lora_alpha": 4}, {"lora_r": 0}),
        (SEQ2SEQ, {"strategy": "layerwise_lrd"}, {"grouped_layerwise_lrd": True}, {"grouped_layerwise_lrd": False}),
        (CLF, {"layerwise_lrd": {"top_lr": 1e-5}}, {"lr": 1e-3}, {"lr": None}),
        (CLF, {"lr": 1e-3}, {"layerwise_lrd": {"top_lr": 1e-5}}, {"layerwise_lrd": False}),
        (CLF, {"ft_head_first": True, "head_steps": 5}, {"freeze": True}, {"freeze": "false"}),
    ],
)
def test_what_was_unset_counts_again_without_its_rival(kind, below, above, off):
    assert layered(kind, below, above, off).flat() == layered(kind, below).flat()


def test_what_was_unset_stays_so_beside_another_rival():
    layers = [{"lr": 1e-3}, {"layerwise_lrd": {"top_lr": 1e-5}}, {"grouped_layerwise_lrd": {"base_lr": 1e-6}}]
    names = [Layer(str(number), values) for number, values in enumerate([*layers, {"layerwise_lrd": False}])]
    found = resolve(CLF, names, complete=False).flat()
    assert (found["lr"], found["layerwise_lrd"], found["grouped_layerwise_lrd"]["base_lr"]) == (None, None, 1e-6)


def test_config_show_tells_what_was_unset(tmp_path, capsys):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"model_init_path": "one", "warmup_ratio": 0.1}))
    assert config(["show", "--config", str(file), "--model_init_name", "two", "--warmup_steps", "5"]) == 0
    shown = capsys.readouterr().out
    assert f"default (one of {file} unset by model_init_name of flag)" in shown
    assert f"default (0.1 of {file} unset by warmup_steps of flag)" in shown


def test_records_from_before_hold_both_and_are_read():
    complete = {**resolve(SEQ2SEQ, [], complete=False).flat(), "max_steps": 10, "warmup_ratio": 0.1}
    chosen = chosen_settings("seq2seq", complete)
    assert (chosen["max_steps"], chosen["warmup_ratio"]) == (10, 0.1)
    assert not {"num_epochs", "warmup_steps"} & set(chosen)
    assert resolve(SEQ2SEQ, [Layer("best.json", chosen)], complete=False).flat()["max_steps"] == 10
    both = {"model_pretrain_name": "M", "model_init_path": "C"}
    assert without_silenced(CLF, both) == both


@pytest.mark.parametrize("kind", [*PROGRAMS, ServeSettings])
def test_rivals_are_settings_and_go_both_ways(kind):
    known = {
        name
        for settings in (*PROGRAMS, ServeSettings)
        for _, info in section_fields(settings).values()
        for declared in ("rivals", "companions", "needs")
        for name in info.json_schema_extra.get(declared, ())
    }
    every = {name for settings in (*PROGRAMS, ServeSettings) for name in section_fields(settings)}
    assert known <= every
    pairs = rivals_of(kind)
    assert all(one in pairs[other] for one, others in pairs.items() for other in others)
    assert all(pairs[name] >= set(others) for name, others in silenced_by(kind).items())
    assert all(needed in section_fields(kind) for needed in dependents_of(kind))


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_setting_says_what_it_changes(program):
    for name in section_fields(program):
        assert affected_by(program, name) in ("numbers", "speed", "place", "command"), name


def test_a_setting_of_both_programs_changes_the_same_in_both():
    kinds = [names_that_affect(kind) for kind in ("numbers", "speed", "place", "command")]
    assert sum(map(len, kinds)) == len({name for program in PROGRAMS for name in section_fields(program)})
    numbers, speed, place, command = kinds
    assert {"debug", "seed", "eval_steps", "precision", "lora_base"} <= numbers
    assert {"save_steps", "micro_batch_size"} <= speed
    assert {"scores_only", "trackers"} <= place
    assert {"nproc", "no_train"} <= command
