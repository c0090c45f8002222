"""Models from scratch: the same texts give the same vocabulary, and what is saved lacks nothing but a head."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.conftest import SMALL, example_rows
from workflow.errors import ModelError
from workflow.models.load import quiet_transformers
from workflow.models.scratch import make_model, train_vocabulary, write_scratch_model
from workflow.models.scratch_stacks import (
    load_bert_tokenizer,
    load_gpt2_tokenizer,
    make_bert,
    make_gpt2,
    train_byte_pairs,
    train_wordpiece,
)
from workflow.models.shapes import BERT_SHAPES, GPT2_SHAPES, Shape
from workflow.models.verbalizers import no_yes_tokens, single_token

TEXTS = [row["prompt"] for row in example_rows(60)] + [
    "Naïve Café, 北京 12! [MASK] ##x",
    "Ωmega jumps quickly over vexing frogs",
]
KINDS = {"bert": (train_wordpiece, make_bert, BERT_SHAPES), "gpt2": (train_byte_pairs, make_gpt2, GPT2_SHAPES)}
HEADS = {"bert": {"classifier.weight", "classifier.bias"}, "gpt2": {"score.weight"}}


def trained(arch, texts=TEXTS, vocab_size=600):
    return KINDS[arch][0](texts, vocab_size=vocab_size, num_positions=64)


@pytest.fixture(scope="module", params=list(KINDS))
def made(request, tmp_path_factory):
    """(architecture, folder, tokenizer, model)"""
    quiet_transformers()
    _, make, shapes = KINDS[request.param]
    tokenizer = trained(request.param)
    model = make(shapes["tiny"], tokenizer, seed=3)
    folder = tmp_path_factory.mktemp("scratch") / request.param
    write_scratch_model(folder, model, tokenizer, {"seed": 3})
    return request.param, folder, tokenizer, model


@pytest.mark.parametrize("arch", KINDS)
def test_the_same_texts_give_the_same_vocabulary(arch):
    """The WordPiece trainer alone numbers its pieces anew, and finds others, every time it is run."""
    first = trained(arch).backend_tokenizer.to_str()
    assert all(trained(arch).backend_tokenizer.to_str() == first for _ in range(4))


def test_only_the_head_is_missing(made):
    arch, folder, tokenizer, model = made
    loaded, report = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, output_loading_info=True)
    assert report["missing_keys"] == HEADS[arch]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    ids = tokenizer(["reverse red green", "reverse blue"], padding=True, return_tensors="pt")
    body, loaded_body = model.eval().base_model, loaded.eval().base_model
    with torch.no_grad():
        assert torch.equal(body(**ids).last_hidden_state, loaded_body(**ids).last_hidden_state)
        assert loaded(**ids).logits.shape == (2, 2)


def test_tiny_is_at_most_a_million_parameters(made):
    arch, _, _, model = made
    shape = KINDS[arch][2]["tiny"]
    missing_pieces = shape.vocab_size - model.config.vocab_size
    count = sum(parameter.numel() for parameter in model.parameters()) + missing_pieces * shape.hidden_size
    assert 0.5e6 < count < 1e6


def test_weights_depend_on_the_seed_alone(made):
    arch, _, tokenizer, model = made
    _, make, shapes = KINDS[arch]
    torch.manual_seed(99)
    same, other = (make(shapes["tiny"], tokenizer, seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(weight, same[name]) for name, weight in model.state_dict().items())
    assert any(not torch.equal(weight, other[name]) for name, weight in model.state_dict().items())


class Pieces:
    """Stands for a published tokenizer of so many pieces."""

    pad_token_id = bos_token_id = eos_token_id = 0

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count


def test_shapes_have_the_published_sizes():
    for make, shape, expected in (
        (make_bert, BERT_SHAPES["bert-base"], 109_482_240),
        (make_gpt2, GPT2_SHAPES["gpt2"], 124_439_808),
    ):
        with torch.device("meta"):
            model = make(shape, Pieces(shape.vocab_size), seed=0)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_a_bert_tokenizer_takes_pairs(tmp_path):
    trained("bert").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    pair = tokenizer("reverse RED", "blue")
    tokens = tokenizer.convert_ids_to_tokens(pair["input_ids"])
    assert tokens == ["[CLS]", "reverse", "red", "[SEP]", "blue", "[SEP]"]
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    specials = [
        tokenizer.pad_token,
        tokenizer.unk_token,
        tokenizer.cls_token,
        tokenizer.sep_token,
        tokenizer.mask_token,
    ]
    assert tokenizer.convert_tokens_to_ids(specials) == [0, 1, 2, 3, 4]
    assert set(tokenizer.added_tokens_encoder) == set(specials), "pieces are ordinary"
    assert tokenizer.model_max_length == 64
    assert tokenizer.unk_token_id not in tokenizer("Ωexes x1f naive 京北").input_ids
    assert tokenizer.decode(pair["input_ids"], skip_special_tokens=True) == "reverse red blue"


def test_characters_that_are_words_have_no_inner_piece():
    vocabulary = trained("bert").get_vocab()
    assert {"北", "!", "#", "##x", "##ω"} <= vocabulary.keys()
    assert not {"##北", "##!", "###", "##é", "##E"} & vocabulary.keys()


def test_a_gpt2_tokenizer_knows_every_text(tmp_path):
    trained("gpt2").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    odd = "  Ünknown\n\t🙂 reverse red"
    assert tokenizer.decode(tokenizer(odd).input_ids) == odd
    assert tokenizer.pad_token == tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert len(tokenizer("reverse red").input_ids) == 2
    assert tokenizer.model_max_length == 64


def test_texts_that_make_no_vocabulary():
    with pytest.raises(ModelError, match="no word in them"):
        trained("bert", texts=["", "  "])
    with pytest.raises(ModelError, match=r"alone are \d+; give a larger --vocab_size"):
        trained("bert", vocab_size=20)
    with pytest.raises(ModelError, match="alone are 257; give a larger"):
        trained("gpt2", vocab_size=256)
    with pytest.raises(AssertionError, match="read twice"):
        trained("bert", texts=iter(TEXTS))


def test_tokenizers_of_others(flan_like, tmp_path):
    trained("bert").save_pretrained(tmp_path / "bert")
    trained("gpt2").save_pretrained(tmp_path / "gpt2")
    assert len(load_bert_tokenizer(str(tmp_path / "bert"))) == len(trained("bert"))
    unpadded = AutoTokenizer.from_pretrained(tmp_path / "gpt2", pad_token=None)
    unpadded.save_pretrained(tmp_path / "unpadded")
    assert load_gpt2_tokenizer(str(tmp_path / "unpadded")).pad_token == "<|endoftext|>"
    with pytest.raises(ModelError, match="has no cls_token, sep_token; give the tokenizer of a BERT"):
        load_bert_tokenizer(str(flan_like))
    with pytest.raises(ModelError, match="has no eos_token; give the tokenizer of a GPT-2"):
        load_gpt2_tokenizer(str(tmp_path / "bert"))
    with pytest.raises(ModelError, match="nowhere: cannot read its tokenizer"):
        load_bert_tokenizer(str(tmp_path / "nowhere"))
    (tmp_path / "bert/tokenizer.json").unlink()
    with pytest.raises(ModelError, match="special tokens alone"):
        load_bert_tokenizer(str(tmp_path / "bert"))


def test_labels_are_single_pieces():
    """Also where their parts are so frequent that a piece of average probability would lose to them."""
    texts = ["re ver se neg ative", "neg ative neg", "reverse red"] * 40
    labels = ["negative", "neutral", "not_entailment", "Positive", "reverse", "12"]
    tokenizer = train_vocabulary(iter(texts), vocab_size=60, labels=labels)
    tokens = [single_token(tokenizer, label) for label in labels]
    assert len(set(tokens)) == len(labels)
    assert no_yes_tokens(tokenizer) is not None
    assert max(tokens) < len(tokenizer)
    assert set(tokens).isdisjoint(tokenizer.all_special_ids)


def test_labels_change_no_other_vocabulary():
    plain, labelled = (train_vocabulary(iter(TEXTS), vocab_size=120, labels=labels) for labels in ((), ("yes", "no")))
    assert plain.get_vocab() == labelled.get_vocab()


def test_a_label_that_cannot_be_one_piece():
    with pytest.raises(ModelError, match="label word '①' is not a single token"):
        train_vocabulary(iter(TEXTS), vocab_size=120, labels=["①"])


def test_labels_survive_saving(tmp_path):
    tokenizer = train_vocabulary(iter(TEXTS), vocab_size=120, labels=["negative"])
    write_scratch_model(tmp_path / "m", make_model(Shape(**SMALL), tokenizer, seed=0), tokenizer, {})
    assert single_token(AutoTokenizer.from_pretrained(tmp_path / "m"), "negative") == single_token(
        tokenizer, "negative"
    )
