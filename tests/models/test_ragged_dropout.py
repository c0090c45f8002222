"""The ragged forward drops out as much, and in as many places, as transformers; its masks have the rate they say."""

from __future__ import annotations

from dataclasses import replace

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
from workflow.data.packing import Ragged, token_keys
from workflow.models import absorbed, dropout, ragged_attention
from workflow.models.classifier import LabelRows
from workflow.models.dropout import Keys, dropped, keep_mask, number_places
from workflow.models.ragged_training import RaggedScorer, RaggedT5

RATE = 0.2


def drawn(count, seed=0):
    return Keys.of(Ragged(torch.zeros(count), (count,), keys=torch.from_numpy(token_keys(seed, [3], [count]))))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_masks_keep_expectations(rate):
    mask = keep_mask(drawn(1000), 1001, rate)
    assert mask.eq(0).double().mean().item() == pytest.approx(rate, abs=2e-3)
    assert mask.double().mean().item() == pytest.approx(1, abs=3e-3)
    assert len(mask.unique()) == 2
    for means in (mask.eq(0).double().mean(dim=0), mask.eq(0).double().mean(dim=1)):  # of elements, of tokens
        assert means.std().item() == pytest.approx((rate * (1 - rate) / 1000) ** 0.5, rel=0.1)


@pytest.mark.parametrize("rate", [1 - 1e-6, 1.0])
def test_a_rate_that_rounds_to_one_drops_all(rate):
    assert not keep_mask(drawn(3), 8, rate).any()


def test_masks_are_independent_of_their_neighbours():
    """Of the next element, token, place, head, seed and pass, each pair of bits in the same place."""

    def zeros(keys):
        return keep_mask(keys, 999, 0.5).eq(0).double()

    keys = drawn(1000)
    mask, heads = zeros(keys), keys.of_heads(2)
    first, second = (Keys(heads.first[n::2], heads.second[n::2]) for n in range(2))
    pack = Ragged(torch.zeros(1000), (1000,), keys=torch.from_numpy(token_keys(0, [3], [1000]))).repeated(2)
    again = Keys.of(replace(pack, keys=pack.keys[1000:], ids=pack.ids[1000:]))
    others = {
        "element": (mask[:, :-1], mask[:, 1:]),
        "pair": (mask[:, :-2], mask[:, 2:]),
        "token": (mask[:-1], mask[1:]),
        "place": (zeros(keys.at(1)), zeros(keys.at(2))),
        "head": (zeros(first), zeros(second)),
        "seed": (mask, zeros(drawn(1000, seed=1))),
        "pass": (mask, zeros(again)),
    }
    for name, (one, other) in others.items():
        pair = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
        assert abs(pair.item()) < 5e-3, name
    four = mask[:-1, :-1] + mask[:-1, 1:] + mask[1:, :-1] + mask[1:, 1:]
    assert torch.bincount(four.flatten().long()).div(four.numel()).tolist() == pytest.approx(
        [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], abs=3e-3
    )


def test_a_row_in_an_update_has_one_mask_and_another_in_the_next():
    lengths = [4, 2, 3]
    together = token_keys(7, [10, 11, 12], lengths)
    assert token_keys(7, [12], [3]).tolist() == together[6:].tolist()
    assert len({*together, *token_keys(8, [10, 11, 12], lengths)}) == 18


def test_dropped_leaves_what_does_not_train():
    x = torch.ones(33, 5)
    module = torch.nn.Dropout(0.3)
    number_places(module)
    keys = drawn(33)
    assert dropped(x, module, keys).equal(dropped(x, module, keys))
    assert dropped(x.bfloat16(), module, keys).ne(0).equal(dropped(x, module, keys).ne(0))
    assert not dropped(x, module, keys).equal(dropped(x, module, keys, place=7))
    assert dropped(x, module.eval(), keys) is x
    assert dropped(x, torch.nn.Dropout(0.0), keys) is x


@pytest.mark.parametrize("kind", ["t5", "t5-v1.1", "umt5"])
@pytest.mark.parametrize("task", ["texts", "scores", "scores of adapters"])
def test_masks_are_a_function_of_the_row(kind, task):
    """Rows alone, and in another order, give the gradients of one pack, dropout on."""
    sources, targets = (rows_of(lengths, seed) for seed, lengths in enumerate(MIXES["mixed"]))
    model = make(kind, dropout=RATE)
    if task == "texts":
        form = RaggedT5(model).train()
    else:
        model.lm_head = LabelRows(model.lm_head.weight, [7, 3])
        form = RaggedScorer(model).train()
        form.is_absorbed = task == "scores"
    weights = torch.randn(len(sources), 2)

    def pack(rows, chosen):
        found = packed([rows[n] for n in chosen])
        return replace(found, keys=torch.from_numpy(token_keys(5, [50 + n for n in chosen], found.lengths)))

    def summed(chosen):
        if task == "texts":
            return form(pack(sources, chosen), pack(targets, chosen))
        return (form(pack(sources, chosen)) * weights[chosen]).sum()

    everything = list(range(len(sources)))
    expected = gradients(model, summed(everything))
    middle = len(everything) // 2
    parts = [everything[:1], everything[:middle:-1], everything[middle:0:-1]]
    assert sorted(row for part in parts for row in part) == everything
    assert_alike(gradients(model, sum(map(summed, parts))), expected)


@pytest.fixture
def seen(monkeypatch):
    """Elements of each dropout so far, ours and transformers'."""
    ours, theirs = [], []

    def counted(keys, width, rate, original=keep_mask):
        ours.append((keys.first.numel() * width, rate))
        return original(keys, width, rate)

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
