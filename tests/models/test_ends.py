"""What ends, starts and pads answers, where configuration, generation settings and tokenizer contradict each other."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

from workflow.errors import ModelError
from workflow.inference.batch import generate_all
from workflow.inference.engine import T5Engine
from workflow.inference.requests import GenerateRequest
from workflow.inference.sampling import SamplingParams
from workflow.models.ends import end_tokens
from workflow.models.load import load_seq2seq
from workflow.models.save import write_model

PROMPT = "reverse red left one"


def edit(folder, file, **changes):
    """Writes keys into a JSON file of a checkpoint; `...` leaves a key out."""
    path = folder / file
    found = {key: value for key, value in {**json.loads(path.read_text()), **changes}.items() if value is not ...}
    path.write_text(json.dumps(found))


@pytest.fixture(scope="module")
def ending(flan_like, tmp_path_factory):
    """A checkpoint whose first token of the answer to PROMPT is the tokenizer's end."""
    folder = tmp_path_factory.mktemp("ends") / "m"
    shutil.copytree(flan_like, folder)
    loaded = load_seq2seq(str(folder))
    first = loaded.model.generate(**loaded.tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=1)[0, 1].item()
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][1] = 20 * weights["lm_head.weight"][first]  # beyond any doubt, for beams
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def copied(folder, tmp_path, **changes):
    shutil.copytree(folder, tmp_path / "m")
    for file, keys in changes.items():
        edit(tmp_path / "m", f"{file}.json", **keys)
    return tmp_path / "m"


def answers(loaded, **params):
    ids = loaded.tokenizer(PROMPT).input_ids
    (result,) = generate_all(
        T5Engine(loaded.model.eval(), loaded.tokenizer), [GenerateRequest(ids, SamplingParams(6, **params))]
    )
    return [(made.token_ids, made.finish_reason) for made in result.generations]


@pytest.mark.parametrize("file", ["config", "generation_config"])
@pytest.mark.parametrize("said", [2, 102, None, ..., [2], [1, 2], [3, 4], [1, 999_999]], ids=str)
def test_answers_end_where_completions_do(said, file, ending, tmp_path):
    """By the engine, by beams, and by transformers' own generate from what is saved."""
    loaded = load_seq2seq(str(copied(ending, tmp_path, **{file: {"eos_token_id": said}})))
    assert answers(loaded) == answers(loaded, num_beams=2) == [((), "stop")]
    several = isinstance(said, list) and len(said) > 1
    assert any("answers end with" in note for note in loaded.notes) == (said not in (..., [1, 999_999]))
    assert set(end_tokens(loaded.model)) == {1, *(said if several else ())} - {999_999}
    (tmp_path / "again").mkdir()
    write_model(tmp_path / "again", loaded.model, loaded.tokenizer, loaded.model.state_dict())
    assert json.loads((tmp_path / "again" / "config.json").read_text())["eos_token_id"] == 1
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again")
    ids = torch.tensor([loaded.tokenizer(PROMPT).input_ids])
    assert plain.generate(ids, max_new_tokens=6)[0].tolist() == [0, 1]
    assert end_tokens(load_seq2seq(str(tmp_path / "again")).model) == end_tokens(loaded.model)


@pytest.mark.parametrize(
    ("listed", "told"), [([1, 5, 999_999], "lists 999999, which"), ([1, None, 5, "</s>"], "lists null, </s>, which")]
)
def test_what_a_list_has_that_is_no_token_is_told(listed, told, flan_like, tmp_path):
    loaded = load_seq2seq(str(copied(flan_like, tmp_path, generation_config={"eos_token_id": listed})))
    assert end_tokens(loaded.model) == (1, 5)
    assert any(told in note for note in loaded.notes)


def test_each_token_of_a_list_ends_answers(flan_like, tmp_path):
    plain = load_seq2seq(str(flan_like))
    ((ids, reason),) = answers(plain)
    assert reason == "length"
    place = next(number for number, token in enumerate(ids) if token not in ids[:number] and number)
    folder = copied(flan_like, tmp_path, generation_config={"eos_token_id": [1, ids[place]]})
    loaded = load_seq2seq(str(folder))
    assert answers(loaded) == answers(loaded, num_beams=1) == [(ids[:place], "stop")]
    for few in (1, place + 1):  # none of the ends comes too early
        ((found, _),) = answers(loaded, min_new_tokens=few)
        assert len(found) >= few
        assert not {1, ids[place]} & {*found[:few]}


@pytest.mark.parametrize("said", [..., None])
def test_a_decoder_without_a_start_begins_with_padding(said, flan_like, tmp_path):
    changes = {"decoder_start_token_id": said}
    loaded = load_seq2seq(str(copied(flan_like, tmp_path, config=changes, generation_config=changes)))
    assert loaded.model.config.decoder_start_token_id == 0
    assert [note for note in loaded.notes if "decoder_start_token_id is missing in config.json" in note]
    assert answers(loaded) == answers(load_seq2seq(str(flan_like)))


def test_the_start_of_generation_settings_serves_where_the_configuration_has_none(flan_like, tmp_path):
    changes = {"config": {"decoder_start_token_id": ...}, "generation_config": {"decoder_start_token_id": 5}}
    loaded = load_seq2seq(str(copied(flan_like, tmp_path, **changes)))
    assert loaded.model.config.decoder_start_token_id == 5
    assert loaded.model.generation_config.decoder_start_token_id == 5


@pytest.mark.parametrize("said", [-1, 100_000, [0, 1]], ids=str)
def test_a_start_that_is_no_token_is_refused(said, flan_like, tmp_path):
    with pytest.raises(ModelError, match=r"decoder_start_token_id"):
        load_seq2seq(str(copied(flan_like, tmp_path, config={"decoder_start_token_id": said})))


@pytest.mark.parametrize("said", [..., None, 7])
def test_padding_is_the_tokenizers(said, flan_like, tmp_path):
    loaded = load_seq2seq(str(copied(flan_like, tmp_path, config={"pad_token_id": said})))
    assert loaded.model.config.pad_token_id == loaded.model.generation_config.pad_token_id == 0
    assert any("pads with 7" in note for note in loaded.notes) == (said == 7)
    assert answers(loaded) == answers(load_seq2seq(str(flan_like)))
