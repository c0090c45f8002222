"""`workflow score`: what counts as the same scoring, what a kill leaves, and rows and models that cannot be scored."""

from __future__ import annotations

import json
import math
import shutil
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import score_rows
from workflow.data.scoring import Scoring
from workflow.data.sources import Source
from workflow.errors import ConfigError, DataError, ModelError
from workflow.evaluation.calibration import Calibration
from workflow.files import write_json
from workflow.models.classifier import load_classifier
from workflow.recipe import score_job
from workflow.recipe.score import _Job


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def score(command, scorer, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [{"input": row["input"]} for row in score_rows(10)])

    def run(*flags, data=rows, out=tmp_path / "out.jsonl", model=scorer):
        command("score", model, "--data", data, "--out", out, "--mount", tmp_path, "--shard_rows", 4, *flags)
        return [json.loads(line) for line in out.read_text().splitlines()]

    return run


def change_weights(scorer):
    file = scorer / "model.safetensors"
    weights = load_file(file)
    weights["classifier.bias"] += 1
    save_file(weights, file, metadata={"format": "pt"})


def change_config(scorer):
    file = scorer / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "layer_norm_eps": 0.1}))


def change_tokenizer(scorer):
    file = scorer / "tokenizer.json"
    values = json.loads(file.read_text())
    vocabulary = values["model"]["vocab"]
    red, green = (
        next(word for word in (colour, f"##{colour}", colour[:1]) if word in vocabulary) for colour in ("red", "green")
    )
    vocabulary[red], vocabulary[green] = vocabulary[green], vocabulary[red]
    file.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "named"), [(change_weights, "weights"), (change_config, "weights"), (change_tokenizer, "tokenizer")]
)
def test_a_changed_model_is_another_scoring(score, scorer, change, named):
    score()
    change(scorer)
    with pytest.raises(
        ConfigError, match=rf"exists, of another scoring \({named} differ\); choose another, or pass --over"
    ):
        score()
    assert score("--overwrite")


def test_another_tokenizer_is_another_scoring(score, scorer, tmp_path):
    other = shutil.copytree(scorer, tmp_path / "other")
    change_tokenizer(other)
    score()
    with pytest.raises(ConfigError, match=r"\(tokenizer differ\)"):
        score("--tokenizer", other)


def test_another_calibration_is_another_scoring(score, scorer):
    fitted = Calibration(
        "binary", "temperature", 40, temperature=2.0, thresholds=dict.fromkeys(("accuracy", "f1_macro", "mcc"), 0.5)
    )
    file = scorer / "calibration.json"
    file.write_text(json.dumps(fitted.as_json()))
    records = score("--calibrated")
    assert all(abs(record["pred_calibrated"] - 0.5) < abs(record["pred_score"] - 0.5) for record in records)
    file.write_text(json.dumps({**fitted.as_json(), "temperature": 3.0}))
    with pytest.raises(ConfigError, match=r"\(calibrated differ\)"):
        score("--calibrated")


def test_a_calibration_that_was_not_fitted_is_refused(score, scorer):
    thresholds = dict.fromkeys(("accuracy", "f1_macro", "mcc"), 0.5)
    unfit = Calibration("binary", "none", 5, reason="5 fitting rows; calibration needs 20", thresholds=thresholds)
    (scorer / "calibration.json").write_text(json.dumps(unfit.as_json()))
    with pytest.raises(ConfigError, match=r"nothing was fitted when .* was evaluated \(5 fitting rows"):
        score("--calibrated")


def test_the_size_of_shards_is_nothing_of_a_finished_file(score):
    assert score() == score("--shard_rows", 3)
    with pytest.raises(ConfigError, match=r"\(scores_only differ\)"):
        score("--scores_only")


def test_a_kill_between_the_file_and_its_record(score, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(_Job, "join", lambda _: None)
        score_without_join(score, tmp_path)
    whole = "".join(part.read_text() for part in sorted((tmp_path / "out.jsonl.parts").glob("part-*")))
    (tmp_path / "out.jsonl").write_text(whole)
    assert len(score()) == 10
    assert (tmp_path / "out.jsonl.scoring.json").is_file()
    assert not (tmp_path / "out.jsonl.parts").exists()
    score()
    assert "is there already" in capsys.readouterr().out


def test_a_second_start_scores_what_is_missing_and_counts_what_the_first_one_cut(score, tmp_path, monkeypatch, capsys):
    """Shards of 4 rows; one input of the first and one of the last is 10 tokens too long."""
    rows = [{"input": "red " * (40 if number in (0, 9) else 1)} for number in range(10)]
    data, whole, scored = write_rows(tmp_path / "long.jsonl", rows), _Job._score_shard, []

    def dies_at_the_second(job, engine, shard, number):
        if number == 1:
            raise KeyboardInterrupt
        whole(job, engine, shard, number)

    def counted(job, engine, shard, number):
        scored.append(number)
        whole(job, engine, shard, number)

    monkeypatch.setattr(_Job, "_score_shard", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        score(data=data)
    monkeypatch.setattr(_Job, "_score_shard", counted)
    assert len(score(data=data)) == 10
    assert scored == [1, 2]
    told = capsys.readouterr().out
    assert "going on after 1 shards" in told
    assert "note: 2 rows lose 20 tokens of their input to the length limit" in told
    record = json.loads((tmp_path / "out.jsonl.scoring.json").read_text())
    assert record["truncated"] == {"rows": 2, "tokens": 20}


def score_without_join(score, tmp_path):
    with pytest.raises(FileNotFoundError):
        score()
    assert len(list((tmp_path / "out.jsonl.parts").glob("part-*"))) == 3


def test_a_file_of_the_users_own_is_kept(score, tmp_path):
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match=r"exists, and no out\.jsonl\.scoring\.json says of what"):
        score()
    assert (tmp_path / "out.jsonl").read_text() == "mine"


@pytest.mark.parametrize("through_a_link", [False, True])
def test_the_input_is_never_the_output(score, tmp_path, through_a_link):
    rows = tmp_path / "rows.jsonl"
    before, given = rows.read_text(), rows
    if through_a_link:
        given = tmp_path / "link.jsonl"
        given.symlink_to(rows)
    with pytest.raises(ConfigError, match="is the file of the rows to be scored"):
        score("--overwrite", out=given)
    assert rows.read_text() == before


def test_a_folder_is_no_output(score, tmp_path):
    (tmp_path / "dir.jsonl").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        score("--overwrite", out=tmp_path / "dir.jsonl")
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--max_length", 0), "--max_length: .* greater than or equal to 4"),
        (("--max_length", -3), "--max_length"),
        (("--labels", "yes"), "--labels: give two or more different names"),
        (("--labels", "no", "no"), "--labels: give two or more different names"),
    ],
)
def test_flags_keep_the_rules_of_training(score, flags, message):
    with pytest.raises(ConfigError, match=message):
        score(*flags)


def test_what_json_has_not_is_null_a_text_or_told_at_once(score, tmp_path):
    rows = [{"input": "red", "target": math.nan, "more": [{"a": math.nan}]}, {"input": "one", "target": 1}]
    found = score(data=write_rows(tmp_path / "nan.jsonl", rows), out=tmp_path / "nan-out.jsonl")
    assert [record["orig_d"] for record in found] == [{"input": "red", "target": None, "more": [{"a": None}]}, rows[1]]
    pq.write_table(pa.Table.from_pylist([{"input": "red", "when": datetime(2020, 1, 2)}]), tmp_path / "d.parquet")
    dated = score(data=tmp_path / "d.parquet", out=tmp_path / "dated.jsonl")
    assert dated[0]["orig_d"]["when"] == "2020-01-02 00:00:00"
    half = write_rows(tmp_path / "half.jsonl", [{"input": "red", "note": "\ud800"}])
    with pytest.raises(DataError, match=r"train\[0\]: an extra key holds half a surrogate"):
        score(data=half, out=tmp_path / "half-out.jsonl")
    assert len(score("--scores_only", data=half, out=tmp_path / "half-out.jsonl")) == 1


@pytest.mark.parametrize(
    "content", ["", '{"input": 3}\n', '{"input": "a"}\n{"inp', '{"input": "a", "split": "eval"}\n']
)
def test_bad_data_leaves_nothing_behind(score, tmp_path, content):
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(DataError):
        score("--split", "train", data=tmp_path / "bad.jsonl", out=tmp_path / "bad-out.jsonl")
    assert not list(tmp_path.glob("bad-out*"))


def test_scores_that_are_no_numbers_name_row_and_model(score, scorer):
    file = scorer / "model.safetensors"
    weights = load_file(file)
    weights["classifier.bias"] += torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"scorer: its scores are NaN or infinite for 4 of 4 rows, first for train\[0\]"
    ):
        score()


@pytest.mark.parametrize("rows", [8, 9, 11])
def test_data_that_changes_meanwhile_is_told(score, tmp_path, monkeypatch, rows):
    whole = list(Source.rows(Source("x", "y", ((None, tmp_path / "rows.jsonl"),))))
    answers = [whole, (whole * 2)[:rows]]
    monkeypatch.setattr(Source, "rows", lambda _, **__: iter(answers.pop(0)))
    with pytest.raises(DataError, match="changed while it was scored"):
        score()


def test_shards_are_joined_by_number(score, tmp_path, monkeypatch):
    names = {0: "b", 1: "c", 2: "a"}  # as 1000000 sorts before 999999
    monkeypatch.setattr(_Job, "part", lambda job, number: job.parts / f"part-{names[number]}.jsonl")
    expected = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [record["orig_d"] for record in score()] == expected


def test_fingerprints_see_every_byte(tmp_path):
    file = tmp_path / "model.safetensors"
    content = bytearray(20 << 20)
    file.write_bytes(content)
    before = score_job.fingerprint(str(tmp_path))
    content[(1 << 20) + 300_000] = 1
    file.write_bytes(content)
    assert score_job.fingerprint(str(tmp_path)) != before
    assert score_job.fingerprint("google/flan-t5-small") == "google/flan-t5-small"


@pytest.mark.parametrize(
    ("reads", "row", "told"),
    [
        ("pairs", {"input": "red", "input_pear": "blue"}, r"train\[0\]: missing .*did you mean .input_pear"),
        ("pairs", {"input": "red"}, "this run reads pairs"),
        ("texts", {"input": "red", "input_pair": "blue"}, "this run reads single texts"),
    ],
)
def test_rows_of_another_kind_than_the_model_was_trained_on_are_refused(score, scorer, tmp_path, reads, row, told):
    write_json(scorer / "scoring.json", Scoring(max_length=32, reads=reads).as_json())
    with pytest.raises(DataError, match=told):
        score(data=write_rows(tmp_path / "other.jsonl", [row]))
    assert not (tmp_path / "out.jsonl.parts").exists()


def ready_made(folder, start, problem, labels, **config):
    """A checkpoint as another program leaves it: what its scores are stands in its configuration, or nowhere."""
    loaded = load_classifier(str(start), problem=problem, labels=labels, seed=3)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **config}))
    return folder


UNNAMED = {"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, "label2id": {}, "problem_type": None}


@pytest.mark.parametrize(
    ("config", "flags", "problem", "labels"),
    [
        ({}, (), "multilabel", ["a", "b", "c"]),
        ({}, ("--labels", "c", "b", "a"), "multilabel", ["c", "b", "a"]),
        ({"problem_type": None}, (), "multiclass", ["a", "b", "c"]),
        ({"problem_type": None}, ("--problem", "multilabel"), "multilabel", ["a", "b", "c"]),
        (UNNAMED, (), "multiclass", ["LABEL_0", "LABEL_1", "LABEL_2"]),
        (UNNAMED, ("--labels", "x", "y", "z"), "multiclass", ["x", "y", "z"]),
    ],
)
def test_a_heads_configuration_says_what_its_scores_are(score, bert_like, tmp_path, config, flags, problem, labels):
    score(*flags, model=ready_made(tmp_path / "m", bert_like, "multilabel", ("a", "b", "c"), **config))
    scoring = json.loads((tmp_path / "out.jsonl.scoring.json").read_text())["scoring"]
    assert (scoring["problem"], scoring["labels"]) == (problem, labels)
    sums = [sum(json.loads(line)["pred_score"]) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (sums == pytest.approx([1.0] * len(sums))) == (problem == "multiclass")


def test_one_output_is_a_number_or_by_a_sigmoid_a_yes(score, bert_like, tmp_path, capsys):
    model = ready_made(
        tmp_path / "m", bert_like, "regression", ("no", "yes"), problem_type=None, id2label={"0": "LABEL_0"}
    )

    def scores(*flags):
        score(*flags, "--overwrite", model=model)
        return [json.loads(line)["pred_score"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    numbers = scores()
    assert "one output, read as a number; --problem binary" in " ".join(capsys.readouterr().out.split())
    assert scores("--problem", "binary") == pytest.approx([1 / (1 + math.exp(-number)) for number in numbers])


def test_a_head_of_three_is_no_binary_one(score, bert_like, tmp_path):
    model = ready_made(tmp_path / "m", bert_like, "multiclass", ("a", "b", "c"))
    for flags in (("--problem", "binary"), ("--labels", "no", "yes")):
        with pytest.raises(ModelError, match=r"its head has 3 outputs \(a, b, c\), and no output for each of binary"):
            score(*flags, model=model)
