"""Cards: front matter that hubs read, the facts, and code that does what the engine does."""

from __future__ import annotations

import contextlib
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.conftest import score_rows
from tests.recipe.conftest import write_scorer
from workflow.config.strategy_settings import Swa as SwaSettings
from workflow.data.scoring import Scoring
from workflow.evaluation.metrics import Metric
from workflow.inference.batch import generate_all, score_all
from workflow.inference.engine import T5Engine
from workflow.inference.head_engine import score_engine
from workflow.inference.interface import EngineLimits
from workflow.inference.requests import GenerateRequest
from workflow.inference.sampling import SamplingParams
from workflow.models.load import load_seq2seq
from workflow.models.save import write_model
from workflow.pages.card import CardFacts, card
from workflow.recipe.cards import scorer_facts
from workflow.recipe.scorers import load_scorer, score_requests
from workflow.strategies.weight_averaging import Swa

TEXT = score_rows(3)[2]["input"]
FACTS = {
    "run": "a_run",
    "step": 7,
    "start": "google/flan-t5-small",
    "start_is_hub": True,
    "data": "toy `x`.json",
    "data_hash": "feedbeef",
    "rows": {"train": 1000, "eval": 7, "calibration": 0},
    "family": "t5",
    "size": "0.1 M parameters",
    "metrics": {"accuracy": Metric(0.5, 0.25, 0.75, 7), "mcc": Metric(None, None, None, 7, reason="one class")},
    "best_metric": "accuracy",
}


def code_of(text: str) -> str:
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


def run_code(text: str, folder, *, said: str = TEXT) -> dict:
    """What the card's code leaves, run in the checkpoint's folder on a text."""
    found: dict = {}
    with contextlib.chdir(folder):
        exec(code_of(text).replace("Your prompt", said).replace("Your input", said), found)  # our own text
    return found


def test_front_matter_is_what_hubs_read():
    text = card(CardFacts(**FACTS, kind="texts", max_length=64, max_new_tokens=9))
    data = ModelCard(text).data
    assert data.base_model == "google/flan-t5-small"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text2text-generation"
    assert data.license is None
    assert data.metrics == ["accuracy"]
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 0.5, "toy `x`.json")
    assert "| **accuracy** | 0.500 | 0.250 to 0.750 | 7 |" in text
    assert "not defined: one class" in text
    assert "`` toy `x`.json ``" in text
    assert "1,000 train rows, 7 eval rows)" in text


def test_what_is_not_known_is_left_out_or_said():
    text = card(CardFacts(**{**FACTS, "metrics": None, "start": "/home/me/model", "start_is_hub": False}, kind="texts"))
    assert set(yaml.safe_load(text.split("---")[1])) == {"library_name", "pipeline_tag", "tags"}
    assert "was not evaluated" in text


@pytest.mark.parametrize("kind", ["bert_like", "gpt2_like", "flan_like", "t5_like"])
@pytest.mark.parametrize(
    "scoring",
    [
        Scoring(max_length=32),
        Scoring(max_length=32, low=-1.0, high=5.0),
        Scoring("multiclass", ("red", "green", "blue"), max_length=32),
    ],
    ids=["binary", "range", "classes"],
)
def test_the_code_of_scorers_gives_the_engines_scores(kind, scoring, request, tmp_path):
    folder = write_scorer(tmp_path / "model", request.getfixturevalue(kind), scoring)
    scorer = load_scorer(str(folder))
    facts = scorer_facts(scorer.loaded, scoring, 32, None)
    assert facts["kind"] == ("labels" if "t5" in kind or "flan" in kind else "head")
    found = run_code(card(CardFacts(**FACTS, **facts)), folder)
    engine = score_engine(scorer.loaded, limits=EngineLimits.at_least(rows=2, tokens=32))
    (logits,) = score_all(engine, score_requests(scorer, [{"input": TEXT}]), width=scorer.loaded.width)
    probabilities = scoring.targets().prediction(_softmax(logits))
    if scoring.problem == "binary":
        assert found["score"] == pytest.approx(probabilities, abs=1e-5)
    else:
        assert found["score"] == pytest.approx(dict(zip(scoring.labels, probabilities, strict=True)), abs=1e-5)


PAIR = {"input": "reverse red left", "input_pair": "left green one two"}


def test_the_code_of_pairs(bert_like, flan_like, tmp_path):
    """A BERT takes two texts; a T5 reads them as one, as the card says."""
    for kind, start in (("head", bert_like), ("labels", flan_like)):
        folder = write_scorer(tmp_path / kind, start, Scoring(max_length=64))
        scorer = load_scorer(str(folder))
        text = card(CardFacts(**FACTS, **scorer_facts(scorer.loaded, scorer.scoring, 32, None)))
        first, second = PAIR.values()
        said = first
        if kind == "head":
            text = text.replace('"Your input", None', f'"Your input", "{second}"')
        else:
            said = re.search(r"written as `(.*?)`", text)[1].replace("...", "{}").format(first, second)
        engine = score_engine(scorer.loaded, limits=EngineLimits.at_least(rows=2, tokens=64))
        (logits,) = score_all(engine, score_requests(scorer, [PAIR]), width=scorer.loaded.width)
        expected = scorer.scoring.targets().prediction(_softmax(logits))
        assert run_code(text, folder, said=said)["score"] == pytest.approx(expected, abs=1e-5), kind
        assert run_code(text, folder, said="one")["score"] != pytest.approx(expected, abs=1e-5), kind


def test_the_code_of_models_that_answer(flan_like, tmp_path):
    """What the engine writes for the same prompt."""
    loaded = load_seq2seq(str(flan_like))
    write_model(tmp_path / "model", loaded.model, loaded.tokenizer, loaded.model.state_dict(), max_new_tokens=9)
    prompt = "reverse red left one"
    found = run_code(card(CardFacts(**FACTS, kind="texts", max_new_tokens=9)), tmp_path / "model", said=prompt)
    engine = T5Engine(loaded.model.eval(), loaded.tokenizer, limits=EngineLimits(max_rows=1))
    params = SamplingParams(max_new_tokens=9, temperature=0.0)
    (answer,) = generate_all(engine, [GenerateRequest(loaded.tokenizer(prompt).input_ids, params, seed=0)])
    assert found["ids"][0].tolist()[1:] == [*answer.generations[0].token_ids]  # without the start token
    assert found["answer"] == answer.generations[0].text


def test_an_average_says_what_it_is():
    about = Swa(SwaSettings(start=3, every=2))
    about.plan(7)
    text = card(CardFacts(**FACTS, kind="texts", average=about.about(7)))
    assert "# a\\_run, averaged to step 7" in text
    assert (
        "no checkpoint of the training but the mean (stochastic weight averaging) of the weights after every 2 updates "
        "from update 3 to 7" in text
    )
    assert "no checkpoint" not in card(CardFacts(**FACTS, kind="texts"))


def _softmax(logits):
    import numpy as np

    exponents = np.exp(logits - logits.max())
    return (exponents / exponents.sum()).tolist()


@pytest.mark.parametrize(
    "scoring", [Scoring("regression"), Scoring("multilabel", ("a", "b", "c"))], ids=["number", "labels"]
)
def test_the_code_of_other_heads(scoring, bert_like, tmp_path):
    folder = write_scorer(tmp_path / "model", bert_like, scoring)
    scorer = load_scorer(str(folder))
    found = run_code(card(CardFacts(**FACTS, **scorer_facts(scorer.loaded, scoring, 32, None))), folder)
    engine = score_engine(scorer.loaded, limits=EngineLimits.at_least(rows=2, tokens=32))
    (logits,) = score_all(engine, score_requests(scorer, [{"input": TEXT}]), width=scorer.loaded.width)
    if scoring.problem == "regression":
        assert found["score"] == pytest.approx(float(logits[0]), abs=1e-5)
    else:
        import numpy as np

        assert list(found["score"].values()) == pytest.approx(list(1 / (1 + np.exp(-logits))), abs=1e-5)
