"""The ragged forward drops out as much, and in as many places, as transformers; its masks have the rate they say."""

from __future__ import annotations

import pytest
import torch

from tests.models.test_ragged_training import (
    MIXES,
    assert_alike,
    checkpoint,
    eager_logits,
    eager_loss,
    gradients,
    make,
    packed,
    rows_of,
)
from workflow.models import absorbed, dropout, ragged_attention
from workflow.models.classifier import LabelRows
from workflow.models.dropout import dropped, keep_mask
from workflow.models.ragged_training import RaggedScorer, RaggedT5

RATE = 0.2


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_masks_keep_expectations(rate):
    torch.manual_seed(0)
    mask = keep_mask((1000, 1001), rate, torch.zeros(1))
    assert mask.eq(0).double().mean().item() == pytest.approx(rate, abs=2e-3)
    assert mask.double().mean().item() == pytest.approx(1, abs=3e-3)
    assert len(mask.unique()) == 2
    rows = mask.eq(0).double()
    neighbours = torch.corrcoef(torch.stack([rows[:, :-1].flatten(), rows[:, 1:].flatten()]))[0, 1]
    assert abs(neighbours.item()) < 5e-3


def test_masks_repeat_with_the_seed():
    x = torch.ones(33)
    module = torch.nn.Dropout(0.3)
    torch.manual_seed(5)
    first, second = dropped(x, module), dropped(x, module)
    torch.manual_seed(5)
    assert dropped(x, module).equal(first)
    assert not first.equal(second)
    assert dropped(x, module.eval()) is x


@pytest.fixture
def seen(monkeypatch):
    """Elements of each dropout so far, ours and transformers'."""
    ours, theirs = [], []

    def counted(shape, rate, like, original=keep_mask):
        ours.append((torch.Size(shape).numel(), rate))
        return original(shape, rate, like)

    for module in (dropout, ragged_attention, absorbed):
        monkeypatch.setattr(module, "keep_mask", counted)

    def functional(x, p=0.5, training=True, inplace=False, original=torch.nn.functional.dropout):
        if training:
            theirs.append((x.numel(), p))
        return original(x, p, training, inplace)

    monkeypatch.setattr(torch.nn.functional, "dropout", functional)
    return ours, theirs


@pytest.mark.parametrize("kind", ["t5", "t5-v1.1", "umt5"])
def test_dropout_stands_where_transformers_has_it(kind, seen):
    ours, theirs = seen
    sources, targets = rows_of([6, 6, 6], 0), rows_of([4, 4, 4], 1)
    model = make(kind, dropout=RATE)
    eager_loss(model, sources, targets)
    RaggedT5(model).train()(packed(sources), packed(targets))
    assert theirs
    assert sorted(ours) == sorted(theirs)
    ours.clear()
    theirs.clear()
    model.lm_head = LabelRows(model.lm_head.weight, [7, 3])
    eager_logits(model, sources)
    RaggedScorer(model).train()(packed(sources))
    assert theirs
    assert sorted(ours) == sorted(theirs)


def test_checkpointing_repeats_the_masks():
    sources, targets = (rows_of(lengths, seed) for seed, lengths in enumerate(MIXES["mixed"]))
    model = make("t5-v1.1", dropout=RATE)
    ragged = RaggedT5(model).train()
    torch.manual_seed(3)
    expected = gradients(model, ragged(packed(sources), packed(targets)))
    checkpoint(model)
    torch.manual_seed(3)
    assert_alike(gradients(model, ragged(packed(sources), packed(targets))), expected)


@pytest.mark.parametrize("kind", ["t5", "t5-v1.1", "umt5"])
def test_losses_spread_as_those_of_transformers(kind):
    sources, targets = (rows_of(lengths, seed) for seed, lengths in enumerate(MIXES["mixed"]))
    model = make(kind, dropout=RATE)
    ragged = RaggedT5(model).train()
    torch.manual_seed(0)
    theirs = torch.stack([eager_loss(model, sources, targets).detach() for _ in range(300)])
    ours = torch.stack([ragged(packed(sources), packed(targets)).detach() for _ in range(300)])
    error = ((ours.var() + theirs.var()) / 300).sqrt()
    assert abs(ours.mean() - theirs.mean()) < 3.5 * error
    assert 0.75 < ours.std() / theirs.std() < 1.33


@pytest.mark.slow
def test_training_falls_as_with_transformers():
    """Two hundred updates on the same rows, dropout on: the same curve up to noise."""
    sources, targets = (rows_of(lengths, seed) for seed, lengths in enumerate(MIXES["mixed"]))

    def curve(call, model):
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        found = []
        for _ in range(200):
            optimizer.zero_grad()
            loss = call()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return torch.tensor(found).view(4, 50).mean(dim=1)

    theirs, mine = make("t5-v1.1", dropout=0.1), make("t5-v1.1", dropout=0.1)
    ragged = RaggedT5(mine).train()
    expected = curve(lambda: eager_loss(theirs, sources, targets), theirs)
    found = curve(lambda: ragged(packed(sources), packed(targets)), mine)
    assert expected[-1] < expected[0] / 2
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0)
