"""Texts of answers: which special tokens they keep, the blanks beside them, and streams that agree with them."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import shared
from workflow.data.checks import check
from workflow.data.encoders import LengthLimits, Seq2SeqEncoder
from workflow.data.examples import SEQ2SEQ, load_examples
from workflow.data.features import load_features
from workflow.data.sources import find_source
from workflow.inference.sampling import SamplingParams
from workflow.inference.sequence import Answer
from workflow.models.answers import AnswerTexts, Blanks, read_answers
from workflow.models.scratch import byte_vocabulary
from workflow.recipe.answers import answers_of

END = 1
MARKS = ["<sep>", "[A]"]


def with_marks(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.add_tokens(["{", "}"])
    return tokenizer


@pytest.fixture(scope="module", params=["pieces", "bytes", "t5"])
def tokenizer(request, vocabulary):
    if request.param == "t5":
        from transformers import AutoTokenizer

        return with_marks(AutoTokenizer.from_pretrained(shared("t5-tokenizer")))
    return with_marks(vocabulary if request.param == "pieces" else byte_vocabulary())


pytestmark = pytest.mark.filterwarnings("ignore:This sequence already has")


def looked_at(tokenizer, completions, tmp_path, *, ends=(END,)):
    """The answers of data with these completions, and what its check says."""
    (tmp_path / "data").mkdir()
    rows = [{"prompt": f"reverse {number}", "completion": text} for number, text in enumerate(completions)]
    (tmp_path / "data/x.json").write_text(json.dumps({"train": rows, "eval": []}))
    examples = load_examples(find_source("x", tmp_path), SEQ2SEQ, tmp_path / "cache")
    encoder = Seq2SeqEncoder(tokenizer, LengthLimits(64, 64))
    features = {"train": load_features(examples, "train", encoder, tmp_path / "cache")}
    answers, findings = answers_of(AnswerTexts(tokenizer, ends, 0), examples, features)
    found = check(examples, features=features, tokenizer=tokenizer, answers=answers, findings=findings)
    ids = [features["train"].row("completion", number).tolist() for number in range(len(rows))]
    return answers, found.warnings(), ids


@pytest.mark.parametrize(
    "completions",
    [
        ["<sep>red[A]blue", "<sep>green[A]one two"],
        ["<sep> red [A] blue", "<sep> green [A] one two"],
        ["red<sep>\nblue [A]", "green<sep>\none two [A]"],
        ["<sep><sep>red", "[A]"],
        ["<sep> <sep> red", "<sep> <sep> one"],
        ["{red}{blue}", "{one}{two}"],
        ["<unk> red", "<unk> one"],
    ],
    ids=str,
)
def test_answers_are_written_as_completions_are(completions, tokenizer, tmp_path):
    answers, warnings, ids = looked_at(tokenizer, completions, tmp_path)
    assert [answers(row[:-1]) for row in ids] == completions
    assert not any("CANNOT LEARN" in warning for warning in warnings)
    special = [mark for mark in [*MARKS, "<unk>"] if any(mark in text for text in completions)]
    told = [warning for warning in warnings if "which answers keep" in warning]
    assert all(mark in told[0] for mark in special) if special else not told
    answers.write(tmp_path)
    again = read_answers(tmp_path / "answer_tokens.json", tokenizer, ends=(END,), start=0)
    assert [again(row) for row in ids] == completions


def test_a_special_token_that_completions_do_not_hold_is_left_out(tokenizer, tmp_path):
    answers, warnings, _ = looked_at(tokenizer, ["<sep>red", "one"], tmp_path)
    sep, other = tokenizer.convert_tokens_to_ids(MARKS)
    word = tokenizer("red", add_special_tokens=False).input_ids
    assert answers([0, other, sep, *word, other, END, 0]) == "<sep>red"
    assert AnswerTexts(tokenizer, (END,), 0)([0, sep, other, *word, END]) == "red"
    assert "train: completions hold special tokens, which answers keep: <sep> (1 rows)" in warnings


def test_blanks_that_are_now_these_now_those_are_told_to_be_lost(tmp_path, vocabulary):
    completions = ["<sep>red", "<sep> red"]
    answers, warnings, ids = looked_at(with_marks(vocabulary), completions, tmp_path)
    assert {answers(row) for row in ids} == {"<sep> red"}
    assert warnings[0].startswith("THE MODEL CANNOT LEARN TO WRITE THIS")


def test_an_end_behind_a_completion_is_one_end_and_no_part_of_it(tokenizer, tmp_path):
    answers, warnings, ids = looked_at(tokenizer, ["red one</s>", "red one", "red one</s></s>"], tmp_path)
    assert ids[0] == ids[1] == ids[2]
    assert {answers.reference(text) for text in ("red one</s>", "red one", "red one</s> </s>\n")} == {"red one"}
    assert not [warning for warning in warnings if "CANNOT" in warning or "end of sequence" in warning]


def test_ends_and_padding_inside_completions_are_counted(tokenizer, tmp_path):
    _, warnings, _ = looked_at(tokenizer, ["red</s>one", "red one", "two</s>one</s>", "<pad>red"], tmp_path)
    assert any("train: 2 completions hold an end of sequence (</s>) before their end" in text for text in warnings)
    assert any("answers never show: <pad> (1 rows)" in text for text in warnings)


def test_each_of_several_ends_may_close_a_completion(tokenizer, tmp_path):
    """One of them is special, one a token as others; both are named where something follows."""
    ends = (END, *tokenizer.convert_tokens_to_ids(["<sep>", "}"]))
    answers, warnings, _ = looked_at(tokenizer, ["red<sep>", "one}", "two<sep></s>"], tmp_path, ends=ends)
    assert not any("end of sequence" in line for line in warnings)
    assert [answers.reference(text) for text in ("red<sep>", "one}", "two<sep></s>")] == ["red", "one", "two"]
    (tmp_path / "more").mkdir()
    _, warnings, _ = looked_at(tokenizer, ["red<sep> one", "one} two</s>"], tmp_path / "more", ends=ends)
    assert any(
        "2 completions hold an end of sequence (</s> or <sep> or }) before their end" in line for line in warnings
    )


def test_what_the_vocabulary_lacks_is_no_token_to_keep(vocabulary, tmp_path):
    answers, warnings, ids = looked_at(vocabulary, ["red ß", "one ß"], tmp_path)
    assert not answers.marks
    assert "<unk>" not in answers(ids[0])
    assert warnings[0].startswith("THE MODEL CANNOT LEARN TO WRITE THIS")


PIECES = ["<sep>", "[A]", "red", "one", " ", "\n", "green blue", "  "]
RULES = st.builds(Blanks, *(st.sampled_from([None, "", " ", "\n"]) for _ in range(3)))


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.tuples(RULES, RULES), st.sampled_from([(), ("red",), (" ",)]))
@settings(max_examples=150, deadline=None)
def test_streams_agree_with_the_text(vocabulary_with_marks, pieces, rules, stops):
    tokenizer = vocabulary_with_marks
    texts = AnswerTexts(tokenizer, (END,), 0, dict(zip(MARKS, rules, strict=True)))
    made = Answer(0, SamplingParams(100, stop=stops), 0, (END,), texts, blanks_may_go=texts.blanks_may_go)
    streamed = ""
    for token in [*tokenizer("".join(pieces), add_special_tokens=False).input_ids, END]:
        made.add(token)
        streamed += chunk.text if (chunk := made.chunk()) else ""
        if made.finish_reason:
            break
    assert streamed == made.text()
    assert not any(stop in streamed for stop in stops)
    whole = texts(made.tokens)
    cuts = [place for stop in stops if (place := whole.find(stop)) >= 0]
    assert streamed == whole[: min(cuts, default=len(whole))]


@pytest.fixture(scope="module")
def vocabulary_with_marks():
    return with_marks(byte_vocabulary())  # its texts hold every blank there is
