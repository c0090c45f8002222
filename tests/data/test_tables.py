"""Tables and JSON that could be read in two ways: each is refused by name, or read in one way that is told."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflow.config.cascade import read_settings_file
from workflow.data import json_stream
from workflow.data.checks import check
from workflow.data.examples import SEQ2SEQ, load_examples
from workflow.data.sources import find_source
from workflow.data.tables import table_rows
from workflow.errors import ConfigError, DataError, TemplateError
from workflow.jobs.template import Template


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def rows_of(path):
    return [(split, row) for split, _, row in find_source(str(path), path.parent).rows()]


ROW = '{"prompt": "a", "completion": "b"}'


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", "prompt,completion,prompt\na,b,c", 'line 1: the column "prompt" stands twice'),
        ("a.tsv", "prompt\tcompletion\tcompletion\na\tb\tc", 'line 1: the column "completion" stands twice'),
        ("a.csv", "prompt,completion,,\na,b,,", "2 columns have no name"),
        (
            "a.jsonl",
            f'{ROW}\n{{"prompt": "a", "prompt": "b"}}',
            'line 2: not valid JSON: the key "prompt" stands twice',
        ),
        ("a.jsonl", '{"prompt": "a", "x": [{"k": 1, "k": 2}]}', 'line 1: not valid JSON: the key "k" stands twice'),
        ("a.json", '[{"prompt": "a", "completion": "", "prompt": "b"}]', r'row\[0\]: the key "prompt" stands twice'),
        ("a.json", f'{{"train": [{ROW}, {{"a": 1, "a": 2}}]}}', r'train\[1\]: the key "a" stands twice'),
        ("a.json", f'{ROW}\n{{"a": 1, "a": 2}}', r'row\[1\]: the key "a" stands twice'),
        (
            "a.tsv",
            "prompt\tcompletion\na\tb\tc\nd\te",
            "line 2: too many columns: 3, and the header has 2; is a tab or",
        ),
        ("a.tsv", "prompt\tcompletion\tn\na\tb\t1\nd\te", "line 3: too few columns: 2, and the header has 3"),
        (
            "a.tsv",
            'prompt\tcompletion\n"a\tb\nc"\td\ne\tf',
            "lines 2 to 3 are one row if their quotes are quoting, and 2",
        ),
        (
            "a.csv",
            'prompt,completion\n"a" b,c',
            "after line 1: cannot be read as csv: .*; --quoting none reads quotes as",
        ),
        ("a.jsonl", f"{ROW},\n{ROW},\n", "line 1: not valid JSON: .*; JSON Lines have no commas between rows"),
        ("a.json", f"{ROW},\n{ROW},\n", r"line 1 column 35: not valid JSON: row\[0\]: ',' after the object"),
        (
            "a.json",
            '{"prompt": {"0": "a"}, "completion": {"0": "b"}}',
            r'holds columns \("prompt", ...\), as data frames',
        ),
        ("a.json", f'{{"version": "1", "data": [{ROW}]}}', 'unknown split "version"; the rows seem to stand in "data"'),
        ("a.json", '{"trian": []}', 'unknown split "trian"; did you mean "train"'),
        ("a.json", '{"prompt": "a", "x": [1]}', 'unknown split "prompt"'),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(tmp_path, name, text, expected):
    path = written(tmp_path / name, text)
    with pytest.raises(DataError, match=expected) as caught:
        rows_of(path)
    assert name in str(caught.value)


def test_a_doubled_column_of_parquet_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match='the column "prompt" stands twice'):
        rows_of(tmp_path / "a.parquet")


def test_a_doubled_key_is_told_without_reading_on(tmp_path, monkeypatch):
    """A wrong row early in a large file must not be waited for until the end."""
    monkeypatch.setattr(json_stream, "CHUNK", 64)
    path = written(tmp_path / "a.json", '[{"a": 1, "a": 2}' + f", {ROW}" * 1000 + "]")
    with pytest.raises(DataError, match="stands twice"), path.open() as file:
        reader = json_stream._Reader(path, file)
        try:
            list(json_stream._rows(reader, None))
        finally:
            assert file.tell() < 1000


@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_a_doubled_key_of_a_settings_file_is_refused(tmp_path, name):
    texts = {
        "a.yaml": ["lr: 1\nlr: 2\n", "optim:\n  lr: 1\n  lr: 2\n", "a: [{b: 1, b: 2}]\n"],
        "a.json": ['{"lr": 1, "lr": 2}', '{"optim": {"lr": 1, "lr": 2}}', '{"a": [{"b": 1, "b": 2}]}'],
    }
    for text in texts[name]:
        with pytest.raises(ConfigError, match=f"{name}: not a valid settings file"):
            read_settings_file(written(tmp_path / name, text))


def test_merged_keys_of_yaml_may_be_given_anew(tmp_path):
    text = "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n"
    assert read_settings_file(written(tmp_path / "a.yaml", text))["b"] == {"x": 3, "y": 2}


def test_a_doubled_key_of_a_manifest_s_template_is_refused(tmp_path):
    path = written(tmp_path / "job.yaml", "kind: Job\nspec:\n  a: 1\n  a: 2\n")
    with pytest.raises(TemplateError, match='the key "a" stands twice'):
        Template.read(path).fill(None)


# ---- quotes of TSV


def test_quotes_that_do_not_parse_are_texts(tmp_path):
    path = written(tmp_path / "a.tsv", 'prompt\tcompletion\n"a" said he\tb\n"c\t5"\n')
    source = find_source(str(path), tmp_path)
    assert [row for *_, row in source.rows()] == [
        {"prompt": '"a" said he', "completion": "b"},
        {"prompt": '"c', "completion": '5"'},
    ]
    assert source.notes == (
        f"{path}: its quotes do not parse as quoting, so that they are read as texts (--quoting none)",
    )
    examples = load_examples(source, SEQ2SEQ, tmp_path / "cache")
    assert source.notes[0] in check(examples).warnings()


def test_quoted_texts_of_tsv_stay_whole(tmp_path):
    """As data frames write them: tabs, line breaks and quotes inside."""
    path = written(tmp_path / "a.tsv", 'prompt\tcompletion\n"a\tb"\t"he said ""c"""\n"two\nlines"\tx\n')
    source = find_source(str(path), tmp_path)
    assert [tuple(row.values()) for *_, row in source.rows()] == [("a\tb", 'he said "c"'), ("two\nlines", "x")]
    assert source.notes == ()


def test_quoting_that_is_said(tmp_path):
    path = written(tmp_path / "a.tsv", 'prompt\tcompletion\n"a\tb\nc"\td\n')
    assert [tuple(row.values()) for row in table_rows(path, "none")] == [('"a', "b"), ('c"', "d")]
    assert [tuple(row.values()) for row in table_rows(path, "quoted")] == [("a\tb\nc", "d")]
    hashes = {find_source(str(path), tmp_path, quoting).data_hash for quoting in ("none", "quoted")}
    assert len(hashes) == 2


# ---- JSON Lines in .json, names of splits


def test_json_lines_named_json_are_read(tmp_path):
    rows = [{"prompt": f"p{n}", "completion": "c", "deep": {"x": [n]}} for n in range(3)]
    path = written(tmp_path / "a.json", "\n".join(json.dumps({**row, "split": "dev"}) for row in rows) + "\n")
    assert rows_of(path) == [("eval", {**row, "split": "dev"}) for row in rows]
    assert rows_of(written(tmp_path / "one.json", ROW)) == [("train", json.loads(ROW))]


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_json_lines_do_not_depend_on_the_window(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    path = written(tmp_path / "a.json", f"{ROW}\n{ROW}\n")
    assert [row for _, row in json_stream.stream_splits(path)] == [json.loads(ROW)] * 2


@pytest.mark.parametrize("name", ["validation", "test", "dev", "val", "valid"])
def test_other_names_of_eval_rows_are_keys_too(tmp_path, name):
    path = written(tmp_path / "a.json", f'{{"train": [{ROW}], "{name}": [{ROW}]}}')
    assert [split for split, _ in rows_of(path)] == ["train", "eval"]


def table(kind, path, names):
    """Rows of these splits, in one file or a folder of them."""
    rows = [{"prompt": name, "completion": "c", "split": name} for name in names]
    if kind == "folder":
        for row in rows:
            written(path / f"{row['split']}.jsonl", json.dumps({**row, "split": None}))
        return path
    path = path.with_name(f"{path.name}.{kind}")
    texts = {
        "json": lambda: json.dumps({row["split"]: [row] for row in rows}),
        "jsonl": lambda: "\n".join(map(json.dumps, rows)),
        "csv": lambda: "prompt,completion,split\n" + "\n".join(",".join(row.values()) for row in rows),
        "tsv": lambda: "prompt\tcompletion\tsplit\n" + "\n".join("\t".join(row.values()) for row in rows),
    }
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    return written(path, texts[kind]())


KINDS = ["folder", "json", "jsonl", "csv", "tsv", "parquet"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [("train", "validation", "test"), ("test", "train", "dev")])
def test_test_rows_beside_others_are_not_evaluated_on_and_that_is_told(tmp_path, kind, names):
    path = table(kind, tmp_path / "set", names)
    source = find_source(str(path), tmp_path)
    kept = names[1] if names[0] == "train" else names[2]
    assert {row["prompt"]: split for split, _, row in source.rows()} == {"train": "train", kept: "eval"}
    (note,) = source.notes
    assert "test" in note
    assert f"is not read, since {kept}" in note
    assert note in check(load_examples(source, SEQ2SEQ, tmp_path / "cache")).warnings()
    if kind != "folder":  # what scores a whole file scores these, too
        assert len(list(source.rows(everything=True))) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_two_names_of_eval_rows_are_refused(tmp_path, kind):
    path = table(kind, tmp_path / "set", ("train", "dev", "validation"))
    with pytest.raises(DataError, match="dev and validation would all be eval rows; keep one"):
        rows_of(path)


@pytest.mark.parametrize("name", ["test", "validation"])
def test_test_rows_alone_are_eval_rows(tmp_path, name):
    source = find_source(str(table("json", tmp_path / "set", ("train", name))), tmp_path)
    assert [split for split, *_ in source.rows()] == ["train", "eval"]
    assert source.notes == ()


def test_rows_that_contradict_their_file_s_name_are_refused(tmp_path):
    written(tmp_path / "set/train.jsonl", json.dumps({"prompt": "a", "completion": "b", "split": "test"}))
    with pytest.raises(DataError, match='holds "test" rows, but its name says train'):
        rows_of(tmp_path / "set")
    written(tmp_path / "set/train.jsonl", json.dumps({"prompt": "a", "completion": "b", "split": "fold 3"}))
    assert len(rows_of(tmp_path / "set")) == 1


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet"])
def test_git_lfs_pointers_are_named(tmp_path, name):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
    with pytest.raises(DataError, match=rf"{name}: is a Git LFS pointer, not the file itself; `git lfs pull`"):
        find_source(str(written(tmp_path / name, pointer)), tmp_path)
