"""R-Drop and label smoothing against their formulas, for every kind of target, whole and in parts, ragged and padded."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from workflow.config.strategy_settings import LabelSmoothing as SmoothingSettings
from workflow.config.strategy_settings import RDrop as RDropSettings
from workflow.errors import ConfigError
from workflow.models import head_loss
from workflow.models.head_loss import HeadLoss
from workflow.strategies.base import TOKENS
from workflow.strategies.composed import Composed
from workflow.strategies.label_smoothing import LabelSmoothing
from workflow.strategies.r_drop import RDrop, divergence
from workflow.training.objectives import score_loss, token_loss


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bases():
    soft = numbers(5, 3, seed=3).softmax(dim=1)
    return {
        TOKENS: (token_loss, torch.tensor([0, 2, 1, 1, 0])),
        "multiclass": (score_loss("multiclass"), soft),
        "multilabel": (score_loss("multilabel"), (soft > 0.3).float()),
        "regression": (score_loss("regression"), soft),
    }


@pytest.mark.parametrize("problem", bases())
def test_r_drop_is_the_papers_formula(problem):
    base, targets = bases()[problem]
    logits = numbers(2, 5, 3, seed=1)
    form = Composed([RDrop(RDropSettings(alpha=1.5))]).loss_form(base, problem)
    assert form.passes == 2
    mean = (base(logits[:1], targets) + base(logits[1:], targets)) / 2
    p, q = logits
    if problem == "regression":
        normals = [torch.distributions.Normal(of, math.sqrt(0.5)) for of in (p, q)]
    elif problem == "multilabel":
        normals = [torch.distributions.Bernoulli(logits=of) for of in (p, q)]
    else:
        normals = [torch.distributions.Categorical(logits=of) for of in (p, q)]
    kl = torch.distributions.kl_divergence
    both = kl(normals[0], normals[1]) + kl(normals[1], normals[0])
    both = both if both.ndim == 1 else both.mean(dim=1)
    assert form.loss(logits, targets) == pytest.approx(mean + 0.75 * both, rel=1e-5)


@pytest.mark.parametrize("problem", bases())
def test_equal_passes_are_the_plain_loss(problem):
    base, targets = bases()[problem]
    logits = numbers(1, 5, 3)
    form = Composed([RDrop(RDropSettings(alpha=9))]).loss_form(base, problem)
    assert torch.equal(form.loss(logits.repeat(2, 1, 1), targets), base(logits, targets))
    assert divergence(problem, logits[0], numbers(5, 3, seed=7)).gt(0).all()


def test_smoothed_labels_are_a_smoothed_target():
    logits, labels = numbers(1, 6, 5), torch.tensor([0, 1, 4, 2, 2, 3])
    smoothing = Composed([LabelSmoothing(SmoothingSettings(epsilon=0.2))])
    found = smoothing.loss_form(token_loss, TOKENS)
    assert found.passes == 1
    assert found.loss(logits, labels) == pytest.approx(
        F.cross_entropy(logits[0], labels, label_smoothing=0.2, reduction="none")
    )
    hard = F.one_hot(labels, 5).float()
    classes = smoothing.loss_form(score_loss("multiclass"), "multiclass").loss(logits, hard)
    assert classes == pytest.approx(found.loss(logits, labels) - 0.2 * math.log(5), rel=1e-5)
    many = smoothing.loss_form(score_loss("multilabel"), "multilabel").loss(logits, hard)
    assert many == pytest.approx(score_loss("multilabel")(logits, 0.8 * hard + 0.1), rel=1e-5)
    with pytest.raises(ConfigError, match="regression"):
        smoothing.loss_form(score_loss("regression"), "regression")


def test_without_dropout_there_is_nothing_to_agree_on():
    dropped = RDrop(RDropSettings())
    assert dropped.prepare_model(torch.nn.Sequential(torch.nn.Dropout(0.1)), seed=0) == []
    assert "--dropout 0.1" in dropped.prepare_model(torch.nn.Sequential(torch.nn.Dropout(0.0)), seed=0)[0]


def test_none_changes_nothing():
    assert Composed().loss_form(token_loss, TOKENS) is None
    assert Composed([LabelSmoothing(SmoothingSettings(epsilon=0))]).loss_form(token_loss, TOKENS) is None


@pytest.mark.parametrize("at_once", [8, 1 << 24])
def test_a_head_computes_it_in_parts(monkeypatch, at_once):
    """The same sums and gradients as with all logits in memory; another factor scales them."""
    monkeypatch.setitem(head_loss.LOGITS_AT_ONCE, "cpu", at_once)
    form = Composed([LabelSmoothing(SmoothingSettings()), RDrop(RDropSettings(alpha=2))]).loss_form(token_loss, TOKENS)
    labels = torch.tensor([3, 1, 0, 6, 2])
    found = {}
    for way in ("whole", "parts"):
        weight, hidden = numbers(7, 4, seed=5).requires_grad_(), numbers(10, 4, seed=6).requires_grad_()
        if way == "parts":
            head = HeadLoss(torch.nn.Parameter(weight))
            head.train_by(form.loss, passes=2)
            weight, loss = head.weight, head(hidden, labels.repeat(2))
        else:
            loss = form.loss((hidden @ weight.t()).view(2, 5, 7), labels).sum()
        (loss * 0.3).backward()
        found[way] = (loss.detach(), hidden.grad, weight.grad)
    for one, other in zip(found["whole"], found["parts"], strict=True):
        torch.testing.assert_close(one, other)


def test_without_gradients_a_head_gives_the_plain_loss():
    form = Composed([RDrop(RDropSettings())]).loss_form(token_loss, TOKENS)
    head = HeadLoss(torch.nn.Parameter(numbers(7, 4)))
    hidden, labels = numbers(5, 4, seed=1), torch.tensor([3, 1, 0, 6, 2])
    head.train_by(form.loss, passes=2)
    with torch.no_grad():
        assert head(hidden, labels) == pytest.approx(
            F.cross_entropy(hidden @ head.weight.t(), labels, reduction="none")
        )
