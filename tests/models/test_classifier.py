"""Every head computes what transformers computes in full; what cannot score is refused with the reason."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.fixtures.make_nanogpt import make_nanogpt
from workflow.errors import ModelError
from workflow.inference.batch import predictions, score_all
from workflow.inference.head_engine import score_engine
from workflow.inference.interface import EngineLimits
from workflow.inference.requests import ScoreRequest
from workflow.models.classifier import label_tokens, load_classifier
from workflow.models.head_config import OwnHead, check_trained_head, own_head
from workflow.recipe.scorers import load_scorer

ROWS = ["reverse red one two", "reverse blue", "reverse green green left right one two three"]


def tensors(tokenizer, rows=ROWS):
    batch = tokenizer(rows, return_tensors="pt", padding=True)
    return batch["input_ids"], batch["attention_mask"]


@pytest.mark.parametrize("kind", ["flan_like", "t5_like"])
def test_the_short_path_equals_the_full_forward(kind, request):
    """Decoder length 1 and the labels' rows of the head: values and every gradient, against transformers."""
    from transformers import AutoModelForSeq2SeqLM

    folder = request.getfixturevalue(kind)
    ours = load_classifier(str(folder), problem="binary", labels=("no", "yes"), dropout=0.0)
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder)
    ids, mask = tensors(ours.tokenizer)
    tokens = label_tokens(ours.tokenizer, ("no", "yes"))
    start = torch.full((len(ids), 1), plain.config.decoder_start_token_id)
    full = plain(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits[:, 0, tokens]
    short = ours.logits(ours.model, input_ids=ids, attention_mask=mask)
    assert torch.allclose(short, full, atol=1e-5)
    for logits in (short, full):
        (logits.softmax(dim=1)[:, 1] ** 2).sum().backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.model.named_parameters():
        expected = theirs[name].grad
        if expected is None:
            expected = torch.zeros_like(parameter)
        found = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        assert torch.allclose(found, expected, atol=1e-5), name


def test_scores_do_not_depend_on_the_batch(flan_like, bert_like, gpt2_like):
    for folder in (flan_like, bert_like, gpt2_like):
        loaded = load_classifier(str(folder), problem="binary", labels=("no", "yes"))
        requests = [ScoreRequest(loaded.tokenizer(row)["input_ids"], None) for row in ROWS]
        alone = score_all(
            score_engine(loaded, limits=EngineLimits(max_rows=1, max_encode_tokens=30)), requests, width=2
        )
        together = score_all(score_engine(loaded), requests, width=2)
        assert alone == pytest.approx(together, abs=1e-5)
        assert predictions("binary", alone).sum(axis=1) == pytest.approx([1.0] * 3)


def test_the_engine_packs_inputs_of_any_length_and_type_as_transformers_scores_them(bert_like):
    loaded = load_classifier(str(bert_like), problem="binary", labels=("no", "yes"))
    first, second = (loaded.tokenizer(row)["input_ids"] for row in ROWS[:2])
    pair = [*first, *second[1:]]
    kinds = [0] * len(first) + [1] * (len(second) - 1)
    requests = [
        ScoreRequest(first, None),
        ScoreRequest(pair * 3, kinds * 3),
        ScoreRequest(second[:2], None),
    ]
    engine = score_engine(loaded)
    assert engine.packed is not None
    loaded.model.train()
    found = score_all(engine, requests, width=2)
    assert loaded.model.training  # as it was
    loaded.model.eval()
    for logits, request in zip(found, requests, strict=True):
        ids = torch.tensor([request.token_ids])
        types = torch.tensor([request.token_types or [0] * ids.shape[1]])
        expected = loaded.model(input_ids=ids, token_type_ids=types).logits[0]
        assert torch.allclose(torch.as_tensor(logits, dtype=torch.float32), expected, atol=1e-5)


def test_gpt2_pools_the_last_real_token_even_where_it_is_the_padding_token(gpt2_like):
    loaded = load_classifier(str(gpt2_like), problem="binary", labels=("no", "yes"))
    end = loaded.tokenizer.pad_token_id
    assert end == loaded.tokenizer.eos_token_id
    ids = [*loaded.tokenizer(ROWS[0])["input_ids"], end]
    padded = torch.tensor([[*ids, end, end]])
    mask = torch.tensor([[1] * len(ids) + [0, 0]])
    found = loaded.logits(loaded.model, input_ids=padded, attention_mask=mask)
    hidden = loaded.model.transformer(torch.tensor([ids])).last_hidden_state[:, -1]
    assert torch.allclose(found, loaded.model.score(hidden), atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_a_nanogpt_checkpoint_becomes_a_classifier(tmp_path, gpt2_like, bias):
    make_nanogpt(tmp_path / "gpt", vocab_size=512, bias=bias, compiled=True)
    loaded = load_classifier(
        str(tmp_path / "gpt/ckpt.pt"), problem="multiclass", labels=("a", "b", "c"), tokenizer=str(gpt2_like), seed=3
    )
    ids, mask = tensors(loaded.tokenizer)
    assert loaded.logits(loaded.model, input_ids=ids, attention_mask=mask).shape == (3, 3)
    assert loaded.has_new_head
    again = load_classifier(
        str(tmp_path / "gpt"), problem="multiclass", labels=("a", "b", "c"), tokenizer=str(gpt2_like), seed=3
    )
    assert torch.equal(loaded.model.score.weight, again.model.score.weight)


def test_a_new_head_depends_on_the_seed_and_a_trained_one_is_kept(bert_like, tmp_path):
    first, second, other = (
        load_classifier(str(bert_like), problem="binary", labels=("no", "yes"), seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.model.classifier.weight, second.model.classifier.weight)
    assert not torch.equal(first.model.classifier.weight, other.model.classifier.weight)
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    again = load_classifier(str(tmp_path), problem="binary", labels=("no", "yes"), seed=9)
    assert torch.equal(again.model.classifier.weight, first.model.classifier.weight)
    assert not again.has_new_head
    assert load_classifier(str(tmp_path), problem="multiclass", labels=("a", "b", "c"), seed=9).has_new_head


def test_roberta_takes_fewer_tokens_than_it_has_positions(bert_like, tmp_path):
    from transformers import AutoTokenizer, RobertaConfig, RobertaForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(bert_like)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=34, pad_token_id=tokenizer.pad_token_id, **sizes
    )
    RobertaForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(tmp_path)
    loaded = load_classifier(str(tmp_path), problem="binary", labels=("no", "yes"))
    assert loaded.max_positions == 34 - tokenizer.pad_token_id - 1
    word = tokenizer.convert_tokens_to_ids("red")
    assert score_all(score_engine(loaded), [ScoreRequest([word] * loaded.max_positions)], width=2).shape == (1, 2)


def test_a_trained_head_without_its_pooler_cannot_score(bert_like, tmp_path):
    loaded = load_classifier(str(bert_like), problem="binary", labels=("no", "yes"))
    kept = {name: value for name, value in loaded.model.state_dict().items() if ".pooler." not in name}
    loaded.model.save_pretrained(tmp_path, state_dict=kept)
    loaded.tokenizer.save_pretrained(tmp_path)
    assert load_classifier(str(tmp_path), problem="binary", labels=("no", "yes")).has_new_head


def test_dropout_reaches_every_rate(bert_like, gpt2_like):
    for folder in (bert_like, gpt2_like):
        model = load_classifier(str(folder), problem="binary", labels=("no", "yes"), dropout=0.37).model
        rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        assert rates == {0.37}


def test_what_cannot_score_is_refused(flan_like, bert_like, tmp_path):
    with pytest.raises(ModelError, match=r"label word 'sideways' is not a single token .*its pieces: "):
        load_classifier(str(flan_like), problem="binary", labels=("no", "sideways"))
    with pytest.raises(ModelError, match="regression targets"):
        load_classifier(str(flan_like), problem="regression", labels=("no", "yes"))
    shutil.copytree(bert_like, tmp_path / "broken")
    config = json.loads((tmp_path / "broken/config.json").read_text())
    (tmp_path / "broken/config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(
        ModelError, match=r"disagree about shapes: .*intermediate.dense.bias is 64 in the files, 48 by config.json"
    ):
        load_classifier(str(tmp_path / "broken"), problem="binary", labels=("no", "yes"))


NLI = ("entailment", "neutral", "contradiction")


def saved(folder, loaded, **config):
    """A checkpoint as somebody else's program left it."""
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **config}))
    return str(folder)


def scores_of(loaded):
    ids, mask = tensors(loaded.tokenizer)
    with torch.no_grad():
        return loaded.logits(loaded.model.eval(), input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize("kind", ["bert_like", "gpt2_like"])
def test_a_trained_head_is_put_in_the_order_of_the_labels_by_name(kind, request, tmp_path):
    loaded = load_classifier(str(request.getfixturevalue(kind)), problem="multiclass", labels=NLI)
    name, expected = saved(tmp_path / "own", loaded), scores_of(loaded)

    def load(*labels):
        return load_classifier(name, problem="multiclass", labels=labels)

    turned = load("Contradiction", "ENTAILMENT", "neutral")
    assert torch.allclose(scores_of(turned), expected[:, [2, 0, 1]], atol=1e-6)
    (note,) = turned.notes
    assert note.endswith("Contradiction, ENTAILMENT, neutral; each output was put in its label's place, by name")
    again = load_classifier(saved(tmp_path / "turned", turned), problem="multiclass", labels=NLI)
    assert torch.allclose(scores_of(again), expected, atol=1e-6)
    (note,) = load("x", "y", "z").notes
    assert note == f"the checkpoint calls its labels {', '.join(NLI)}; here they are, in this order, x, y, z"
    assert load(*NLI).notes == load("Entailment", "Neutral", "Contradiction").notes == ()
    assert load("a", "b").has_new_head
    name = saved(tmp_path / "unnamed", loaded, id2label={str(n): f"LABEL_{n}" for n in range(3)}, label2id={})
    unnamed = load(*reversed(NLI))
    assert unnamed.notes == ()
    assert torch.equal(scores_of(unnamed), expected)


def test_one_output_is_the_logit_of_yes_where_binary_scores_are_asked_of_it(bert_like, tmp_path):
    one = load_classifier(str(bert_like), problem="regression", labels=("no", "yes"))
    name = saved(tmp_path, one, problem_type=None)
    both = load_classifier(name, problem="binary", labels=("no", "yes"))
    shares = scores_of(both).softmax(dim=1)[:, 1:]
    assert torch.allclose(shares, scores_of(one).sigmoid(), atol=1e-6)
    assert not both.has_new_head
    assert both.notes == ("its head's one output is read as the logit of yes, by a sigmoid",)
    again = load_classifier(saved(tmp_path, both), problem="binary", labels=("no", "yes"))
    assert torch.allclose(scores_of(again), scores_of(both), atol=1e-6)


def test_one_output_with_a_name_is_the_logit_of_that_label(bert_like, tmp_path):
    one = load_classifier(str(bert_like), problem="regression", labels=("no", "yes"))
    says = {"problem_type": "multi_label_classification", "id2label": {"0": "toxic"}, "label2id": {"toxic": 0}}
    name = saved(tmp_path, one, **says)
    for labels, place in ((("clean", "toxic"), 1), (("toxic", "clean"), 0)):
        scorer = load_scorer(name, labels=labels)
        assert scorer.scoring.problem == "binary"
        assert torch.allclose(scores_of(scorer.loaded).softmax(dim=1)[:, place : place + 1], scores_of(one).sigmoid())
    assert load_scorer(name).scoring.problem == "binary"
    with pytest.raises(ModelError, match="no output for each"):
        load_scorer(name, labels=("a", "b", "c"))


@pytest.mark.parametrize(
    ("outputs", "says", "names", "problem", "labels"),
    [
        (1, None, (), "regression", ("no", "yes")),
        (1, "regression", ("score",), "regression", ("no", "yes")),
        (2, None, (), "binary", ("no", "yes")),
        (2, None, ("NEGATIVE", "POSITIVE"), "binary", ("NEGATIVE", "POSITIVE")),
        (2, "multi_label_classification", (), "multilabel", ("LABEL_0", "LABEL_1")),
        (3, None, (), "multiclass", ("LABEL_0", "LABEL_1", "LABEL_2")),
        (3, "multi_label_classification", ("a", "b", "c"), "multilabel", ("a", "b", "c")),
    ],
)
def test_what_a_head_says_of_itself(outputs, says, names, problem, labels):
    from transformers import BertConfig

    more = {"id2label": dict(enumerate(names))} if names else {"num_labels": outputs}
    own = own_head(BertConfig(problem_type=says, **more))
    assert (own.problem, own.names, own.outputs) == (problem, labels, outputs)


@pytest.mark.parametrize(
    ("own", "problem", "labels", "message"),
    [
        (
            OwnHead(3, NLI, None),
            "binary",
            ("no", "yes"),
            "its head has 3 outputs .*and no output for each of binary targets",
        ),
        (
            OwnHead(1, (), "regression"),
            "binary",
            ("no", "yes"),
            "its head has 1 output, and no output for each of binary",
        ),
        (
            OwnHead(2, (), "regression"),
            "regression",
            ("no", "yes"),
            "gives 2 numbers for an input; this program reads one",
        ),
        (OwnHead(2, ("a", "b"), None), "regression", ("no", "yes"), "no output for each of regression targets"),
        (
            OwnHead(3, NLI, None),
            "multiclass",
            ("neutral", "x", "y"),
            "neutral stands elsewhere there, and others have no",
        ),
    ],
)
def test_what_a_trained_head_cannot_mean_is_refused(own, problem, labels, message):
    with pytest.raises(ModelError, match=message):
        check_trained_head("m", own, problem, labels)
