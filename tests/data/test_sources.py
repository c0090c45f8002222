"""Finding and reading data in every format, and the errors that name file, split, row and key."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import example_rows, write_data
from workflow.data import hub_dates, json_stream
from workflow.data.examples import SEQ2SEQ, load_examples
from workflow.data.sources import find_source
from workflow.errors import DataError


def load(name: str, mount: Path, tmp_path: Path):
    return load_examples(find_source(name, mount), SEQ2SEQ, tmp_path / "cache")


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".json":
        path.write_text(json.dumps({path.stem: rows}))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        path.write_text("\n".join([separator.join(rows[0]), *(separator.join(map(str, row.values())) for row in rows)]))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_a_folder_with_a_file_per_split(tmp_path, suffix):
    rows = example_rows(5)
    write_rows(tmp_path / "data/set" / f"train{suffix}", rows[:3])
    write_rows(tmp_path / "data/set" / f"{'eval' if suffix == '.json' else 'validation'}{suffix}", rows[3:])
    found = load("set", tmp_path, tmp_path)
    assert [row["prompt"] for row in found.train] == [row["prompt"] for row in rows[:3]]
    assert found.eval[1]["completion"] == rows[4]["completion"]
    assert str(found.eval[1]["id"]) == "4"  # extra keys survive; CSV knows texts only


def test_json_with_extra_keys_comes_back_whole(tmp_path):
    row = {"prompt": "ü\u2028\n", "completion": "", "nested": {"a": [1, None, 2.5]}, "flag": True}
    write_rows(tmp_path / "data/one.json", [row])
    (tmp_path / "data/one.json").write_text(json.dumps({"train": [row], "eval": [row, row]}))
    found = load("one", tmp_path, tmp_path)
    assert list(found.eval) == [row, row]
    assert list(found.train) == [row]


def test_a_split_column_divides_a_table(tmp_path):
    rows = [{**row, "split": "test" if row["id"] > 2 else "train"} for row in example_rows(5)]
    write_rows(tmp_path / "data/set.csv", rows)
    found = load("set", tmp_path, tmp_path)
    assert (len(found.train), len(found.eval)) == (3, 2)


def test_names_and_paths(tmp_path):
    path = write_data(tmp_path, "toy")
    assert find_source("toy", tmp_path).label == str(path)
    assert find_source(str(path), Path("elsewhere")).fingerprint == find_source("toy", tmp_path).fingerprint
    for name in ("../toy", "a/b", "toy\0", ".hidden"):
        with pytest.raises(DataError, match="no such file"):
            find_source(name, tmp_path)
    with pytest.raises(DataError, match='did you mean "toy"'):
        find_source("toi", tmp_path)
    write_rows(tmp_path / "data/toy.jsonl", example_rows(2))
    with pytest.raises(DataError, match="ambiguous"):
        find_source("toy", tmp_path)


def test_a_folder_and_a_file_in_it_are_not_confused_in_the_cache(tmp_path):
    write_rows(tmp_path / "data/only/test.jsonl", example_rows(5))
    folder, file = tmp_path / "data/only", tmp_path / "data/only/test.jsonl"
    for _ in range(2):
        sizes = [
            (len(found.train), len(found.eval)) for found in (load(f"{p}", tmp_path, tmp_path) for p in (folder, file))
        ]
        assert sizes == [(0, 5), (5, 0)]


def test_a_missing_file_is_never_looked_up_on_the_hub(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("went to the hub"))
    with pytest.raises(DataError, match="hf:NAME"):
        find_source("glue", tmp_path)


def test_hub_data_sets_through_datasets(tmp_path):
    rows = example_rows(4)
    write_rows(tmp_path / "set/train.jsonl", rows[:3])
    write_rows(tmp_path / "set/test.jsonl", rows[3:])
    found = load(f"hf:{tmp_path / 'set'}", tmp_path, tmp_path)
    assert [row["prompt"] for row in found.train] == [row["prompt"] for row in rows[:3]]
    assert found.eval[0]["completion"] == rows[3]["completion"]
    with pytest.raises(DataError, match="cannot be loaded"):
        find_source(f"hf:{tmp_path / 'none'}", tmp_path)


def test_brackets_of_a_path_are_letters_of_it(tmp_path):
    write_rows(tmp_path / "a[1]/train.jsonl", example_rows(2))
    for name in (tmp_path / "a[1]", tmp_path / "a[1]/train.jsonl"):
        assert len(list(find_source(str(name), tmp_path).rows())) == 2
    with pytest.raises(DataError, match="it takes the path for a pattern: leave out hf:"):
        find_source(f"hf:{tmp_path / 'a[1]'}", tmp_path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_dates_of_hub_data_sets_are_the_texts_of_their_files(tmp_path, suffix):
    """The reader of `datasets` makes timestamps of such texts, also of keys that nobody reads."""
    rows = [
        {"prompt": f"{day} May", "completion": f"2021-05-0{day}", "when": {"at": "2021-05-03T10:00"}} for day in (1, 2)
    ]
    (tmp_path / "set").mkdir()
    text = "\n".join(map(json.dumps, rows)) if suffix == ".jsonl" else json.dumps(rows)
    (tmp_path / "set" / f"train{suffix}").write_text(text)
    source = find_source(f"hf:{tmp_path / 'set'}", tmp_path)
    assert list(load_examples(source, SEQ2SEQ, tmp_path / "cache").train) == rows
    assert source.notes == ()


def test_dates_of_hub_data_sets_whose_files_are_elsewhere_are_told(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"prompt": "a", "completion": "2021-05-03"}\n')
    monkeypatch.setattr(hub_dates, "_files_here", lambda *_: ())
    source = find_source(f"hf:{tmp_path / 'set'}", tmp_path)
    assert 'train: `datasets` made dates of the texts of "completion"' in source.notes[0]
    with pytest.raises(
        DataError, match=r'train\[0\]: "completion" is a date \(2021-05-03 00:00:00\), which the reader'
    ):
        load_examples(source, SEQ2SEQ, tmp_path / "cache")


def test_a_date_of_parquet_is_named(tmp_path):
    write_rows(tmp_path / "data/a.parquet", [{"prompt": "a", "completion": datetime.date(2021, 5, 3)}])
    with pytest.raises(DataError, match=r'"completion" is a date \(2021-05-03\)'):
        load("a", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "file ends where an object"),
        ("{", "a split's name"),
        ('{"train": [{"prompt": "a"}]', "where a comma or }"),
        ('{"train": [{"prompt": "a", "completion": "b"},]}', r"line 1 column 47: not valid JSON: train\[1\]"),
        ('{"train": [{"prompt": "a" "completion": "b"}]}', r"train\[0\]: Expecting ',' delimiter"),
        ('{"train": [1]}', r"train\[0\]: a row is an object"),
        ('{"train": {}}', '"train" must be a list'),
        ('{"training": []}', 'unknown split "training"'),
        ('{"train": [], "train": []}', "stands twice"),
        ('{"train": []} x', "after the end"),
        (
            '{"train": [{"prompt": "a", "completion": "b", "x": NaN}]}',
            "NaN is not a JSON value; use null or, for a target, write a number",
        ),
        ('{"train": [{"prompt": "a"}]}', r'train\[0\]: missing "completion"'),
        ('{"train": [{"prompt": "a", "completion": 5}]}', r'train\[0\]: "completion" must be a text, not 5'),
        ('{"train": [{"prompt": "\\ud800", "completion": ""}]}', "half a surrogate pair"),
        ('{"train": [' + "[" * 100_000 + "]}", "nested too deeply|a row is an object"),
    ],
)
def test_malformed_json_is_named(tmp_path, text, expected):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/bad.json").write_text(text)
    with pytest.raises(DataError, match=expected) as caught:
        load("bad", tmp_path, tmp_path)
    assert "bad.json" in str(caught.value)
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True


def test_not_utf8(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/bad.json").write_bytes('{"train": [{"prompt": "ü", "completion": ""}]}'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load("bad", tmp_path, tmp_path)


def test_the_first_problems_are_listed(tmp_path):
    rows = [{"prompt": "a"}] * 30
    write_rows(tmp_path / "data/train.json", rows)
    with pytest.raises(DataError, match=r"first 10 problems:\n.*train\[0\]"):
        load("train", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt":', "line 2: not valid JSON"),
        ("a.jsonl", "[1]", "a row is an object"),
        ("a.csv", "prompt,completion\na", "too few columns"),
        ("a.csv", "prompt,completion\na,b,c", "too many columns"),
        ("a.csv", 'prompt,completion\n"a,b', "cannot be read as csv"),
        ("a.parquet", "no", "cannot be read as parquet"),
    ],
)
def test_malformed_tables(tmp_path, name, text, expected):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_text(text)
    with pytest.raises(DataError, match=expected):
        load("a", tmp_path, tmp_path)


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_the_stream_does_not_depend_on_its_window(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    rows = [
        {"prompt": 'ab\\"c ü', "completion": "x", "n": -12.5e3, "deep": [[1], {"k": None}]},
        {"prompt": "", "completion": "t" * 50},
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"train": rows, "eval": rows[:1]}, indent=2, ensure_ascii=False))
    assert list(json_stream.stream_splits(path)) == [("train", rows[0]), ("train", rows[1]), ("eval", rows[0])]


def test_line_numbers_count_over_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK", 16)
    path = tmp_path / "a.json"
    path.write_text('{"train": [\n' + '{"prompt": "a", "completion": "b"},\n' * 9 + '{"prompt": oops}\n]}')
    with pytest.raises(DataError, match=r"line 11 column 12: .*train\[9\]"):
        list(json_stream.stream_splits(path))


def test_the_cache_follows_the_content(tmp_path):
    write_data(tmp_path, "toy", train=3, evaluation=1)
    first = load("toy", tmp_path, tmp_path)
    write_data(tmp_path, "toy", train=4, evaluation=1)
    second = load("toy", tmp_path, tmp_path)
    assert (len(first.train), len(second.train)) == (3, 4)
    assert first.fingerprint != second.fingerprint
    assert len(load_examples(find_source("toy", tmp_path), SEQ2SEQ, tmp_path / "cache", limits={"train": 2}).train) == 2


def test_splits_are_never_guessed(tmp_path):
    """An unknown split would else be trained on; a file that contradicts its name would too."""
    write_rows(tmp_path / "data/a.jsonl", [{**row, "split": "evall"} for row in example_rows(2)])
    with pytest.raises(DataError, match="unknown split 'evall'; did you mean \"eval\""):
        load("a", tmp_path, tmp_path)
    (tmp_path / "data/b").mkdir()
    (tmp_path / "data/b/train.json").write_text(json.dumps({"train": [], "eval": example_rows(1)}))
    with pytest.raises(DataError, match='holds "eval" rows, but its name says train'):
        load("b", tmp_path, tmp_path)
    (tmp_path / "data/b/train.json").write_text(json.dumps(example_rows(3)))
    assert len(load("b", tmp_path, tmp_path).train) == 3


@pytest.mark.parametrize("value", ["NaN", '"\\ud83d"', "1e999"])
def test_extra_keys_that_no_prediction_file_could_hold(tmp_path, value):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jsonl").write_text('{"prompt": "a", "completion": "b", "extra": [' + value + "]}")
    with pytest.raises(DataError, match=r"train\[0\]: (an extra key holds half|cannot be written as JSON)"):
        load("a", tmp_path, tmp_path)


def test_missing_values_of_a_data_frame_are_null(tmp_path):
    write_rows(tmp_path / "data/a.parquet", [{"prompt": "a", "completion": "b", "extra": float("nan")}])
    assert load("a", tmp_path, tmp_path).train[0]["extra"] is None


def test_the_hash_of_hub_data_is_of_its_rows(tmp_path):
    for name in ("one", "two"):
        write_rows(tmp_path / name / "train.jsonl", example_rows(2, seed=len(name) + (name == "two")))
    one, two = (find_source(f"hf:{tmp_path / name}", tmp_path) for name in ("one", "two"))
    assert one.data_hash != two.data_hash
