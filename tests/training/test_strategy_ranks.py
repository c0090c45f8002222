"""Every strategy gives the same numbers at every ZeRO stage and rank count, and goes on from a checkpoint as if never stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.training.rank_worker import run_group
from workflow.strategies.listing import STRATEGIES

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).with_name("golden_strategies.json")
SETTINGS = {
    "reinit": {},
    "layerwise_lrd": {"decay": 0.5},
    "grouped_layerwise_lrd": {},
    "freeze": {"head": 1, "every": 1},
    "label_smoothing": {},
    "r_drop": {"alpha": 2.0},
    "static_sparsity": {},
    "swa": {"start": 0.5, "lr": 5e-4},
    "ema": {"decay": 0.9},
}
ALL = {name: values for name, values in SETTINGS.items() if name != "grouped_layerwise_lrd"}
CASES = {**{name: {name: values} for name, values in SETTINGS.items()}, "all": ALL}
WITH_ADAPTERS = {name: values for name, values in ALL.items() if name not in ("reinit", "static_sparsity")}
STEPS, SAVED = 4, 2
TASKS = {"flan_like": {}, "bert_like": {"task": "clf"}}
SCORED = ("reinit", "layerwise_lrd", "label_smoothing", "r_drop", "all")
"""What depends on the task or the kind of model."""
KINDS = [
    {"deepspeed": "zero0"},
    {"deepspeed": "zero2", "batch": 4, "accumulation": 2, "micro": 1},
    {"deepspeed": "zero3", "micro": 2},
]


def test_every_strategy_is_tried():
    assert [*SETTINGS] == [*STRATEGIES]


@pytest.fixture(scope="module")
def jobs(request, shared_mount, tmp_path_factory):
    """(model, strategy) -> job; the models are half zeros where these must stay."""
    found = {}
    for model, more in TASKS.items():
        folder = request.getfixturevalue(model)
        job = {"mount": str(shared_mount), "micro": 8, "max_steps": STEPS, **more}
        for name, strategies in CASES.items() if model == "flan_like" else ((name, CASES[name]) for name in SCORED):
            found[model, name] = {
                **job,
                "model": str(folder),
                "strategies": strategies,
                "prune": "static_sparsity" in strategies,
            }
    for model, kind in (("flan_like", "lora"), ("bert_like", "dora")):
        job = found[model, "all"]
        no_head = {"freeze": {"head": 0, "every": 1}} if model == "flan_like" else {}
        strategies = {**WITH_ADAPTERS, **no_head}
        found[model, "adapters"] = {**job, "strategies": strategies, "prune": False, "lora": kind}
    return found


@pytest.fixture(scope="module")
def references(jobs, tmp_path_factory):
    """One rank, ZeRO 0, the whole update in one padded micro-batch."""
    alone = [{**job, "padded": True} for job in jobs.values()]
    return dict(zip(jobs, run_group(1, alone, tmp_path_factory.mktemp("alone")), strict=True))


def test_golden_losses(references, jobs, tmp_path):
    """Each strategy's numbers. To accept a change on purpose: WORKFLOW_ACCEPT=1 .venv/bin/python -m pytest tests/training/test_strategy_ranks.py."""
    found = {f"{model} {name}": one["losses"] for (model, name), one in references.items()}
    plain = {model: {**jobs[model, "r_drop"], "strategies": {}} for model in TASKS}
    more = {f"{model} plain": job for model, job in plain.items()}
    more |= {f"{model} plain with dropout": {**job, "dropout": 0.2} for model, job in plain.items()}
    more |= {f"{model} r_drop with dropout": {**jobs[model, "r_drop"], "dropout": 0.2} for model in TASKS}
    found |= {name: one["losses"] for name, one in zip(more, run_group(1, [*more.values()], tmp_path), strict=True)}
    check_something_happens(found, references)
    if os.environ.get("WORKFLOW_ACCEPT") == "1":
        GOLDEN.write_text(
            json.dumps({name: [round(loss, 7) for loss in of] for name, of in found.items()}, indent=1) + "\n"
        )
    golden = json.loads(GOLDEN.read_text())
    assert [*found] == [*golden]
    for name, losses in found.items():
        assert losses == pytest.approx(golden[name], rel=1e-4), f"the losses of {name} moved"


def check_something_happens(losses, references):
    """A strategy that is silently left out has the losses, or the weights, of a plain run."""
    plain = losses["flan_like plain"]
    for name in set(SETTINGS) - {"r_drop", "ema", "static_sparsity"}:
        assert losses[f"flan_like {name}"] != pytest.approx(plain, rel=1e-4), name
    for model in TASKS:
        assert losses[f"{model} r_drop with dropout"] != pytest.approx(losses[f"{model} plain with dropout"], rel=1e-4)
    for name in ("swa", "ema"):
        reference = references["flan_like", name]
        assert reference["averages"][name] != pytest.approx(reference["weights"], rel=1e-4), name
    zeros = references["flan_like", "static_sparsity"]["zeros"]
    assert zeros["decoder.block.0.layer.0.SelfAttention.q.weight"] == 32 * 32 // 2


def compare(found, expected, what):
    for name in ("losses", "norms"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5 if name == "losses" else 1e-4), (what, name)
    # A key's bias has no gradient but for rounding.
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-5, abs=1e-5), what
    assert found["zeros"] == expected["zeros"], what
    for average, norms in expected["averages"].items():
        assert found["averages"][average] == pytest.approx(norms, rel=1e-5, abs=1e-5), (what, average)
    assert found["average_losses"] == pytest.approx(expected["average_losses"], rel=1e-5), what
    for average, merged in found["merged_losses"].items():
        assert merged == pytest.approx(found["average_losses"][average], rel=1e-4), (what, average)
    assert found["untouched"], f"{what}: evaluating an average changed the run"
    assert found["figures"] == pytest.approx(expected["figures"], rel=1e-3), what


def test_numbers_do_not_depend_on_ranks_or_stages(jobs, references, tmp_path):
    turns = [(key, KINDS[number % len(KINDS)]) for number, key in enumerate(jobs)]
    many = [*turns, *((("flan_like", "all"), kind) for kind in KINDS)]
    found = run_group(2, [{**jobs[key], **kind} for key, kind in many], tmp_path)
    for (key, kind), one in zip(many, found, strict=True):
        compare(one, references[key], (key, kind))


def test_runs_go_on_elsewhere(jobs, references, tmp_path):
    """2 updates on two ranks under ZeRO-3, then 2 on one under ZeRO-1: losses, weights and averages are those of 4."""
    some = {key: job for key, job in jobs.items() if key[1] in ("all", "adapters") or key == ("flan_like", "swa")}
    folders = {key: tmp_path / "-".join(key) for key in some}
    first = [{**job, "deepspeed": "zero3", "save": str(folders[key]), "save_at": SAVED} for key, job in some.items()]
    run_group(2, first, tmp_path / "first")
    then = [
        {
            **job,
            "deepspeed": "zero1",
            "model": job["model"] if "lora" in job else str(folders[key]),
            "resume": str(folders[key]),
            "prune": False,
        }
        for key, job in some.items()
    ]
    for key, one in zip(some, run_group(1, then, tmp_path / "then"), strict=True):
        expected = references[key]
        halves = {name: expected[name][SAVED:] for name in ("losses", "norms")}
        compare(one, {**expected, **halves}, key)


def test_averages_and_zeros_in_bf16(jobs, tmp_path):
    """Averages are of the fp32 masters; zeros are zero in masters and in what the forward pass reads."""
    job = {**jobs["flan_like", "all"], "precision": "bf16"}
    for found in run_group(2, [{**job, "deepspeed": stage} for stage in ("zero1", "zero3")], tmp_path):
        assert found["untouched"]
        assert found["zeros"]["decoder.block.0.layer.0.SelfAttention.q.weight"] == 32 * 32 // 2
        assert found["averages"]["ema"]["lm_head.weight"] != found["weights"]["lm_head.weight"]
