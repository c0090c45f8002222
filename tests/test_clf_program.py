"""`clf.py`, `workflow score`, `evaluate` and `distill` as users run them, on small models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.conftest import ROOT, run_program, score_rows, write_scores
from tests.fixtures.make_nanogpt import make_nanogpt

pytestmark = pytest.mark.slow

SHORT = (
    "--dropout",
    0,
    "--max_steps",
    6,
    "--eval_steps",
    3,
    "--save_steps",
    3,
    "--lr",
    1e-3,
    "--warmup_steps",
    2,
    "--logging_steps",
    1,
)


def clf(mount, model, *more, data="scored", name="run", **options):
    return run_program(
        *("--mount", mount, "--model_init_path", model, "--data_name", data, "--training_run_name", name),
        *(more or SHORT),
        script="clf.py",
        **options,
    )


def workflow(*arguments, **options):
    return run_program(*arguments, module="workflow", **options)


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, flan_like):
    """A mount with a finished T5 run."""
    mount = tmp_path_factory.mktemp("clf") / "mount"
    write_scores(mount, "scored", train=60, evaluation=41)
    done = clf(mount, flan_like, *SHORT, "--slice_by", "target")
    assert done.returncode == 0, done.stderr
    return mount, done


def test_the_run_folder(finished):
    mount, done = finished
    run = mount / "models/run"
    names = {path.name for path in run.iterdir()}
    assert names >= {
        *("args.json", "checkpoint-3", "checkpoint-6", "checkpoint-best-ckpt", "preds.json", "report.json", "plots"),
        *("checkpoint-0-preds.json", "checkpoint-3-preds.json", "checkpoint-6-preds.json", "metrics.jsonl"),
    }
    assert {path.name for path in (run / "plots").iterdir()} == {
        f"{kind}.{suffix}" for kind in ("reliability", "roc", "scores") for suffix in ("png", "svg")
    }
    assert (run / "preds.json").read_text() == (run / "checkpoint-6-preds.json").read_text()
    best = run / "checkpoint-best-ckpt"
    assert {"model.safetensors", "tokenizer.json", "scoring.json", "calibration.json"} <= {
        path.name for path in best.iterdir()
    }
    report = read(run / "report.json")
    assert report["task"] == "clf"
    assert {"eval_loss", "auc", "spearman", "ece_calibrated"} <= set(report["final"]["metrics"])
    assert report["baseline"]["spearman"]["value"] is None
    assert report["baseline"]["spearman"]["reason"]
    assert report["baseline"]["eval_loss"]["value"] > 0
    assert report["final"]["slices"]
    assert "a constant" in done.stdout


def test_predictions_equal_a_plain_transformers_forward(finished):
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    mount, _ = finished
    checkpoint = mount / "models/run/checkpoint-6"
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    labels = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("no", "yes")]
    records = read(mount / "models/run/preds.json")
    assert [record["orig_d"] for record in records] == read(mount / "data/scored.json")["eval"]
    start = torch.tensor([[model.config.decoder_start_token_id]])
    for record in records:
        ids = tokenizer(record["orig_d"]["input"], return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(input_ids=ids, decoder_input_ids=start).logits[0, 0, labels]
        assert record["pred_score"] == pytest.approx(float(logits.softmax(0)[1]), abs=1e-5)


def test_zero3_on_two_ranks_gives_zero0s_scores(finished, flan_like):
    mount, _ = finished
    done = clf(mount, flan_like, *SHORT, "--nproc", 2, "--deepspeed", "zero3", name="two")
    assert done.returncode == 0, done.stderr
    one, two = (read(mount / f"models/{name}/preds.json") for name in ("run", "two"))
    assert [r["pred_score"] for r in two] == pytest.approx([r["pred_score"] for r in one], abs=2e-5)
    metrics = [read(mount / f"models/{name}/report.json")["final"]["metrics"] for name in ("run", "two")]
    assert metrics[0]["rmse"]["value"] == pytest.approx(metrics[1]["rmse"]["value"], abs=1e-4)


def test_the_initial_path_is_really_loaded(finished, flan_like, tmp_path):
    """The weights come from --model_init_path, whatever --model_pretrain_name says."""
    mount, _ = finished
    common = ("--mount", mount, "--data_name", "scored", "--no_train", "--model_pretrain_name", flan_like)
    trained = run_program(
        *common, "--model_init_path", mount / "models/run", "--pred_save_path", tmp_path / "a.json", script="clf.py"
    )
    base = run_program(*common, "--pred_save_path", tmp_path / "b.json", "--scores_only", script="clf.py")
    assert (trained.returncode, base.returncode) == (0, 0), trained.stderr + base.stderr
    best = read(mount / "models/run/report.json")["best"]["step"]
    expected = [record["pred_score"] for record in read(mount / f"models/run/checkpoint-{best}-preds.json")]
    assert [record["pred_score"] for record in read(tmp_path / "a.json")] == pytest.approx(expected, abs=1e-6)
    base_scores = read(tmp_path / "b.json")
    assert all(set(record) == {"pred_score"} for record in base_scores)
    assert [record["pred_score"] for record in base_scores] != pytest.approx(expected, abs=1e-3)


def test_no_train_writes_beside_the_working_directory(finished, tmp_path):
    mount, _ = finished
    before = sorted((mount / "models").rglob("*"))
    done = run_program(
        *("--mount", mount, "--data_name", "scored", "--no_train", "--model_init_path", mount / "models/run"),
        *("--training_run_name", "x"),
        script="clf.py",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "preds/x").iterdir()} == {
        "preds.json",
        "metrics.json",
        "calibration.json",
        "plots",
    }
    assert sorted((mount / "models").rglob("*")) == before


@pytest.mark.parametrize("kind", ["bert", "gpt2", "nanogpt"])
def test_other_heads_from_the_same_data_file(kind, mount, request, tmp_path, gpt2_like):
    """Longer runs that must beat a constant; the checkpoint loads with plain transformers."""
    from transformers import AutoModelForSequenceClassification

    write_scores(mount, "more", train=400, evaluation=120)
    more: tuple = ()
    if kind == "nanogpt":
        make_nanogpt(tmp_path / "gpt", vocab_size=512)
        model, more = tmp_path / "gpt/ckpt.pt", ("--tokenizer", gpt2_like)
    else:
        model = request.getfixturevalue(f"{kind}_like")
    flags = ("--max_steps", 150, "--eval_steps", 150, "--lr", 3e-3, "--warmup_steps", 10, "--dropout", 0, *more)
    done = clf(mount, model, *flags, data="more")
    assert done.returncode == 0, done.stderr
    batches = "ragged: no padding" if kind == "bert" else "padded: gpt2 models are"
    assert f"batches   {batches}" in done.stdout
    report = read(mount / "models/run/report.json")
    assert report["final"]["metrics"]["eval_loss"]["high"] < report["baseline"]["eval_loss"]["low"]
    assert report["final"]["metrics"]["auc"]["low"] > 0.6
    assert AutoModelForSequenceClassification.from_pretrained(mount / "models/run/checkpoint-best-ckpt").num_labels == 2


@pytest.mark.parametrize(
    ("flags", "target", "shape"),
    [
        (("--labels", "a", "b", "c"), lambda row: row["id"] % 3, 3),
        (("--labels", "a", "b", "c", "--problem", "multilabel"), lambda row: ["a"] if row["id"] % 2 else ["b", "c"], 3),
        (("--problem", "regression"), lambda row: row["id"] * 1.5 - 7, None),
        (("--target_range", -1, 5), lambda row: row["id"] % 7 - 1, None),
    ],
)
def test_other_targets(mount, bert_like, flags, target, shape):
    write_scores(mount, "other", target=target)
    done = clf(mount, bert_like, *SHORT, *flags, data="other")
    assert done.returncode == 0, done.stderr
    records = read(mount / "models/run/preds.json")
    assert len(records) == 11
    for record in records:
        assert np.shape(record["pred_score"]) == (() if shape is None else (shape,))
    if "--target_range" in flags:
        assert all(-1 <= record["pred_score"] <= 5 for record in records)
    again = workflow("evaluate", "run", "--mount", mount, "--out", mount / "ev", "--json")
    assert again.returncode == 0, again.stderr
    final = read(mount / "models/run/report.json")["final"]["metrics"]
    for name, metric in json.loads(again.stdout)["metrics"]["run"].items():
        assert metric["value"] == pytest.approx(final[name]["value"], abs=1e-6), name


def test_one_class_eval_rows_give_null_with_a_reason(mount, flan_like):
    write_scores(mount, "ones", target=lambda row: 1)
    done = clf(mount, flan_like, *SHORT, "--save_best_metric", "auc", data="ones")
    assert done.returncode == 0, done.stderr
    auc = read(mount / "models/run/report.json")["final"]["metrics"]["auc"]
    assert auc["value"] is None
    assert "both classes" in auc["reason"]
    assert "NaN" not in (mount / "models/run/report.json").read_text()


def test_the_head_first_and_a_template(mount, flan_like):
    flags = (*SHORT, "--ft_head_first", "--head_steps", 2, "--template", "{input} yes or no", "--max_length", 9)
    write_scores(mount, "plain")
    done = clf(mount, flan_like, *flags, data="plain")
    assert done.returncode == 0, done.stderr
    assert "the head learns alone first" in done.stdout
    assert "rows lose" in done.stdout
    lines = [json.loads(line) for line in (mount / "models/run/metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line.get("lrs") for line in lines if "lr" in line}
    assert {rate > 0 for name, rate in rates[1].items() if name.startswith("head")} == {True}
    assert {rate for name, rate in rates[1].items() if not name.startswith("head")} == {0.0}
    assert rates[6] is None, "a share of the initial ones, as the report takes it to be"
    scoring = read(mount / "models/run/checkpoint-6/scoring.json")
    assert (scoring["template"], scoring["max_length"]) == ("{input} yes or no", 9)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--save_best_metric", "auv"), 'did you mean "auc"?; there are, best when: eval_loss (low), accuracy (high)'),
        (("--labels", "no", "sideways"), "label word 'sideways' is not a single token of this vocabulary (its pieces:"),
        (("--template", "{text}: {input}"), 'scored.json: the first 10 problems:\n  train[0]: missing "text"'),
        (("--target_range", "0", "0.5"), "outside [0, 0.5]"),
        (("--calibration_split", "calibration"), 'has no "calibration" rows'),
        (("--slice_by", "colour"), "--slice_by colour: no eval row has this key"),
        (("--problem", "regression"), "use --problem binary"),
        (("--deepspeed", "zero9"), "did you mean"),
    ],
)
def test_wrong_input(mount, flan_like, flags, message):
    done = clf(mount, flan_like, *SHORT, *flags)
    assert done.returncode == 2
    assert message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_ft_head_first_refuses_a_tied_head(mount, t5_like):
    done = clf(mount, t5_like, *SHORT, "--ft_head_first")
    assert (done.returncode, "no head to train alone" in done.stderr) == (2, True)


# ---- scoring, comparing, distilling


def write_rows(path, count):
    path.write_text(
        "".join(json.dumps({key: row[key] for key in ("input", "id")}) + "\n" for row in score_rows(count, 5))
    )


def test_scoring_is_whole_ordered_and_repeatable(finished, tmp_path):
    mount, _ = finished
    write_rows(tmp_path / "rows.jsonl", 100)
    common = ("score", "run", "--mount", mount, "--data", tmp_path / "rows.jsonl", "--shard_rows", 7, "--batch_size", 4)
    for number, more in enumerate(((), ("--nproc", 2), ("--calibrated",))):
        done = workflow(*common, "--out", tmp_path / f"{number}.json", *more)
        assert done.returncode == 0, done.stderr
    one, two, calibrated = (read(tmp_path / f"{number}.json") for number in range(3))
    assert [record["orig_d"]["id"] for record in one] == list(range(100))
    assert [r["pred_score"] for r in two] == pytest.approx([r["pred_score"] for r in one], abs=1e-6)
    assert all(0 <= record["pred_calibrated"] <= 1 for record in calibrated)
    assert not list(tmp_path.glob("*.parts"))
    again = workflow(*common, "--out", tmp_path / "0.json")
    assert (again.returncode, "is there already" in again.stdout) == (0, True)
    other = workflow(*common, "--out", tmp_path / "0.json", "--scores_only")
    assert (other.returncode, "(scores_only differ)" in other.stderr) == (2, True)


def test_a_killed_scoring_goes_on(finished, tmp_path):
    mount, _ = finished
    write_rows(tmp_path / "rows.jsonl", 3000)
    arguments = ["score", "run", "--mount", str(mount), "--data", str(tmp_path / "rows.jsonl")]
    arguments += ["--out", str(tmp_path / "out.jsonl"), "--shard_rows", "20", "--batch_size", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "workflow", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    parts = tmp_path / "out.jsonl.parts"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("part-*.jsonl"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = list(parts.glob("part-*.jsonl"))
    assert 3 <= len(kept) < 150
    first = min(kept)
    records = first.read_text().splitlines()
    done = workflow(*arguments)
    assert done.returncode == 0, done.stderr
    assert "going on after" in done.stdout
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["orig_d"]["id"] for line in lines] == list(range(3000))
    assert lines[:20] == records


def test_scoring_refuses(finished, tmp_path, bert_like):
    mount, _ = finished
    (tmp_path / "bad.jsonl").write_text('{"input": "a"}\n{"text": "b"}\n')
    cases = [
        (("run", "--data", tmp_path / "bad.jsonl", "--out", tmp_path / "x.json"), 'train[1]: missing "input"'),
        (("run", "--data", "scored", "--out", tmp_path / "x.txt"), "ends in neither .json"),
        (("rum", "--data", "scored", "--out", tmp_path / "x.json"), 'did you mean "run"?'),
        (
            ("run", "--data", "scored", "--out", tmp_path / "x.json", "--labels", "a", "b"),
            "was trained otherwise: labels",
        ),
        ((str(bert_like), "--data", "scored", "--out", tmp_path / "x.json"), "has no trained head"),
    ]
    for arguments, message in cases:
        done = workflow("score", *arguments, "--mount", mount)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not list(tmp_path.glob("x.*"))


def test_evaluating_ensembles_and_pairs(finished, tmp_path):
    mount, _ = finished
    run = mount / "models/run"
    first, last = run / "checkpoint-0-preds.json", run / "preds.json"
    out = tmp_path / "ev"
    done = workflow(
        "evaluate", first, last, "--ensemble", "ranks", "--against", first, "--slice_by", "target", "--out", out
    )
    assert done.returncode == 0, done.stderr
    found = read(out / "evaluation.json")
    assert set(found["metrics"]) == {"checkpoint-0-preds.json", "run", "mean of ranks"}
    assert found["metrics"]["run"]["rmse"] == read(run / "report.json")["final"]["metrics"]["rmse"]
    assert {one["metric"] for one in found["comparison"]} >= {"auc", "spearman"}
    assert "| auc (high) |" in (out / "evaluation.md").read_text()
    (tmp_path / "alone.json").write_text(json.dumps([{"pred_score": r["pred_score"]} for r in read(last)]))
    need = workflow("evaluate", tmp_path / "alone.json", "--out", out)
    assert (need.returncode, "pass --data NAME" in need.stderr) == (2, True)
    with_data = workflow(
        "evaluate", tmp_path / "alone.json", "--data", "scored", "--mount", mount, "--out", out, "--json"
    )
    assert json.loads(with_data.stdout)["metrics"]["alone.json"]["auc"] == found["metrics"]["run"]["auc"]
    (tmp_path / "short.json").write_text(json.dumps(read(last)[:-1]))
    short = workflow("evaluate", last, tmp_path / "short.json", "--out", out)
    assert (short.returncode, "40 records for 41 rows" in short.stderr) == (2, True)


def test_distilling(finished, bert_like, tmp_path):
    mount, _ = finished
    write_rows(tmp_path / "rows.jsonl", 50)
    flags = (
        "--teacher",
        "run",
        "--student",
        bert_like,
        "--data",
        tmp_path / "rows.jsonl",
        "--data_name",
        "new",
        *SHORT,
    )
    done = workflow("distill", "--mount", mount, *flags, "--training_run_name", "student")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (mount / "data/new/train.jsonl").read_text().splitlines()]
    assert len(rows) == 50
    assert all(0 < row["target"] < 1 for row in rows)
    found = read(mount / "models/student/distillation/evaluation.json")
    spearman = next(one for one in found["comparison"] if one["metric"] == "spearman")
    assert spearman["n"] == 41
    teacher = read(mount / "models/run/report.json")["best"]["metrics"]["spearman"]["value"]
    assert spearman["second"] == pytest.approx(teacher, abs=1e-6)
