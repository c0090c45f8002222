"""Token ids: cut at the right end, counted, cached, the same however often."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import write_data
from workflow.data.checks import check
from workflow.data.encoders import LengthLimits, Seq2SeqEncoder
from workflow.data.examples import SEQ2SEQ, load_examples
from workflow.data.features import load_features
from workflow.data.sources import find_source


@pytest.fixture
def examples(tmp_path):
    write_data(tmp_path, "toy")
    return load_examples(find_source("toy", tmp_path), SEQ2SEQ, tmp_path / "cache")


def test_ids_end_in_end_of_sequence(examples, vocabulary, tmp_path):
    features = load_features(examples, "train", Seq2SeqEncoder(vocabulary, LengthLimits(99, 99)), tmp_path / "cache")
    for number, row in enumerate(examples.train):
        assert features.row("prompt", number).tolist() == vocabulary(row["prompt"]).input_ids
        assert features.row("completion", number)[-1] == vocabulary.eos_token_id
    assert features.lengths("prompt").tolist() == [
        len(features.row("prompt", number)) for number in range(len(examples.train))
    ]
    again = load_features(examples, "train", Seq2SeqEncoder(vocabulary, LengthLimits(99, 99)), tmp_path / "cache")
    assert np.array_equal(again.row("prompt", 3), features.row("prompt", 3))


def test_a_long_prompt_keeps_its_cue(examples, vocabulary, tmp_path):
    """F13: right truncation would cut off the end of the prompt, where the cue to answer stands."""
    whole = load_features(examples, "train", Seq2SeqEncoder(vocabulary, LengthLimits(99, 99)), tmp_path / "cache")
    cut = load_features(examples, "train", Seq2SeqEncoder(vocabulary, LengthLimits(5, 4)), tmp_path / "cache")
    start = load_features(
        examples, "train", Seq2SeqEncoder(vocabulary, LengthLimits(5, 4, keep_source="start")), tmp_path / "cache"
    )
    for number in range(len(examples.train)):
        full, end = whole.row("prompt", number).tolist(), vocabulary.eos_token_id
        if len(full) > 5:
            assert cut.row("prompt", number).tolist() == full[-5:]
            assert start.row("prompt", number).tolist() == [*full[:4], end]
        target = whole.row("completion", number).tolist()
        assert cut.row("completion", number).tolist() == (target if len(target) <= 4 else [*target[:3], end])
    lost = cut.truncation("prompt")
    lengths = whole.lengths("prompt")
    assert lost.rows == (lengths > 5).sum() > 0
    assert lost.tokens == (lengths[lengths > 5] - 5).sum()


def test_an_empty_split(tmp_path, vocabulary):
    write_data(tmp_path, "toy", train=2, evaluation=0)
    found = load_examples(find_source("toy", tmp_path), SEQ2SEQ, tmp_path / "cache")
    assert len(load_features(found, "eval", Seq2SeqEncoder(vocabulary, LengthLimits(9, 9)), tmp_path / "cache")) == 0


def write(tmp_path, train, evaluation):
    import json

    (tmp_path / "data").mkdir()
    (tmp_path / "data/d.json").write_text(json.dumps({"train": train, "eval": evaluation}))
    return load_examples(find_source("d", tmp_path), SEQ2SEQ, tmp_path / "cache")


def row(prompt, completion):
    return {"prompt": prompt, "completion": completion}


def test_check_finds_what_is_odd(tmp_path, vocabulary):
    """F14: text that the vocabulary cannot give back is told, loudest where the model should write it."""
    train = [
        row("red", "green"),
        row("red", "green"),
        row("blue", "one"),
        row("blue", "two"),
        row("", ""),
        row("red {x}", "a\nb ß"),
    ]
    evaluation = [row("red", "green"), row("blue", "no"), row("green", "red")]
    examples = write(tmp_path, train, evaluation)
    limits = LengthLimits(2, 2)
    features = {
        split: load_features(examples, split, Seq2SeqEncoder(vocabulary, limits), tmp_path / "cache")
        for split in ("train", "eval")
    }
    found = check(examples, features=features, tokenizer=vocabulary)
    split = found.splits["train"]
    assert (
        split.rows,
        split.duplicate_prompts,
        split.contradictions,
        split.empty_prompts,
        split.empty_completions,
    ) == (6, 2, 1, 1, 1)
    assert (found.leaked_prompts, found.leaked_rows) == (2, 1)
    assert split.not_round_trip["completion"]["rows"] == 1
    assert "'ß'" in split.not_round_trip["completion"]["unknown"]
    assert "'\\n'" in split.not_round_trip["completion"]["unknown"]
    assert split.truncated["prompt"]["rows"] >= 1
    warnings = found.warnings()
    assert warnings[0].startswith("THE MODEL CANNOT LEARN TO WRITE THIS")
    assert any("2 eval prompts also stand in train" in warning for warning in warnings)
    assert found.splits["eval"].completions == {"green": 1, "no": 1, "red": 1}


def test_check_of_clean_data_is_silent(tmp_path, vocabulary):
    examples = write(tmp_path, [row("red", "green")], [row("blue", "one")])
    assert check(examples, tokenizer=vocabulary).warnings() == []
