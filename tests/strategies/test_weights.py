"""What strategies do to weights themselves: averages, zeros, layers that start anew."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tests.strategies.test_groups import bert, t5
from workflow.config.strategy_settings import Ema as EmaSettings
from workflow.config.strategy_settings import Reinit as ReinitSettings
from workflow.config.strategy_settings import StaticSparsity as SparsitySettings
from workflow.config.strategy_settings import Swa as SwaSettings
from workflow.errors import ConfigError
from workflow.models.pruning import prune, share_of_zeros
from workflow.recipe.averages import Averages, restore
from workflow.strategies.base import Piece
from workflow.strategies.composed import Composed
from workflow.strategies.reinit import Reinit
from workflow.strategies.static_sparsity import StaticSparsity
from workflow.strategies.weight_averaging import Ema, Swa


class OneRank:
    """All weights of a module, as one rank without sharding holds them; `half` as ZeRO-1 would share one out."""

    def __init__(self, *weights, half=False):
        self.weights = dict(enumerate(weights))
        self.half = half

    def pieces(self):
        for name, weight in self.weights.items():
            flat = weight.data.view(-1)
            start = len(flat) // 2 if self.half else 0
            yield Piece(str(name), weight.ndim, flat[start:].clone() if self.half else flat, start, flat, 0)

    def write(self, piece):
        self.written = piece

    def real(self, piece):
        return piece.master

    def total(self, counts):
        return list(counts)


def walk(strategy, steps):
    weight = torch.zeros(1, 1)
    masters = OneRank(weight)
    strategy.plan(steps)
    for step in range(1, steps + 1):
        weight.fill_(float(step))
        strategy.after_step(step, masters)
    return strategy


def test_swa_is_the_mean_from_its_start_on():
    swa = walk(Swa(SwaSettings(start=0.5)), 10)
    assert swa.average()["0"].item() == pytest.approx(sum(range(5, 11)) / 6)
    assert swa.state() == {"count": 6, "begun": 5}
    every = walk(Swa(SwaSettings(start=4, every=3)), 10)
    assert every.average()["0"].item() == pytest.approx((4 + 7 + 10) / 3)
    assert walk(Swa(SwaSettings(start=10)), 10).average()["0"].item() == 10


def test_ema_begins_with_the_weights_and_rises_to_its_decay():
    ema, expected = walk(Ema(EmaSettings(decay=0.5)), 30), 1.0
    for count, value in enumerate(range(2, 31), start=1):
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * value
    assert ema.average()["0"].item() == pytest.approx(expected)


def test_an_average_goes_on_from_its_state():
    first = walk(Swa(SwaSettings(start=1)), 4)
    again = Swa(SwaSettings(start=1))
    again.plan(6)
    again.load(first.state(), {name: piece.clone() for name, piece in first.average().items()})
    masters = OneRank(torch.tensor([[5.0]]))
    again.after_step(5, masters)
    assert again.average()["0"].item() == pytest.approx(3.0)


def test_an_average_tells_the_update_that_it_really_began_with():
    late = Swa(SwaSettings(start=3, every=2))
    late.plan(9)
    late.after_step(7, OneRank(torch.zeros(1, 1)))
    assert "after every 2 updates from update 7 to 9" in late.about(9)
    again = Swa(SwaSettings(start=3, every=2))
    again.plan(9)
    again.load(late.state(), late.average())
    assert again.about(9) == late.about(9)
    again.load({"count": 1}, late.average())  # of a checkpoint that does not say
    assert "from update 3" in again.about(9)


@pytest.mark.parametrize(("step", "told"), [(2, []), (3, [5]), (5, [7]), (6, [7])])
def test_what_a_checkpoint_of_another_run_lacks_is_told(tmp_path, step, told):
    swa = Swa(SwaSettings(start=3, every=2))
    swa.plan(9)
    strategies = Composed([Reinit(ReinitSettings()), swa])
    checkpoint = tmp_path / "checkpoint-x"
    (checkpoint / "training_state").mkdir(parents=True)
    (checkpoint / "training_state/optimizer.index.json").write_text("{}")
    save_file({}, checkpoint / "model.safetensors")
    notes = restore(strategies, OneRank(), checkpoint, step=step, is_own=False)
    late = [f"--swa begins with update {first}: checkpoint-x holds no average" for first in told]
    assert notes[:-1] == late
    assert notes[-1].startswith("--reinit is not done")
    assert restore(strategies, OneRank(), checkpoint, step=step) == late


def test_an_average_that_could_never_start_is_refused():
    with pytest.raises(ConfigError, match=r"--swa.start 11: this run has 10 updates"):
        Swa(SwaSettings(start=11)).plan(10)
    with pytest.raises(ConfigError, match=r"--ema.start 11"):
        Ema(EmaSettings(start=11)).plan(10)


@pytest.mark.parametrize("half", [False, True])
def test_zeros_stay_zeros(half):
    matrix, vector = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.zeros(2)
    masters = OneRank(matrix, vector, half=half)
    sparsity = StaticSparsity(SparsitySettings())
    sparsity.begin(masters)
    matrix += 3.0
    vector += 1.0
    sparsity.after_step(1, masters)
    assert matrix.tolist() == [[0.0, 4.0], [5.0, 0.0]]
    assert vector.tolist() == [1.0, 1.0], "vectors are no matrices"
    assert masters.written.master[-1] == 0.0
    found = sparsity.figures(masters)
    assert found["sparsity_lost"] == 1.0
    assert found["sparsity_drift"] == pytest.approx(3.0 if half else 18**0.5)
    assert found["sparsity"] == 0.5


def test_keep_false_keeps_nothing():
    matrix = torch.zeros(2, 2)
    masters = OneRank(matrix)
    sparsity = StaticSparsity(SparsitySettings(keep=False))
    sparsity.begin(masters)
    matrix += 1
    sparsity.after_step(1, masters)
    assert matrix.sum() == 4
    assert sparsity.figures(masters) == {}


def test_pruning_takes_the_smallest_of_each_matrix():
    model = bert(layers=1)
    query = model.bert.encoder.layer[0].attention.self.query.weight
    before = query.detach().clone()
    prune(model, 0.25)
    assert share_of_zeros(model) == pytest.approx(0.25, abs=0.01)
    assert int((query == 0).sum()) == 16
    assert before[query == 0].abs().max() <= before[query != 0].abs().min()
    assert model.classifier.weight.count_nonzero() == model.classifier.weight.numel()


def moved(model, strategy, seed=0):
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    notes = strategy.prepare_model(model, seed=seed)
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}, notes


def loaded(model):
    """As from a file: transformers marks what it has loaded, and its initialisers leave that alone."""
    for parameter in model.parameters():
        parameter.data = torch.full_like(parameter, 3.0)
        parameter._is_hf_initialized = True
    return model


def test_top_layers_start_anew():
    model = loaded(bert(layers=4))
    names, notes = moved(model, Reinit(ReinitSettings(layers=2)))
    tops = ("bert.encoder.layer.2.", "bert.encoder.layer.3.", "bert.pooler.")
    assert names == {name for name, _ in model.named_parameters() if name.startswith(tops)}
    assert notes == ["starts anew, from the model's own initialiser: encoder.2, encoder.3, bert.pooler"]
    layer = model.bert.encoder.layer[3]
    assert layer.output.dense.weight.std().item() == pytest.approx(0.02, rel=0.4)
    assert layer.output.dense.bias.tolist() == [0.0] * 8
    assert layer.output.LayerNorm.weight.tolist() == [1.0] * 8


def test_each_kind_of_parameter_has_its_own_initialiser():
    """T5 draws queries with a far smaller spread than keys, and feed-forward weights by their fan-in."""
    model = loaded(t5(layers=1, decoder_layers=2))
    names, _ = moved(model, Reinit(ReinitSettings(layers=1)))
    assert all(name.startswith("decoder.block.1.") for name in names)
    attention = model.decoder.block[1].layer[0].SelfAttention
    assert attention.q.weight.std().item() == pytest.approx((8 * 4) ** -0.5, rel=0.35)
    assert attention.k.weight.std().item() == pytest.approx(8**-0.5, rel=0.35)
    assert model.decoder.block[1].layer[0].layer_norm.weight.tolist() == [1.0] * 8
    both, _ = moved(model, Reinit(ReinitSettings(layers=1, stack="both")), seed=1)
    assert {name.split(".")[0] for name in both} == {"encoder", "decoder"}


def test_the_seed_alone_says_how():
    models = [loaded(bert()) for _ in range(3)]
    torch.manual_seed(1)
    for model, seed in zip(models, (5, 5, 6), strict=True):
        torch.rand(3)
        Reinit(ReinitSettings()).prepare_model(model, seed=seed)
    first, same, other = (model.bert.encoder.layer[3].output.dense.weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_more_layers_than_there_are():
    with pytest.raises(ConfigError, match="this model has 4 encoder layers"):
        Reinit(ReinitSettings(layers=5)).prepare_model(bert(), seed=0)
    with pytest.raises(ConfigError, match="no pooler"):
        Reinit(ReinitSettings(layers=0)).prepare_model(t5(), seed=0)


def test_a_run_that_ends_before_its_average_begins_says_so():
    swa = Swa(SwaSettings(start=0.5))
    swa.plan(100)
    averages = Averages(SimpleNamespace(strategies=Composed([swa])), None, None, None)
    (told,) = averages.never_begun(49)
    assert "--swa: the run ended after update 49, and the average begins with update 50" in told
    assert averages.never_begun(50) == []
