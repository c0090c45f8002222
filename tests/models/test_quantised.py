"""Linear maps in NF4: bitsandbytes' numbers, no parameters, merged to what was computed, read by peft."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel

from tests.models import test_ragged_bert as berts
from tests.models import test_ragged_training as t5s
from tests.models.test_ragged_training import MIXES, packed, rows_of
from workflow.errors import ConfigError, ModelError
from workflow.models.adapters import AdapterPlan, add_adapters
from workflow.models.classifier import LabelRows, load_classifier
from workflow.models.load import load_seq2seq
from workflow.models.quantised import QuantisedLinear, num_weights, quantised_maps
from workflow.models.ragged_bert import RaggedBert
from workflow.models.ragged_training import RaggedScorer, RaggedT5
from workflow.models.save import write_model
from workflow.training.model_states import NF4_BYTES

bitsandbytes = pytest.importorskip("bitsandbytes")
# peft asks transformers for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def quantised(model, *, targets=("all",), kind="lora", new=(), dtype=torch.float32, base="nf4"):
    """(the model with adapters that do something on a base in NF4, its adapters)."""
    plan = AdapterPlan(rank=3, alpha=5.0, targets=targets, kind=kind, base=base)
    adapters = add_adapters(model, plan, start="base", new_weights=new, seed=1, dtype=dtype)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model, adapters


def rounded(before, model):
    """The plain model, its weights those that the quantised ones stand for."""
    plain = copy.deepcopy(before)
    with torch.no_grad():
        for name, module in quantised_maps(model):
            plain.get_submodule(name.removesuffix(".base_layer")).weight.copy_(module.dense())
    return plain


def all_weights(model):
    """As a backend gives them."""
    return dict(model.named_parameters()) | {f"{name}.weight": module.dense() for name, module in quantised_maps(model)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 80), (5, 7), (96, 96)], ids=str)
def test_numbers_are_those_of_bitsandbytes(shape, dtype):
    torch.manual_seed(0)
    plain = torch.nn.Linear(*shape, dtype=dtype)
    mine = QuantisedLinear(plain, dtype=dtype, device="cpu")
    weight = bitsandbytes.nn.Params4bit(
        plain.weight.detach().float(), quant_type="nf4", compress_statistics=True, requires_grad=False
    ).to("cpu")
    state = weight.quant_state
    state.dtype = dtype
    dense = bitsandbytes.functional.dequantize_4bit(weight.data, state)
    assert torch.equal(mine.dense(), dense)
    weights = plain.weight.detach()
    assert 0 < (dense - weights).abs().max() < 0.3 * weights.abs().max()
    x = torch.randn(2, 3, shape[0], dtype=dtype, requires_grad=True)
    found, expected = mine(x), torch.nn.functional.linear(x, dense, plain.bias)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(mine.eval()(x), expected)
    up = torch.randn_like(expected)
    torch.testing.assert_close(
        *(torch.autograd.grad((out * up).sum(), x, retain_graph=True)[0] for out in (found, expected))
    )
    theirs = bitsandbytes.matmul_4bit(x, weight.data, bias=plain.bias.detach(), quant_state=state)
    torch.testing.assert_close(found, theirs)


def test_what_is_held():
    mine = QuantisedLinear(torch.nn.Linear(512, 512), dtype=torch.float32, device="cpu")
    tables = 4 * (16 + 256 + 1)
    assert mine.held_bytes == pytest.approx(NF4_BYTES * mine.numel + tables)
    assert [name for name, _ in mine.named_parameters()] == ["bias"]
    assert not set(mine.state_dict()) - {"bias"}
    assert mine.to(torch.device("cpu")).dense().shape == (512, 512)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("targets", ["attention", "all"])
@pytest.mark.parametrize("kind", ["t5", "t5-v1.1", "umt5"])
def test_a_t5_trains_as_peft_would_on_what_the_codes_stand_for(kind, targets, checkpointing, tmp_path):
    sources, targets_ = (rows_of(lengths, seed) for seed, lengths in enumerate(MIXES["mixed"]))
    before = t5s.make(kind)
    model, adapters = quantised(copy.deepcopy(before), targets=(targets,))
    names = [name for name, _ in quantised_maps(model)]
    assert len(names) == sum(type(module) is torch.nn.Linear for module in before.modules()) - 1, "all but the head"
    assert num_weights(model) == num_weights(before) + sum(
        model.get_parameter(name).numel() for name in adapters.trained
    )
    adapters.write(tmp_path / "adapter", all_weights(model))
    theirs = PeftModel.from_pretrained(rounded(before, model), tmp_path / "adapter", is_trainable=True).train()
    expected = t5s.eager_loss(theirs, sources, targets_)
    if checkpointing:
        t5s.checkpoint(model)
    loss = RaggedT5(model).train()(packed(sources), packed(targets_))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, value in ((model, loss), (theirs, expected)):
        one.zero_grad()
        value.backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert {*trained} == adapters.trained
    assert all(gradient is not None and gradient.any() for gradient in trained.values())
    t5s.assert_alike(trained, {name: theirs.get_parameter(f"base_model.model.{name}").grad for name in trained})


@pytest.mark.parametrize("targets", ["wo", "all"])
def test_a_scoring_t5_absorbs_no_quantised_weight(targets):
    sources = rows_of(MIXES["mixed"][0], 0)
    model = t5s.make("t5-v1.1")
    model.lm_head = LabelRows(model.lm_head.weight, [7, 3])
    model, _ = quantised(model, targets=(targets,))
    form = RaggedScorer(model).eval()
    assert not form.is_absorbed
    with torch.no_grad():
        torch.testing.assert_close(form(packed(sources)), t5s.eager_logits(model, sources), rtol=1e-5, atol=1e-5)


def test_a_bert_keeps_its_head_and_pooler_plain():
    rows, types = berts.inputs("mixed")
    model, _ = quantised(berts.make("bert", labels=3))
    assert type(model.classifier) is torch.nn.Linear
    assert not isinstance(model.bert.pooler.dense, QuantisedLinear)
    assert len(list(quantised_maps(model))) == 6 * 2
    logits = RaggedBert(model).train()(berts.packed(model, rows, types))
    torch.testing.assert_close(logits, berts.eager(model, rows, types), rtol=1e-5, atol=1e-5)
    logits.sum().backward()
    assert model.classifier.weight.grad is not None


@pytest.mark.parametrize("kind", ["flan_like", "bert_like"])
def test_a_checkpoint_holds_the_model_that_was_trained(kind, request, tmp_path):
    start, is_t5 = str(request.getfixturevalue(kind)), kind == "flan_like"

    def load(folder):
        return (
            load_seq2seq(str(folder)) if is_t5 else load_classifier(str(folder), problem="binary", labels=["no", "yes"])
        )

    loaded = load(start)
    before = copy.deepcopy(loaded.model)
    model, adapters = quantised(loaded.model, kind="rslora", new=loaded.new_weights, targets=("attention",))
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    write_model(folder, model, loaded.tokenizer, all_weights(model), adapters=adapters)
    ids = torch.randint(5, model.config.vocab_size, (3, 7), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | (
        {"decoder_input_ids": ids[:, :4]} if is_t5 else {}
    )
    beside = PeftModel.from_pretrained(rounded(before, model), folder / "adapter")
    plain = load(folder).model
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in before.named_parameters()}
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        assert float((before.eval()(**inputs).logits - expected).abs().max()) > 1e-3
        for other in (plain, beside):
            torch.testing.assert_close(other.eval()(**inputs).logits, expected, rtol=1e-5, atol=1e-5)


def test_adapters_go_on_upon_the_base_they_were_trained_on(tmp_path):
    before = t5s.make("t5-v1.1")
    model, adapters = quantised(copy.deepcopy(before))
    adapters.write(tmp_path / "adapter", all_weights(model))
    again, same = quantised(copy.deepcopy(before))
    same.load(tmp_path / "adapter", again)
    assert all(torch.equal(weight, all_weights(again)[name]) for name, weight in all_weights(model).items())
    full, whole = quantised(copy.deepcopy(before), base="full")
    with pytest.raises(ModelError, match=r"other settings: .*nf4"):
        whole.load(tmp_path / "adapter", full)


def test_transposed_maps_are_refused(gpt2_like):
    loaded = load_classifier(str(gpt2_like), problem="binary", labels=["no", "yes"])
    with pytest.raises(ConfigError, match=r"gpt2's linear maps .*--lora_base full"):
        quantised(loaded.model, new=loaded.new_weights)
