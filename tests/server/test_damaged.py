"""Weights that are no numbers: every route says one clear 5xx, the log says why once, and other runs are served."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
from safetensors.torch import load_file, save_file

from tests.server.conftest import error_of, serving, settings_of
from workflow.data.scoring import Scoring
from workflow.files import write_json
from workflow.models.classifier import load_classifier
from workflow.server.loading import make_loader


def damage(folder, name, value):
    """Sets the first number of a weight."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights[name].flatten()[0] = value
    save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def models(tmp_path_factory, flan_like, bert_like):
    root = tmp_path_factory.mktemp("damaged") / "models"
    shutil.copytree(flan_like, root / "good")
    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        shutil.copytree(flan_like, root / name)
        damage(root / name, "decoder.final_layer_norm.weight", value)
    loaded = load_classifier(str(bert_like), problem="multiclass", labels=("red", "green", "blue"), seed=3)
    loaded.model.save_pretrained(root / "bert")
    loaded.tokenizer.save_pretrained(root / "bert")
    damage(root / "bert", "classifier.weight", float("nan"))
    write_json(root / "bert" / "scoring.json", Scoring("multiclass", ("red", "green", "blue"), max_length=40).as_json())
    return root


@pytest.fixture(scope="module")
def live(models):
    settings = settings_of(models, device="cpu")
    with serving(settings, make_loader(settings)) as found:
        yield found


ASKED = [
    ("/generate", {"prompt": "reverse red"}),
    ("/generate", {"prompt": "reverse red", "temperature": 1, "n": 2, "logprobs": 1, "seed": 1}),
    ("/generate", {"prompt": "reverse red", "temperature": 1, "top_k": 5, "top_p": 0.5, "seed": 1}),
    ("/generate", {"prompt": "reverse red", "num_beams": 3}),
    ("/generate_stream", {"prompt": "reverse red"}),
    ("/v1/completions", {"prompt": "reverse red"}),
    ("/score", {"input": "red", "labels": ["one", "two"]}),
]


@pytest.mark.parametrize("model", ["nan", "inf"])
@pytest.mark.parametrize(("route", "body"), ASKED)
def test_every_route_says_one_clear_5xx(live, model, route, body):
    response = live.post(route, {"model": model, **body})
    if route == "/generate_stream" and response.status_code == 200:
        (line,) = [line for line in response.text.splitlines() if line.startswith("data:") and "error" in line]
        error = json.loads(line.removeprefix("data:"))["error"]
    else:
        error = error_of(response, 500)
    assert error["code"] == "not_finite"
    assert "not finite" in error["message"]
    assert live.client.get("/health").status_code == 200
    live.post("/generate", {"model": "good", "prompt": "reverse red"}).raise_for_status()


def test_a_head_too(live):
    assert error_of(live.post("/score", {"model": "bert", "input": "red"}), 500)["code"] == "not_finite"


def test_the_log_says_why_once(models):
    settings, lines = settings_of(models, device="cpu"), []

    class Kept(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    handler = Kept()
    logging.getLogger("workflow.server").addHandler(handler)
    try:
        with serving(settings, make_loader(settings)) as live:
            for _ in range(3):
                error_of(live.post("/generate", {"model": "nan", "prompt": "reverse red"}), 500)
    finally:
        logging.getLogger("workflow.server").removeHandler(handler)
    assert [line for line in lines if "not finite" in line] == [
        "engine nan: the model's logits are not finite numbers; its weights are damaged, or overflowed in training: "
        "serve or use an older checkpoint of the run"
    ]
