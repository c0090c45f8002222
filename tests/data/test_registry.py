"""The registry of data sets: its file, its rows, its classes, and the data files made of them."""

import json

import pytest

from workflow.data.made_files import hash_of, hash_of_file, make, write_once
from workflow.data.registry import read_registry
from workflow.data.registry_rows import IPA, survey
from workflow.data.sources import find_source
from workflow.errors import ConfigError, DataError

ENTRY = {
    "dataset": "set",
    "train_features": ["text"],
    "eval_feature": "label",
    "splits": ["train", "validation"],
    "task_type": "classification",
    "classes": 3,
}
TEXTS = [{"text": f"text {n}", "label": n % 3, "text-phoneme": f"tɛkst {n}"} for n in range(9)]


def registry_of(folder, entries, text=None):
    path = folder / "language-database.json"
    path.write_text(text or json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return read_registry(path)


def entry_of(folder, **changes):
    return registry_of(folder, {"english": {"topic": {"set": {**ENTRY, **changes}}}}).entries[0]


@pytest.fixture
def data(tmp_path):
    """Writes the splits of `set/` as JSON lines, and gives the entry for them."""

    def make_data(train=TEXTS, validation=TEXTS[:4], **changes):
        for name, rows in (("train", train), ("validation", validation)):
            path = tmp_path / "set" / f"{name}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return entry_of(tmp_path, **changes)

    return make_data


# The file.


def test_comments_and_ends_left_out(tmp_path):
    other = {**ENTRY, "dataset": "hf:some/set@en"}
    topics = json.dumps({"a": ENTRY, "b": other}), json.dumps({"a": ENTRY})
    text = f'// languages\n{{"english": {{"topic": {topics[0]}}}, // two\n"español": {{"topic": {topics[1]}}},}}'
    registry = registry_of(tmp_path, None, text)
    assert registry.languages == ("english", "español")
    assert registry.find("english/topic/b").dataset == "hf:some/set@en"
    assert registry.find("español/topic").key == registry.find("español").key == "español/topic/a"
    assert registry.find("b").key == "english/topic/b"
    with pytest.raises(ConfigError, match="english/topic may mean english/topic/a, english/topic/b; write out"):
        registry.find("english/topic")
    with pytest.raises(ConfigError, match=r"no task 'topics' in english; did you mean \"topic\"\?"):
        registry.find("english/topics/a")
    with pytest.raises(ConfigError, match=r"no name 'c' in english/topic \(there are a, b\)"):
        registry.find("english/topic/c")
    with pytest.raises(ConfigError, match=r"no data set 'espanol'; did you mean \"español\""):
        registry.find("espanol")


def test_all_problems_at_once(tmp_path):
    wrong = {
        "dataset": "set",
        "train_feature": ["text"],
        "splits": ["train", "train"],
        "task_type": "clasification",
        "classes": "3",
        "labels": ["a", "a"],
        "keep": ["input"],
    }
    with pytest.raises(ConfigError) as error:
        registry_of(tmp_path, {"english": {"topic": {"set": wrong, "other": 3}, "empty": []}})
    told = str(error.value)
    for part in (
        'english/topic/set: unknown key "train_feature"; did you mean "train_features"?',
        '"train_features" is missing',
        '"eval_feature" is missing',
        '"splits" names two different splits',
        '"task_type" is "clasification"; expected "classification" or "regression"',
        '"classes" is "3"; expected a whole number',
        '"labels" names one twice',
        '"keep" names "input", which made rows have already',
        "english/topic/other: is 3; expected an object",
        "english/empty: is []; expected an object",
    ):
        assert part in told


def test_an_empty_registry_is_told(tmp_path):
    with pytest.raises(ConfigError, match="holds no data sets"):
        registry_of(tmp_path, {})


def test_nothing_is_opened_before_it_is_asked_for(tmp_path):
    entry = entry_of(tmp_path, dataset="not/there")
    with pytest.raises(DataError, match=r"english/topic/set: no file or folder .*not/there.*hf:NAME"):
        survey(entry)


# The rows.


def rows_of(entry, split="train", **more):
    return list(make([survey(entry, **more)], [survey(entry, **more)], more.get("model_type", "normal")).rows(split))


def test_one_feature_two_and_more(data):
    rows = [{"a": "A", "b": "B", "c": 3, "label": n, "id": 7} for n in range(3)]
    one = data(rows, rows, train_features="a", keep=["id"])
    assert rows_of(one)[1] == {"input": "A", "target": 1, "language": "english", "id": 7}
    assert rows_of(data(rows, rows, train_features=["a", "b"]))[0] == {
        "input": "A",
        "input_pair": "B",
        "target": 0,
        "language": "english",
    }
    assert rows_of(data(rows, rows, train_features=["a", "b", "c"]))[0]["input"] == "A | B | 3"
    assert rows_of(data(rows, rows, train_features=["c", "b", "a"], separator=" ; "))[0]["input"] == "3 ; B ; A"


def test_labels_become_classes(data):
    words = [{"text": "t", "label": label} for label in ("neutral", "bad", "good", "bad")]
    found = survey(data(words, words[:1]))
    assert found.labels == ("bad", "good", "neutral")
    assert [row["target"] for row in rows_of(data(words, words))] == [2, 0, 1, 0]
    named = data(words, words, labels=["bad", "neutral", "good"])
    assert [row["target"] for row in rows_of(named)] == [1, 0, 2, 0]
    stars = [{"text": "t", "label": label} for label in ("10", 9.0, " 2 ", True)]
    assert survey(data(stars, stars, classes=4)).labels == ("1", "2", "9", "10")
    two = [{"text": "t", "label": label} for label in ("no", "yes")]
    assert survey(data(two, two, classes=2)).entry.problem == "binary"
    assert [row["target"] for row in rows_of(data(two, two, classes=2))] == [0, 1]


def test_more_and_fewer_classes_than_declared(data):
    with pytest.raises(
        DataError,
        match=r"declares 2 classes, and the data has 3: '0' first at .*train\[0\]; '1' first at .*train\[1\]; '2' first .*; correct \"classes\" or",
    ):
        survey(data(classes=2))
    with pytest.raises(
        DataError, match=r"declares 4 classes, and the data has 3: .*; correct \"classes\", or name all \"labels\""
    ):
        survey(data(classes=4))
    found = survey(data(TEXTS, TEXTS[:2]))
    assert found.notes() == ["set validation: no rows of class 2, which train has or the registry names"]
    with pytest.raises(DataError, match=r"\"label\" is '2'; \"labels\" has 0, 1, two"):
        survey(data(labels=["0", "1", "two"]))


def test_numbers(data):
    rows = [{"text": "t", "label": label} for label in ("4.5", 2, 0.25)]
    found = survey(data(rows, rows, task_type="regression", classes=1))
    assert (found.splits[0].low, found.splits[0].high, found.labels) == (0.25, 4.5, ())
    assert [row["target"] for row in rows_of(data(rows, rows, task_type="regression", classes=1))] == [4.5, 2.0, 0.25]
    bad = [*rows, {"text": "t", "label": "nan"}]
    with pytest.raises(DataError, match=r"train\[3\]: \"label\" is 'nan', not a number"):
        survey(data(bad, rows, task_type="regression", classes=1))


def test_every_problem_of_rows_names_its_place(data):
    rows = [
        *TEXTS,
        {"txt": "a", "label": 0},
        {"text": "b"},
        {"text": ["c"], "label": 1},
        {"text": "\ud800", "label": 1},
        {"text": "d", "label": 0.5},
    ]
    with pytest.raises(DataError) as error:
        survey(data(rows))
    told = str(error.value)
    for part in (
        'train[9]: no "text"; did you mean "txt"?',
        'train[10]: no label in "label"',
        'train[11]: "text" is a list, not a text',
        'train[12]: "text" holds half a surrogate pair',
        'train[13]: "label" is 0.5, neither a text nor a whole number',
    ):
        assert part in told
    with pytest.raises(DataError, match="validation: no rows"):
        survey(data(TEXTS, []))


def test_phonemes(data):
    assert rows_of(data(), model_type=IPA)[3] == {"input": "tɛkst 3", "target": 0, "language": "english"}
    assert survey(data()).splits[0].phonemes == 9
    lacking = [*TEXTS[:5], {key: value for key, value in TEXTS[5].items() if key != "text-phoneme"}]
    assert survey(data(lacking)).splits[0].phonemes == 5
    with pytest.raises(DataError, match=r'train\[5\]: no "text-phoneme".*add that column \(the text in phonemes\)'):
        survey(data(lacking), IPA)


def test_a_file_of_both_splits(tmp_path):
    (tmp_path / "set.json").write_text(json.dumps({"train": TEXTS, "eval": TEXTS[:3]}))
    assert len(rows_of(entry_of(tmp_path, dataset="set.json"), "eval")) == 3  # which we call eval is validation
    with pytest.raises(DataError, match=r"no rows of split 'dev2' \(there are train, eval\)"):
        survey(entry_of(tmp_path, dataset="set.json", splits=["train", "dev2"]))
    lines = [{**row, "split": "val" if number > 5 else "train"} for number, row in enumerate(TEXTS)]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert len(rows_of(entry_of(tmp_path, dataset="set.jsonl", splits=["train", "val"]))) == 6
    (tmp_path / "set.csv").write_text("text,label\na,0\nb,1\n")
    with pytest.raises(
        DataError, match="its rows say no split, and the registry names 'train'; give each row a \"split\""
    ):
        survey(entry_of(tmp_path, dataset="set.csv"))


def test_a_folder_without_the_split(tmp_path, data):
    with pytest.raises(DataError, match=r"no file of split 'valid'; did you mean \"validation\"\?"):
        survey(data(splits=["train", "valid"]))


def test_a_file_a_column(tmp_path):
    folder = tmp_path / "lines"
    folder.mkdir()
    for split, count in (("train", 6), ("val", 3)):
        (folder / f"{split}_text.txt").write_text("".join(f'"{n}\u2028 \n' for n in range(count)), encoding="utf-8")
        (folder / f"{split}_label.txt").write_text("".join(f"{n % 3}\n" for n in range(count)))
    entry = entry_of(tmp_path, dataset="lines:lines", splits=["train", "val"])
    assert [row["input"] for row in rows_of(entry, "eval")] == ['"0\u2028 ', '"1\u2028 ', '"2\u2028 ']
    with pytest.raises(DataError, match=r"train_text-phoneme.txt: no such file; add that column"):
        survey(entry, IPA)
    (folder / "val_label.txt").write_text("0\n1\n")
    with pytest.raises(DataError, match=r"split val have unlike numbers of lines: val_text.txt 3, val_label.txt 2"):
        survey(entry)


def test_a_hub_data_set(tmp_path, data):
    data()
    entry = entry_of(tmp_path, dataset=f"hf:{tmp_path / 'set'}")  # `datasets` reads folders too
    assert [row["target"] for row in rows_of(entry, "eval")] == [0, 1, 2, 0]
    with pytest.raises(DataError, match=r"split 'test' cannot be loaded with `datasets`"):
        survey(entry_of(tmp_path, dataset=f"hf:{tmp_path / 'set'}", splits=["train", "test"]))


def test_labels_of_minus_one_are_left_out_where_no_class_is_called_so(data):
    rows = [{"text": "t", "label": label} for label in (1, -1, 0, -1)]
    for labels in ({}, {"labels": ["0", "1"]}):
        found = survey(data(rows, rows[2:], classes=2, **labels))
        assert [(split.rows, split.unlabelled) for split in found.splits] == [(2, 2), (1, 1)]
        assert "2 rows without a label (-1) left out" in found.notes()[0]
        assert [row["target"] for row in make([found], [found]).rows("train")] == [1, 0]
    signs = [{"text": "t", "label": label} for label in (1, -1, 0)]
    assert survey(data(signs, signs, classes=3)).labels == ("-1", "0", "1")
    with pytest.raises(DataError, match=r"validation.*no row"):
        survey(data(rows, [rows[1]], classes=2))


def test_a_hub_sets_features_name_its_classes(tmp_path):
    import datasets

    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "so-so", "good"])}
    rows = {"text": ["a", "b", "c"], "label": [2, 0, 1]}
    for split in ("train", "validation"):
        file = tmp_path / "set" / f"{split}.parquet"
        file.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(file)
    made = rows_of(entry_of(tmp_path, dataset=f"hf:{tmp_path / 'set'}"))
    assert [(row["target"], row["target_name"]) for row in made] == [(2, "good"), (0, "bad"), (1, "so-so")]


# The files made of them.


def test_languages_are_joined(tmp_path, data):
    data()
    entries = {language: {"topic": {"set": ENTRY}} for language in ("english", "spanish")}
    first, second = map(survey, registry_of(tmp_path, entries).entries)
    made = make([first, second], [second])
    path = tmp_path / "mount" / "data" / "both.json"
    assert write_once(made, path)
    assert not write_once(made, path)
    assert hash_of_file(path) == hash_of(made)
    read = list(find_source("both", tmp_path / "mount").rows())
    assert [row["language"] for split, _, row in read if split == "train"] == ["english"] * 9 + ["spanish"] * 9
    assert [row["language"] for split, _, row in read if split == "eval"] == ["spanish"] * 4
    before = path.read_bytes()
    with pytest.raises(DataError, match="holds something else; --overwrite replaces it"):
        write_once(make([first], [first]), path)
    assert path.read_bytes() == before
    assert write_once(make([first], [first]), path, overwrite=True)
    assert list(path.parent.iterdir()) == [path]


def test_classes_keep_their_names_in_made_files(data):
    words = [{"text": "t", "label": label} for label in ("neutral", "bad", "good")]
    bad, neutral, good = ({"target": n, "target_name": name} for n, name in enumerate(("bad", "neutral", "good")))

    def classes_of(entry):
        return [{key: row[key] for key in row if key.startswith("target")} for row in rows_of(entry)]

    assert classes_of(data(words, words, labels=["bad", "neutral", "good"])) == [neutral, bad, good]
    # A number is a name where the names are numbers: five stars are 5, whatever the order of the classes.
    stars = [{"text": "t", "label": label} for label in (5, 1, 3)]
    assert [row["target"] for row in classes_of(data(stars, stars))] == [5, 1, 3]
    assert [row["target_name"] for row in classes_of(data(stars, stars, labels=["5", "3", "1"]))] == ["5", "1", "3"]
    three = [{"text": "t", "label": label} for label in (2, 0, 1)]
    assert classes_of(data(three, three, labels=["2", "1", "0"]))[0] == {"target": 2, "target_name": "2"}
    two = [{"text": "t", "label": label} for label in (1, 0)]
    assert classes_of(data(two, two, classes=2, labels=["1", "0"])) == [
        {"target": 0, "target_name": "1"},
        {"target": 1, "target_name": "0"},
    ]


def test_the_same_names_in_another_order_are_joined_by_name(tmp_path, data):
    words = [{"text": "t", "label": label} for label in ("a", "b", "c")]
    data(words, words)

    def joined(one, other):
        sets = {"english": {"topic": {"set": {**ENTRY, **one}}}, "spanish": {"topic": {"set": {**ENTRY, **other}}}}
        return make(list(map(survey, registry_of(tmp_path, sets).entries)), [])

    made = joined({"labels": ["a", "b", "c"]}, {"labels": ["c", "a", "b"]})
    assert [(row["target"], row["target_name"]) for row in made.rows("train")] == [(0, "a"), (1, "b"), (2, "c")] * 2
    rows = [{"text": "t", "label": label} for label in ("b", "c", "d")]
    (tmp_path / "other.json").write_text(json.dumps({"train": rows, "eval": rows}))
    other = {"dataset": "other.json", "splits": ["train", "eval"], "labels": ["b", "c", "d"]}
    with pytest.raises(DataError, match="labels are a, b, c and b, c, d; give both"):
        joined({"labels": ["a", "b", "c"]}, other)


def test_unlike_classes_are_not_joined(tmp_path, data):
    data()
    (tmp_path / "words.json").write_text(
        json.dumps({part: [{"text": "t", "label": label} for label in "abc"] for part in ("train", "eval")})
    )
    words = {**ENTRY, "dataset": "words.json", "splits": ["train", "eval"]}

    def joined(one, other):
        entries = {"english": {"topic": {"set": one}}, "spanish": {"topic": {"set": other}}}
        return make(list(map(survey, registry_of(tmp_path, entries).entries)), [])

    with pytest.raises(DataError, match='labels are 0, 1, 2 and a, b, c; give both "labels" in the registry'):
        joined(ENTRY, words)
    made = joined({**ENTRY, "labels": ["0", "1", "2"]}, {**words, "labels": ["c", "b", "a"]})
    assert [row["target"] for row in made.rows("train")][-3:] == [2, 1, 0]
    with pytest.raises(DataError, match="they have 3 classes and numbers"):
        joined(ENTRY, {**ENTRY, "task_type": "regression", "classes": 1})
