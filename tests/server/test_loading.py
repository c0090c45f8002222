"""Real checkpoints behind the server: the same tokens and scores as the commands give."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SMALL
from tests.server.conftest import error_of, serving, settings_of
from workflow.data.scoring import Scoring
from workflow.errors import ModelError
from workflow.evaluation.calibration import fit_calibration
from workflow.files import write_json
from workflow.inference.batch import predictions, score_all
from workflow.inference.head_engine import score_engine
from workflow.inference.sampling import SamplingParams
from workflow.models.classifier import load_classifier
from workflow.models.load import load_seq2seq
from workflow.models.manifest import write_manifest
from workflow.models.scratch import byte_vocabulary, make_model, write_scratch_model
from workflow.models.shapes import Shape
from workflow.recipe.predict import answer
from workflow.recipe.scorers import load_scorer, score_requests
from workflow.server.loading import make_loader

PROMPTS = ["reverse red green", "reverse one", "reverse blue two three left right"]
ROWS = [{"input": "red green", "input_pair": "one"}, {"input": "blue"}, {"sentence1": "left", "sentence2": "right"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory, flan_like, t5_like, bert_like, gpt2_like):
    root = tmp_path_factory.mktemp("real") / "models"
    shutil.copytree(flan_like, root / "flan" / "checkpoint-best-ckpt")
    shutil.copytree(bert_like, root / "body")
    scorer = root / "scorer" / "checkpoint-best-ckpt"
    shutil.copytree(t5_like, scorer)
    write_json(scorer / "scoring.json", Scoring(max_length=12).as_json())
    logits = np.random.default_rng(0).normal(size=(100, 2))
    calibration = fit_calibration("binary", logits, (logits[:, 1] > 0).astype(float), seed=0)
    write_json(scorer / "calibration.json", calibration.as_json())
    for name, body, problem in (("bert", bert_like, "multiclass"), ("gpt2", gpt2_like, "regression")):
        labels = ("red", "green", "blue") if problem == "multiclass" else ("no", "yes")
        loaded = load_classifier(str(body), problem=problem, labels=labels, seed=3)
        folder = root / name / "checkpoint-6"
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        write_json(folder / "scoring.json", Scoring(problem, labels, max_length=40).as_json())
    tokenizer = byte_vocabulary()
    write_scratch_model(
        root / "bytes", make_model(Shape(**SMALL, first_version=False), tokenizer, seed=1), tokenizer, {}
    )
    return root


@pytest.fixture(scope="module")
def live(models):
    settings = settings_of(models, device="cpu")
    with serving(settings, make_loader(settings)) as found:
        yield found


def test_every_run_is_listed(live):
    assert [row["id"] for row in live.client.get("/v1/models").json()["data"]] == [
        *("bert", "body", "bytes", "flan", "gpt2", "scorer")
    ]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "n": 3, "top_k": 20}])
def test_texts_are_those_of_the_command(live, models, sampling):
    body = {"model": "flan", "prompts": PROMPTS, "max_new_tokens": 8, "seed": 4, **sampling}
    found = live.post("/generate", body).raise_for_status().json()
    loaded = load_seq2seq(str(models / "flan" / "checkpoint-best-ckpt"))
    wanted = answer(loaded, loaded.model, PROMPTS, SamplingParams(8, **sampling), batch_size=2, seed=4)
    assert [[made["text"] for made in row["generations"]] for row in found["results"]] == [
        [made.text for made in result.generations] for result in wanted
    ]


@pytest.mark.parametrize(
    ("name", "folder"), [("scorer", "checkpoint-best-ckpt"), ("bert", "checkpoint-6"), ("gpt2", "checkpoint-6")]
)
def test_scores_are_those_of_the_command(live, models, name, folder):
    scorer = load_scorer(str(models / name / folder))
    scorer.loaded.model.eval()
    logits = score_all(score_engine(scorer.loaded), score_requests(scorer, ROWS), width=scorer.loaded.width)
    vectors = predictions(scorer.scoring.problem, logits)
    targets = scorer.scoring.targets()
    found = live.post("/score", {"model": name, "inputs": ROWS, "truncate": True}).raise_for_status().json()["results"]
    for row, wanted, vector in zip(found, logits, vectors, strict=True):
        assert row["logits"] == pytest.approx(wanted.tolist(), abs=1e-5)
        assert row["prediction"] == pytest.approx(targets.prediction(vector.tolist()), abs=1e-5)
    if scorer.calibration is not None:
        wanted = scorer.calibration.apply(logits)
        assert [row["calibrated"] for row in found] == pytest.approx(wanted.tolist(), abs=1e-5)


def test_longer_inputs_than_in_training_are_refused(live):
    asked = {"model": "scorer", "input": "red " * 30}
    error_of(live.post("/score", asked), 413)
    assert live.post("/score", {**asked, "truncate": True}).json()["usage"]["prompt_tokens"] == 12


def test_a_vocabulary_without_label_words_says_so(live):
    live.post("/generate", {"model": "bytes", "prompt": "red", "max_new_tokens": 2}).raise_for_status()
    error = error_of(live.post("/score", {"model": "bytes", "input": "red"}), 400)
    assert "single token" in error["message"]
    assert error["param"] == "labels"
    live.post("/score", {"model": "bytes", "input": "red", "labels": ["a", "b"]}).raise_for_status()


def test_a_body_without_a_head_says_so(live):
    error = error_of(live.post("/score", {"model": "body", "input": "red"}), 400)
    assert (error["code"], error["param"]) == ("model_unfit", "model")
    assert "clf.py" in error["message"]
    assert str(live.state.settings.folder) not in error["message"], "clients do not learn where runs lie"
    tasks = {row["name"]: row["task"] for row in live.client.get("/info").json()["models"]}
    assert (tasks["body"], tasks["flan"]) == ("score", "generate")


def test_a_head_does_not_generate(live):
    assert error_of(live.post("/generate", {"model": "bert", "prompt": "red"}), 400)["code"] == "model_unfit"
    assert (
        error_of(live.post("/score", {"model": "bert", "input": "red", "labels": ["no", "yes"]}), 400)["param"]
        == "labels"
    )


def test_logprobs_are_raw(live):
    body = {"model": "flan", "prompt": PROMPTS[0], "max_new_tokens": 4, "logprobs": 3}
    shown = live.post("/generate", body).raise_for_status().json()["generations"][0]["logprobs"]
    for token in shown:
        assert token["logprob"] == pytest.approx(token["top"][0]["logprob"])
        assert sum(np.exp(other["logprob"]) for other in token["top"]) < 1


def test_generative_scoring_sums_to_one_over_the_vocabulary(live):
    body = {"model": "flan", "query": "reverse ", "items": ["red"], "apply_softmax": False}
    total = sum(
        live.post("/generative_scoring", {**body, "label_token_ids": [token]})
        .raise_for_status()
        .json()["data"][0]["score"]
        for token in range(
            len(load_seq2seq(str(live.state.settings.folder / "flan" / "checkpoint-best-ckpt")).tokenizer)
        )
    )
    assert 0.3 < total <= 1 + 1e-4  # the padded rows of the head have the rest


@pytest.mark.parametrize(("name", "file"), [("flan", "model.safetensors"), ("bert", "model.safetensors")])
def test_served_weights_are_no_pages_of_their_files(models, tmp_path, name, file):
    """A file that is overwritten in place would change them, and one that is cut short would end the process."""
    folder = tmp_path / "run"
    shutil.copytree(next(path for path in (models / name).iterdir() if path.is_dir()), folder)
    service = make_loader(settings_of(tmp_path, device="cpu"))("run", folder)
    model = service.engine.model if name == "flan" else service.engine.loaded.model
    before = {key: weight.clone() for key, weight in model.named_parameters()}
    assert str(folder) not in Path("/proc/self/maps").read_text()
    weights = (folder / file).read_bytes()
    with (folder / file).open("r+b") as content:
        content.seek(len(weights) // 2)
        content.write(bytes(len(weights) // 2))
    assert all(weight.equal(before[key]) for key, weight in model.named_parameters())


def test_a_run_that_was_copied_in_part_is_not_served(models, tmp_path):
    shutil.copytree(models / "scorer", tmp_path / "models" / "scorer")
    folder = tmp_path / "models/scorer/checkpoint-best-ckpt"
    write_manifest(folder, step=1)
    settings = settings_of(tmp_path / "models", device="cpu")
    asked = {"model": "scorer", "input": "red"}
    with serving(settings, make_loader(settings)) as live:
        calibration = (folder / "calibration.json").read_text()
        (folder / "calibration.json").unlink()
        message = error_of(live.post("/score", asked), 404)["message"]
        assert "calibration.json is missing" in message
        (folder / "calibration.json").write_text("{}")
        assert "calibration.json has 2 bytes" in error_of(live.post("/score", asked), 404)["message"]
        (folder / "calibration.json").write_text(calibration)
        live.post("/score", asked).raise_for_status()
        (folder / "tokenizer.json").write_text("{}")
        live.post("/score", asked).raise_for_status()  # by what was loaded


def test_hashes_are_checked_where_asked(models, tmp_path):
    shutil.copytree(models / "flan", tmp_path / "flan")
    folder = tmp_path / "flan/checkpoint-best-ckpt"
    write_manifest(folder, step=1)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    make_loader(settings_of(tmp_path, device="cpu"))("flan", folder)
    with pytest.raises(ModelError, match="SHA-256 differs"):
        make_loader(settings_of(tmp_path, device="cpu", check_hashes=True))("flan", folder)
