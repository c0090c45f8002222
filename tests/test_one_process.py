"""Trainings one after another in one Python process: ZeRO-3 on one rank, evaluations that fail, notebooks."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT, losses, metrics_lines, write_data, write_scores
from tests.training.rank_worker import sharded
from workflow.clf import clf
from workflow.errors import BackendError, ConfigError
from workflow.evaluation.evaluator import TextEvaluator
from workflow.paths import RunPaths
from workflow.seq2seq import seq2seq
from workflow.training.backend import Backend
from workflow.training.checkpoint import read_state
from workflow.training.continuing import fault_of

# DeepSpeed is imported here, in the process of the tests, with what it and torch warn of each other.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

SHORT = ("--max_steps", 4, "--eval_steps", 2, "--logging_steps", 1, "--lr", "1e-2", "--warmup_steps", 1, "--dropout", 0)
STEPS = {2, 4}


@pytest.fixture(scope="module")
def mount(tmp_path_factory):
    mount = tmp_path_factory.mktemp("one") / "mount"
    write_data(mount, "toy", train=16)
    write_scores(mount, "scored", train=16)
    return mount


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())  # a rank writes down its place there


def train(mount, model, name, *more, program=seq2seq):
    """A run of the program, here; its folder."""
    data = "toy" if program is seq2seq else "scored"
    given = ("--mount", mount, "--model_init_path", model, "--data", data, "--training_run_name", name)
    assert program([*map(str, (*given, *SHORT, *more))]) == 0
    return mount / "models" / name


def figures(run):
    """step -> what was measured."""
    return {line["step"]: line for line in metrics_lines(run) if "eval_loss" in line}


PLAIN = ("--no_eval_at_start",)
KINDS = {
    "plain": (seq2seq, "flan_like", ()),
    "beams": (seq2seq, "t5_like", ("--num_beams", 2)),
    "adapters": (seq2seq, "flan_like", ("--lora_r", 4)),
    "averages": (seq2seq, "flan_like", ("--ema",)),
    "scores": (clf, "flan_like", ()),
    "head": (clf, "bert_like", ()),
    "a head with adapters": (clf, "bert_like", ("--lora_r", 4)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_zero3_on_one_rank_is_zero0(kind, mount, tmp_path, request):
    program, model, more = KINDS[kind]
    model = request.getfixturevalue(model)
    whole = train(mount, model, f"{kind} whole", *PLAIN, *more, program=program)
    found = train(mount, model, f"{kind} sharded", *PLAIN, *more, "--deepspeed", sharded(tmp_path), program=program)
    assert losses(found).keys() == losses(whole).keys()
    for step, pair in losses(whole).items():
        assert losses(found)[step] == pytest.approx(pair, rel=1e-4), step
    assert figures(found).keys() == figures(whole).keys() == STEPS
    for step, line in figures(whole).items():
        assert figures(found)[step]["eval_loss"] == pytest.approx(line["eval_loss"], rel=1e-4), step


@pytest.mark.parametrize("file", ["sharded", "zero3_offload.json"])
def test_bf16_and_offloaded_weights_on_one_rank(file, mount, flan_like, tmp_path):
    given = sharded(tmp_path) if file == "sharded" else ROOT / "ds_configs" / file
    whole = train(mount, flan_like, "bf16 whole", *PLAIN, "--precision", "bf16")
    found = train(mount, flan_like, f"bf16 {file}", *PLAIN, "--precision", "bf16", "--deepspeed", given)
    for step, line in figures(whole).items():
        assert figures(found)[step]["eval_loss"] == pytest.approx(line["eval_loss"], rel=2e-2), step


@pytest.fixture(scope="module")
def undisturbed(mount, flan_like):
    return train(mount, flan_like, "undisturbed")


def same(found, expected):
    assert losses(found) == losses(expected)
    for step, line in figures(expected).items():
        assert figures(found)[step]["eval_loss"] == line["eval_loss"], step
    ends = [json.loads((run / "report.json").read_text()) for run in (found, expected)]
    assert ends[0]["best"] == ends[1]["best"]
    best = ends[0]["best"]["step"]
    assert (found / "checkpoint-best-ckpt/model.safetensors").samefile(found / f"checkpoint-{best}/model.safetensors")
    cards = [(run / f"checkpoint-{best}/README.md").read_text().replace(run.name, "") for run in (found, expected)]
    assert cards[0] == cards[1]


@pytest.mark.parametrize("more", [(), ("--save_steps", 4), ("--save_in_background",)], ids=str)
def test_an_evaluation_that_fails_costs_nothing_that_was_trained(more, mount, flan_like, undisturbed, monkeypatch):
    """Whether or not a save was due; the same command goes on with this evaluation, to the same end."""
    name = "fails" + "".join(filter(str.isalnum, "".join(map(str, more))))
    real, seen = TextEvaluator.evaluate, []
    with monkeypatch.context() as patch:
        patch.setattr(TextEvaluator, "evaluate", counted(real, seen, fails_at=2))
        with pytest.raises(ValueError, match="must be 2-D"):
            train(mount, flan_like, name, *more)
    run = mount / "models" / name
    assert read_state(run / "checkpoint-2").owes_evaluation
    assert not (run / "checkpoint-best-ckpt").exists()
    same(train(mount, flan_like, name, *more), undisturbed)


def counted(real, seen, *, fails_at, look=lambda: None):
    """An `evaluate` that looks at what stands before it begins, and fails once."""

    def evaluate(self):
        seen.append(look())
        if len(seen) == fails_at:
            raise ValueError("'weight' must be 2-D")
        return real(self)

    return evaluate


def test_the_checkpoint_is_there_before_the_evaluation_begins(mount, flan_like, undisturbed, monkeypatch):
    """So that what kills the process in an evaluation costs that evaluation alone."""
    paths, seen = RunPaths(mount / "models" / "before"), []

    def look():
        return [(step, fault_of(path), read_state(path).owes_evaluation) for step, path in paths.checkpoints()]

    monkeypatch.setattr(TextEvaluator, "evaluate", counted(TextEvaluator.evaluate, seen, fails_at=-1, look=look))
    run = train(mount, flan_like, "before")
    assert seen == [[], [(2, None, True)], [(2, None, False), (4, None, True)]]
    assert [fault_of(path) for _, path in paths.checkpoints()] == [None, None]
    assert not read_state(paths.checkpoint(4)).owes_evaluation
    same(run, undisturbed)


def test_a_checkpoint_of_spoilt_weights_is_put_aside(mount, flan_like, monkeypatch, capsys):
    """The weights are finite in training, but not what they give on the eval rows: nothing goes on from them."""
    real, seen = TextEvaluator.evaluate, []

    def evaluate(self):
        seen.append(self)
        found = real(self)
        if len(seen) == 3:
            loss = found.metrics["eval_loss"]
            found.metrics["eval_loss"] = type(loss)(float("nan"), loss.low, loss.high, loss.n)
        return found

    monkeypatch.setattr(TextEvaluator, "evaluate", evaluate)
    with pytest.raises(BackendError, match=r"step 4: the loss on the eval rows is not finite.*damaged-checkpoint-4"):
        train(mount, flan_like, "spoilt")
    names = {path.name for path in (mount / "models/spoilt").glob("*checkpoint-*") if path.is_dir()}
    assert names == {"checkpoint-2", "damaged-checkpoint-4", "checkpoint-best-ckpt"}


@pytest.mark.parametrize(
    ("trained", "now", "said"),
    [
        (("--lora_r", 4), (), r"no optimizer state of 52 of the 52 weights that train now"),
        (("--train_only", "norm"), (), r"because its run trained others; pass the --lora_r or --train_only"),
        (
            ("--train_only", "norm"),
            ("--train_only", "norm,q", "--deepspeed", "zero2"),
            r"--model_init_path .*checkpoint-4",
        ),
        ((), ("--optimizer", "adafactor"), r"holds the optimizer state of adamw; pass --optimizer adamw to go on"),
        (("--optimizer", "adafactor"), ("--deepspeed", "zero2"), r"holds the optimizer state of adafactor"),
        ((), ("--lora_r", 4), r"is of a run without adapters.*--model_init_path"),
    ],
    ids=str,
)
def test_a_checkpoint_without_the_moments_that_train_now_is_refused(trained, now, said, mount, flan_like):
    kind = "".join(filter(str.isalnum, "".join(map(str, trained))))
    run = train(mount, flan_like, f"source{kind}", *PLAIN, *trained)
    with pytest.raises(ConfigError, match=said):
        train(mount, flan_like, f"other{kind}", "--max_steps", 6, "--resume", run, *now)
    again = ("--optimizer", "adafactor") if "adafactor" in trained else trained
    on = train(mount, flan_like, f"on{kind}", "--max_steps", 6, "--resume", run, *again)
    assert [*losses(on)] == [5, 6]


def test_weights_that_trained_may_be_frozen_afterwards(mount, flan_like):
    run = train(mount, flan_like, "whole", *PLAIN)
    on = train(mount, flan_like, "part", "--max_steps", 6, "--resume", run, "--train_only", "norm")
    assert [*losses(on)] == [5, 6]


def test_a_weight_without_a_gradient_has_a_state_too():
    """As under ZeRO, so that a checkpoint tells which weights trained."""
    import torch

    weight = torch.nn.Parameter(torch.ones(2, 3))
    backend = Backend.__new__(Backend)
    backend.plan, backend.wrapped = SimpleNamespace(stage=0), SimpleNamespace(optimizer=None)
    backend.module = torch.nn.ParameterDict({"unused": weight})
    backend.optimizer = torch.optim.AdamW([weight])
    assert {key: value.tolist() for key, value in backend.optimizer_state()} == {
        "unused/exp_avg": [[0.0] * 3] * 2,
        "unused/exp_avg_sq": [[0.0] * 3] * 2,
    }
