"""Rows to be scored: targets, texts, templates and their encodings; what is wrong is told with its place."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import shared
from workflow.data.class_names import NO_NAMES, ClassNames, class_names
from workflow.data.encoders import INPUT, TOKEN_TYPES, ScoreEncoder, joined, shares
from workflow.data.examples import ScoredRows, load_examples
from workflow.data.scoring import Scoring, read_scoring
from workflow.data.sources import find_source
from workflow.data.targets import Targets
from workflow.data.texts import Texts, read_template
from workflow.errors import ConfigError, DataError, ModelError
from workflow.evaluation.score_files import MOST_LISTED, NUM_LISTED, read_scores, write_scores

BINARY = Targets()
STARS = Targets(low=1, high=5)
MOODS = Targets("multiclass", ("bad", "so-so", "good"))
SPAM = Targets(labels=("ham", "spam"))
TAGS = Targets("multilabel", ("red", "green", "blue"))
RATINGS = Targets("multiclass", ("1", "2", "3", "4", "5"))


@pytest.mark.parametrize(
    ("targets", "values", "vectors"),
    [
        (Targets(labels=("a", "c"), names=ClassNames((0, 2), ("a", "c"))), [0, 2], [[1, 0], [0, 1]]),
        (Targets(labels=("pos", "neg"), names=ClassNames((1, 2), ("neg", "pos"))), [1, 2], [[0, 1], [1, 0]]),
        (
            Targets("multiclass", ("1", "2", "3"), from_text=True, names=ClassNames((0, 1, 2), ("a", "b", "c"))),
            ["1", 1],
            [[0, 1, 0], [0, 1, 0]],
        ),
    ],
)
def test_a_number_that_the_data_names_is_that_class(targets, values, vectors):
    assert [targets.vector(value) for value in values] == vectors


@pytest.mark.parametrize(
    ("targets", "value", "vector"),
    [
        (BINARY, 0.25, [0.75, 0.25]),
        (BINARY, True, [0, 1]),
        (STARS, 3, [0.5, 0.5]),
        (Targets(from_text=True), "0.5", [0.5, 0.5]),
        (MOODS, "good", [0, 0, 1]),
        (MOODS, 1, [0, 1, 0]),
        (MOODS, [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
        (MOODS, {"bad": 0.5, "good": 0.5}, [0.5, 0, 0.5]),
        (TAGS, ["red", "blue"], [1, 0, 1]),
        (TAGS, [], [0, 0, 0]),
        (TAGS, [0.5, 0, 1], [0.5, 0, 1]),
        (BINARY, "yes", [0, 1]),
        (SPAM, "Ham", [1, 0]),
        (SPAM, {"ham": 0.25, "spam": 0.75}, [0.25, 0.75]),
        (replace(SPAM, from_text=True), "spam", [0, 1]),
        (Targets(labels=("1", "2")), 2, [0, 1]),
        (Targets(labels=("1", "0")), 0, [0, 1]),
        (Targets(labels=("true", "false")), True, [1, 0]),
        (Targets("multiclass", ("true", "false", "unknown")), False, [0, 1, 0]),
        (Targets("multiclass", ("not_entailment", "entailment")), "Not entailment", [1, 0]),
        (Targets("multilabel", ("a", "b")), [1], [0, 1]),
        (Targets("multilabel", ("a", "b")), [False, True], [0, 1]),
        (Targets("multilabel", ("a", "b")), [0.0, 1.0], [0, 1]),
        (Targets("multilabel", ("a", "b")), [1, 1], [1, 1]),
        (Targets("multilabel", ("a", "b")), {"b": 1}, [0, 1]),
        (TAGS, [0, 2, 1], [1, 1, 1]),
        (TAGS, [0, 1, 1], [0, 1, 1]),
        (RATINGS, 1, [1, 0, 0, 0, 0]),
        (RATINGS, 5.0, [0, 0, 0, 0, 1]),
        (Targets("multiclass", RATINGS.labels, from_text=True), "2", [0, 1, 0, 0, 0]),
        (Targets("multiclass", ("-1", "0", "1")), -1, [1, 0, 0]),
        (Targets("multiclass", ("0.5", "1.0")), 1, [0, 1]),
        (Targets("multilabel", RATINGS.labels), [2, 5], [0, 1, 0, 0, 1]),
        (Targets("regression"), -7.5, [-7.5]),
    ],
)
def test_vectors(targets, value, vector):
    assert targets.vector(value) == pytest.approx(vector)
    assert targets.problem_of({"target": value}) is None


@pytest.mark.parametrize(
    ("targets", "row", "message"),
    [
        (BINARY, {"input": "x"}, 'missing "target" (the row has "input")'),
        (BINARY, {"target": 1.5}, '"target" is 1.5, outside [0, 1]; --target_range LOW HIGH sets another range'),
        (
            BINARY,
            {"target": "maybe"},
            '"maybe" is no label; --labels has no, yes; write a label\'s name, or a number (1 for',
        ),
        (BINARY, {"target": math.nan}, '"target" is nan'),
        (BINARY, {"target": None}, "must be a number in [0, 1], not null: write a number, or take the row out"),
        (BINARY, {"target": [1]}, "must be a number in [0, 1], not [1]"),
        (
            MOODS,
            {"target": "goood"},
            'is no label; did you mean "good"?; --labels has bad, so-so, good, numbered 0 to 2',
        ),
        (MOODS, {"target": 3}, "3 is no label"),
        (MOODS, {"target": [0.5, 0.6, 0.1]}, "shares are not negative and sum to 1"),
        (TAGS, {"target": "red"}, "must be a list of labels"),
        (
            Targets("multilabel", ("a", "b")),
            {"target": [0, 1]},
            "[0, 1] may be two labels by their numbers, or a number for",
        ),
        (Targets("multilabel", ("0", "1")), {"target": [1, 0]}, "[1, 0] may be two labels"),
        (Targets(labels=("1", "0")), {"target": 0.5}, "0.5 is no label; --labels has 1, 0"),
        (MOODS, {"target": True}, "true is no label"),
        (RATINGS, {"target": 0}, "0 is no label; --labels has 1, 2, 3, 4, 5"),
        (Targets("multiclass", ("bad", "2")), {"target": 1}, "1 is no label"),
        (BINARY, {"target": 10**400}, '"target" is 1000'),
        (Targets("regression"), {"target": 10**400}, "must be a number: take the row out"),
        (Targets("regression"), {"target": 1e39}, "is 1e+39, more than a model's numbers (fp32) hold"),
    ],
)
def test_bad_targets(targets, row, message):
    assert message in targets.problem_of(row)


@given(st.floats(0, 1), st.floats(-100, 100), st.floats(0.1, 100))
def test_predictions_go_back_to_the_range(share, low, width):
    targets = Targets(low=low, high=low + width)
    prediction = targets.prediction([1 - share, share])
    assert prediction == pytest.approx(low + width * share)
    assert targets.from_prediction(prediction) == pytest.approx([1 - share, share], abs=1e-8)


@pytest.mark.parametrize("targets", [MOODS, TAGS])
@pytest.mark.parametrize("value", [[1.5, -0.25, -0.25], [2.0, 0.1, 0.3]])
def test_predictions_that_are_no_probabilities(targets, value):
    with pytest.raises(ValueError, match=r"probabilities lie in \[0, 1\]; are these logits"):
        targets.from_prediction(value)
    assert targets.from_prediction([1.0000001, 0, 0]) == [1.0000001, 0, 0]


@pytest.mark.parametrize(
    ("targets", "text", "value"),
    [
        (BINARY, "0.50", 0.5),
        (BINARY, "yes", 1),
        (RATINGS, "2", "2"),
        (MOODS, "2", "good"),
        (MOODS, "Bad", "bad"),
        (MOODS, 2, "good"),
        (BINARY, 1, 1),
    ],
)
def test_targets_become_what_means_the_same_in_any_data_set(targets, text, value):
    assert replace(targets, from_text=True).typed({"input": "a", "target": text}) == {"input": "a", "target": value}


def test_the_files_of_many_classes_keep_the_likeliest(tmp_path):
    labels = tuple(f"c{number}" for number in range(MOST_LISTED + 1))
    targets = Targets("multiclass", labels)
    shares = np.random.default_rng(0).exponential(size=(3, len(labels))) ** 3
    shares /= shares.sum(axis=1, keepdims=True)
    write_scores(tmp_path / "p.json", [{"input": "a"}] * 3, shares, targets)
    record = json.loads((tmp_path / "p.json").read_text())[0]
    assert len(record["pred_score"]) == NUM_LISTED
    assert record["pred_label"] == next(iter(record["pred_score"])) == labels[shares[0].argmax()]
    back = read_scores(tmp_path / "p.json", targets).vectors
    assert back.sum(axis=1) == pytest.approx(np.ones(3))
    assert (back.argsort()[:, -NUM_LISTED:] == shares.argsort()[:, -NUM_LISTED:]).all()
    assert sum(targets.vector(targets.target(record["pred_score"]))) == pytest.approx(1)
    few = Targets("multiclass", labels[:3])
    write_scores(tmp_path / "q.json", [{"input": "a"}], np.array([[0.2, 0.5, 0.3]]), few)
    assert json.loads((tmp_path / "q.json").read_text())[0]["pred_score"] == [0.2, 0.5, 0.3]


NLI = ("entailment", "neutral", "contradiction")
CLASSES = class_names([{"target": number, "target_name": name} for number, name in enumerate(NLI)])


@pytest.mark.parametrize(
    ("labels", "places"),
    [
        (NLI, [0, 1, 2]),
        (("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), [2, 1, 0]),
        (("neutral", "entailment", "other", "contradiction"), [1, 0, 3]),
        (("yes", "maybe", "no"), [0, 1, 2]),
    ],
)
def test_a_class_is_the_label_of_its_name_whatever_the_order(labels, places):
    targets = Targets("multiclass", labels, names=CLASSES)
    assert [targets.vector(number).index(1) for number in range(3)] == places
    assert [targets.typed({"target": number})["target"] for number in range(3)] == [labels[place] for place in places]
    assert (CLASSES.note(labels) is None) == (labels[0] != "yes")


def test_two_classes_are_mapped_by_name_with_their_shares():
    names = class_names(
        [{"target": "1", "target_name": "entailment"}, {"target": "0", "target_name": "not_entailment"}]
    )
    there, back = (Targets(labels=labels, names=names) for labels in (names.names, names.names[::-1]))
    assert there.vector(1) == back.vector(0) == [0, 1]
    assert there.vector(0.25) == back.vector(0.75) == [0.75, 0.25]
    assert back.typed({"target": 1, "target_name": "entailment"}) == {"target": 0}
    only_one = class_names([{"target": 1, "target_name": "entailment"}])
    assert Targets(labels=("entailment", "not_entailment"), names=only_one).vector(1) == [1, 0]


def test_classes_that_are_numbers_keep_them():
    stars = class_names([{"target": number, "target_name": str(number)} for number in (1, 2, 4, 3, 5)])
    words = ("awful", "bad", "so-so", "good", "great")
    assert Targets("multiclass", words, names=stars).vector(5) == [0, 0, 0, 0, 1]
    assert Targets("multiclass", ("5", "4", "3", "2", "1"), names=stars).vector(5) == [1, 0, 0, 0, 0]
    some = class_names([{"target": number, "target_name": str(number)} for number in (1, 2, 4)])
    told = Targets("multiclass", words, names=some).problem_of({"target": 1, "target_name": "1"})
    assert "the data's 3 classes (1, 2, 4) cannot be read in the order of the 5 labels" in (told or "")


def test_class_names_that_contradict_each_other_or_the_labels():
    for rows, told in (
        ([{"target": 0, "target_name": "a"}, {"target": 0, "target_name": "b"}], "0 is called 'a' in one row and 'b'"),
        ([{"target": 0, "target_name": "a"}, {"target": 1, "target_name": "a"}], "two values of .* are called 'a'"),
    ):
        with pytest.raises(DataError, match=told):
            class_names(rows)
    assert not class_names([{"target": 0}, {"target": 0, "target_name": "a"}])
    for names, row, told in (
        (CLASSES, {"target": 0, "target_name": "neutral"}, "'neutral' beside the \"target\" 0, which is 'entailment'"),
        (NO_NAMES, {"target": 0, "target_name": "neutral"}, "the first row of the data has none"),
    ):
        assert told in (Targets("multiclass", NLI, names=names).problem_of(row) or "")
    partly = Targets("multiclass", ("entailment", "neutral", "contra"), names=CLASSES)
    assert "of which contradiction is no label" in (partly.problem_of({"target": 0, "target_name": NLI[0]}) or "")
    assert "3 classes (entailment" in (Targets(names=CLASSES).problem_of({"target": 0}) or "")


def test_predictions_are_shares_whatever_the_labels_are_called():
    targets = Targets(labels=("1", "0"))
    assert targets.from_prediction(1) == [0, 1]
    assert targets.vector(targets.target(0.25)) == [0.75, 0.25]


def test_pairs_and_their_problems():
    texts = Texts()
    assert texts.of({"input": "a"}) == ("a", None)
    assert texts.of({"input": "a", "input_pair": "b"}) == ("a", "b")
    assert texts.of({"sentence1": "a", "sentence2": "b"}) == ("a", "b")
    assert joined("a", "b") == "sentence1: a sentence2: b"
    assert 'missing "input" (or "sentence1"); the row has "text"' in texts.problem_of({"text": "a"})
    assert '"input" must be a text, not 3' in texts.problem_of({"input": 3})
    assert "surrogate" in texts.problem_of({"input": "\ud800"})


def test_the_second_text_of_a_pair_is_never_dropped():
    for row, told in (
        ({"sentence1": "a", "input_pair": "b"}, '"input_pair" is the partner of "input".*; call it "sentence2"'),
        ({"input": "a", "sentence2": "b"}, '"sentence2" is the partner of "sentence1".*; call it "input_pair"'),
    ):
        assert re.search(told, Texts().problem_of(row) or "")
    for row in ({"input": "a", "input_pair": "b", "sentence2": "c"}, {"sentence1": "a", "input_pair": ""}):
        assert Texts().problem_of(row) is None


def test_templates_are_checked_both_ways(tmp_path):
    template = read_template("article: {input}\\noutput:")
    texts = Texts(template)
    assert texts.of({"input": "{x}"}) == ("article: {x}\noutput:", None)
    assert 'missing "input", which the template uses' in texts.problem_of({"text": "a"})
    assert '"input_pair" is not used by the template' in texts.problem_of({"input": "a", "input_pair": "b"})
    (tmp_path / "template.txt").write_text("{a} and {b} {{}}\n")
    assert Texts(read_template(str(tmp_path / "template.txt"))).of({"a": 1, "b": 0.5}) == ("1 and 0.5 {}", None)
    for bad in ("nothing here", "x" * 300, "{", "{0}", "{a.b}", "{a!r}", "{}"):
        with pytest.raises(ConfigError, match="--template"):
            read_template(bad)


def test_errors_name_file_row_and_what_to_do(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/d.json").write_text(
        json.dumps({"train": [{"input": "a", "target": 1}, {"input": "b", "target": 7}]})
    )
    with pytest.raises(DataError, match=r'd\.json: train\[1\]: "target" is 7, outside \[0, 1\]'):
        load_examples(find_source("d", tmp_path), ScoredRows(Texts(), BINARY), tmp_path / "cache")
    (tmp_path / "data/t.csv").write_text("input,target\na,0.5\nb,1\n")
    source = find_source("t", tmp_path)
    assert source.is_untyped
    rows = load_examples(source, ScoredRows(Texts(), Targets(from_text=True)), tmp_path / "cache").train
    assert [row["target"] for row in rows] == ["0.5", "1"]


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 40))
def test_the_longer_text_of_a_pair_is_cut(first, second, room):
    a, b = shares(first, second, room)
    assert a <= first
    assert b <= second
    assert a + b == min(room, first + second)
    assert abs(a - b) <= 1 or a == first or b == second


def test_pairs_become_one_framed_sequence(bert_like):
    from workflow.models.load import load_tokenizer

    tokenizer = load_tokenizer(str(bert_like), for_scores=True)
    rows = [{"input": "red one two"}, {"input": "red", "input_pair": "one two three left right"}]
    whole = ScoreEncoder(tokenizer, Texts(), 32, "end", ends_in_eos=False, has_types=True).encode(rows)
    for row, ids, types in zip(rows, whole[INPUT].ids, whole[TOKEN_TYPES].ids, strict=True):
        expected = tokenizer(row["input"], row.get("input_pair"))
        assert ids == expected["input_ids"]
        assert types == expected["token_type_ids"]
    cut = ScoreEncoder(tokenizer, Texts(), 7, "end", ends_in_eos=False, has_types=True).encode(rows)[INPUT]
    assert [len(ids) for ids in cut.ids] == [5, 7]
    assert cut.full_lengths == [5, 9]
    assert cut.ids[1][-4:] == whole[INPUT].ids[1][-4:]  # the end of the pair stays
    least = ScoreEncoder(tokenizer, Texts(), 1, "end", ends_in_eos=False, has_types=True).encode(rows)[INPUT]
    assert [len(ids) for ids in least.ids] == [2, 3]  # what frames the texts
    assert least.full_lengths == [5, 9]


def test_a_long_input_keeps_its_cue(vocabulary):
    row = {"input": "reverse " + "red " * 50 + "left right"}
    encoder = ScoreEncoder(vocabulary, Texts(), 8, "end", ends_in_eos=True)
    cut = encoder.encode([row])[INPUT]
    whole = vocabulary(row["input"])["input_ids"]
    assert cut.ids[0] == whole[-8:]
    assert cut.full_lengths == [len(whole)]


def test_a_tokenizers_own_truncation_and_padding_do_nothing(bert_like, tmp_path):
    from workflow.models.load import load_tokenizer

    plain = load_tokenizer(str(bert_like), for_scores=True)
    plain.save_pretrained(tmp_path)
    backend = plain.backend_tokenizer
    backend.enable_truncation(8)
    backend.enable_padding(length=20)
    backend.save(str(tmp_path / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    rows = [{"input": "red"}, {"input": "one two three " * 5, "input_pair": "left"}]
    encoded = [
        ScoreEncoder(tokenizer, Texts(), 32, "end", ends_in_eos=False).encode(rows)[INPUT]
        for tokenizer in (plain, load_tokenizer(str(tmp_path), for_scores=True))
    ]
    assert encoded[0] == encoded[1]


def test_real_tokenizers_agree_with_their_own_pairs(tmp_path):
    from workflow.models.load import load_tokenizer

    tokenizer = load_tokenizer(str(shared("bert-tokenizer")), for_scores=True)
    pair = {"sentence1": "A man is playing a large flute.", "sentence2": "A man is playing a flute."}
    encoder = ScoreEncoder(tokenizer, Texts(), 512, "end", ends_in_eos=False)
    assert encoder.encode([pair])[INPUT].ids == [tokenizer(*pair.values())["input_ids"]]


def test_scoring_files(tmp_path):
    scoring = Scoring("binary", ("no", "yes"), 0, 5, "x {input}", 77, "start")
    file = tmp_path / "scoring.json"
    assert read_scoring(file) is None
    file.write_text(json.dumps(scoring.as_json()))
    assert read_scoring(file) == scoring
    assert scoring.differences(Scoring("binary", ("no", "yes"), 0, 5, None, 77, "start")) == [
        'template: "x {input}", not null'
    ]
    for bad in (
        "[]",
        "{",
        "null",
        json.dumps({**scoring.as_json(), "low": "a"}),
        json.dumps({**scoring.as_json(), "odd": 1}),
    ):
        file.write_text(bad)
        with pytest.raises(ModelError, match=r"scoring\.json"):
            read_scoring(file)
