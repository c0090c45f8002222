"""Tokenizers do what their files say, and checkpoints are saved so that plain transformers gives the ids that were trained."""

from __future__ import annotations

import json
import shutil

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.conftest import shared
from workflow.errors import ModelError
from workflow.models.classifier import load_classifier
from workflow.models.load import load_seq2seq, read_tokenizer
from workflow.models.save import write_model
from workflow.models.scratch import byte_vocabulary
from workflow.models.tokenizer_file import write_ids

TEXTS = ["{red: one}", "<sep>red<sep> red", "red {green} ", "  red  green\n", "RED Rédd", "red"]
FIRST = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Strip", "strip_left": False, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
    ],
}
"""As transformers 4 converts and saves a T5's tokenizer with `legacy: false`."""


def edit(file, change):
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))


def added(number, text, *, special):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, "special": special, **flags}


@pytest.fixture
def of_version_4(flan_like, tmp_path):
    """A checkpoint with a tokenizer as transformers 4 writes it, whose blanks are told apart behind added tokens."""
    shutil.copytree(flan_like, tmp_path / "m")
    size = len(AutoTokenizer.from_pretrained(flan_like))
    tokens = [added(size + place, text, special=text == "<sep>") for place, text in enumerate(["{", "}", "<sep>"])]

    def change(file):
        file |= {"pre_tokenizer": FIRST, "decoder": FIRST, "normalizer": NORMALIZER}
        file["added_tokens"] += tokens

    edit(tmp_path / "m/tokenizer.json", change)
    settings = {
        "tokenizer_class": "T5Tokenizer",
        "legacy": False,
        "extra_ids": 0,
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    decoder = {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in tokens}
    (tmp_path / "m/tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": decoder}))
    return tmp_path / "m"


def ids_of(tokenizer):
    return [tokenizer(text).input_ids for text in TEXTS]


def of_file(folder):
    """What the tokenizers library makes of the file."""
    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [found.encode(text).ids for text in TEXTS]


def test_the_files_ids_are_used_and_kept(of_version_4, tmp_path):
    expected = of_file(of_version_4)
    assert ids_of(AutoTokenizer.from_pretrained(of_version_4)) != expected
    loaded = load_seq2seq(str(of_version_4))
    assert ids_of(loaded.tokenizer) == expected
    assert any("token ids are those of tokenizer.json" in note for note in loaded.notes)
    assert loaded.tokenizer.decode(loaded.tokenizer("<sep>red red").input_ids, skip_special_tokens=True) == "red red"
    (tmp_path / "saved").mkdir()
    write_model(tmp_path / "saved", loaded.model, loaded.tokenizer, dict(loaded.model.named_parameters()))
    plain, again = AutoTokenizer.from_pretrained(tmp_path / "saved"), load_seq2seq(str(tmp_path / "saved"))
    for tokenizer in (plain, again.tokenizer):
        assert ids_of(tokenizer) == expected
        assert [tokenizer.decode(ids) for ids in expected] == [loaded.tokenizer.decode(ids) for ids in expected]
        assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 0)
        assert "token_type_ids" not in tokenizer("red")
    assert not again.notes


def test_a_usual_file_needs_no_note(flan_like):
    loaded = load_seq2seq(str(flan_like))
    assert type(loaded.tokenizer).__name__ == "T5Tokenizer"
    assert not loaded.notes
    assert ids_of(loaded.tokenizer) == of_file(flan_like)


def test_a_file_without_the_sentinels_of_the_class_has_none(flan_like, tmp_path):
    """The class would add a hundred, beyond the model's vocabulary."""
    shutil.copytree(flan_like, tmp_path / "m")
    edit(tmp_path / "m/tokenizer_config.json", lambda found: found.pop("extra_ids"))
    edit(tmp_path / "m/tokenizer_config.json", lambda found: found.pop("extra_special_tokens", None))
    assert len(read_tokenizer(str(tmp_path / "m"))[0]) == len(AutoTokenizer.from_pretrained(flan_like))


def test_bytes_need_no_file(tmp_path):
    byte_vocabulary().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    tokenizer, notes = read_tokenizer(str(tmp_path))
    assert (type(tokenizer).__name__, notes) == ("ByT5Tokenizer", ())


@pytest.mark.parametrize("legacy", [False, True])
def test_a_sentencepiece_model_alone(legacy, tmp_path):
    """The ids of transformers 4.46 for the same files."""
    shutil.copy(shared("t5-tokenizer", "spiece.model"), tmp_path)
    settings = {"tokenizer_class": "T5Tokenizer", "legacy": legacy, "extra_ids": 100, "eos_token": "</s>"}
    tokens = {str(32100 + place): added(0, text, special=False) for place, text in enumerate("{}")}
    for token in tokens.values():
        del token["id"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": tokens}))
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    tokenizer, notes = read_tokenizer(str(tmp_path))
    assert bool(notes) != legacy
    expected = [3, 5, 8774, 1] if legacy else [5, 8774, 1]
    assert tokenizer("<extra_id_0>. Hello").input_ids == [32099, *expected]
    assert tokenizer("{x: 1}").input_ids == [32100, *((3, 226) if legacy else (226,)), 10, 209, 32101, 1]
    tokenizer.save_pretrained(tmp_path / "again")
    shutil.copy(tmp_path / "config.json", tmp_path / "again")
    for again in (AutoTokenizer.from_pretrained(tmp_path / "again"), read_tokenizer(str(tmp_path / "again"))[0]):
        assert ids_of(again) == ids_of(tokenizer)


@pytest.mark.parametrize("said", [None, False, True])
def test_the_case_of_a_berts_file(said, bert_like, tmp_path):
    """Without a word of it in tokenizer_config.json, the class would take lower case; with one, that holds."""
    shutil.copytree(bert_like, tmp_path / "m")

    def cased(file):
        file["normalizer"]["lowercase"] = False

    def settings(found):
        found.pop("do_lower_case", None)
        found |= {} if said is None else {"do_lower_case": said}

    edit(tmp_path / "m/tokenizer.json", cased)
    edit(tmp_path / "m/tokenizer_config.json", settings)
    loaded = load_classifier(str(tmp_path / "m"), problem="binary", labels=("no", "yes"))
    upper, lower = loaded.tokenizer("RED").input_ids, loaded.tokenizer("red").input_ids
    assert (upper == lower) == bool(said)
    assert any("transformers' BertTokenizer would" in note for note in loaded.notes) == (said is None)
    (tmp_path / "saved").mkdir()
    write_model(tmp_path / "saved", loaded.model, loaded.tokenizer, dict(loaded.model.named_parameters()))
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("RED").input_ids == upper


def test_other_ids_than_a_run_was_trained_on_are_refused(of_version_4, flan_like, tmp_path):
    loaded = load_seq2seq(str(of_version_4))
    (tmp_path / "saved").mkdir()
    write_model(tmp_path / "saved", loaded.model, loaded.tokenizer, dict(loaded.model.named_parameters()))
    write_ids(tmp_path / "saved", loaded.tokenizer)
    assert not load_seq2seq(str(tmp_path / "saved")).notes
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(flan_like / file, tmp_path / "saved")
    with pytest.raises(ModelError, match="other token ids than the model was trained on"):
        load_seq2seq(str(tmp_path / "saved"))
