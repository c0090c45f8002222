"""The page at /, in a real browser without a mouse; skipped where there is no Chromium."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.server.browsing import in_browser, text_of, wait_for, write_into
from tests.server.chromium import CTRL
from tests.server.conftest import until
from workflow.data.scoring import Scoring
from workflow.evaluation.calibration import fit_calibration

KEY = "a-key-of-the-test"


@in_browser
def test_generating_by_keyboard(live, open_page):
    page = open_page(live)
    write_into(page, "prompt", "reverse red green")
    page.tab_to("generate")
    page.press("Enter")
    assert re.match(r"complete · \d+ tokens · ", wait_for(page, "generate-status", "complete"))
    assert text_of(page, "samples") == "reverse red green"
    assert page.focus() == "generate"
    routes = [request["url"].removeprefix(live.url) for request in page.requests if request["method"] == "POST"]
    assert routes == ["/generate_stream"]
    wait_for(page, "facts", "on cpu in fp32")


@in_browser
def test_text_comes_token_by_token_and_stops(serve, open_page):
    live = serve(engine={"step_s": 0.05, "endless": True})
    page = open_page(live)
    write_into(page, "prompt", "red green blue")
    page.press("Enter", CTRL)
    page.until("document.getElementById('samples').textContent.length > 10")
    assert page.value("document.getElementById('samples').getAttribute('aria-busy')") == "true"
    first = text_of(page, "samples")
    page.until(f"document.getElementById('samples').textContent.length > {len(first)}")
    page.tab_to("stop")
    page.press("Space")
    assert "stopped" in wait_for(page, "generate-status", "stopped")
    assert text_of(page, "samples").startswith(first)
    assert page.focus() == "generate"
    until(lambda: live.load.engines["echo"].cancelled)


@in_browser
def test_escape_stops(serve, open_page):
    live = serve(engine={"step_s": 0.05, "endless": True})
    page = open_page(live)
    write_into(page, "prompt", "red")
    page.press("Enter", CTRL)
    page.until("document.getElementById('samples').textContent.length > 3")
    page.press("Escape")
    wait_for(page, "generate-status", "stopped")
    assert page.focus() == "prompt"


@in_browser
def test_settings_of_sampling_and_several_samples(live, open_page):
    page = open_page(live)
    write_into(page, "prompt", "it's red")
    page.tab_to("More")
    page.press("Enter")
    for place, text in (("max_new_tokens", "3"), ("temperature", "0.5"), ("top_p", "0.9"), ("n", "2"), ("seed", "7")):
        write_into(page, place, text)
    page.press("Enter")  # a form is sent from any of its fields
    assert "seed 7" in wait_for(page, "generate-status", "cut at max tokens")
    assert page.value("[...document.querySelectorAll('#samples h3')].map((e) => e.textContent)") == [
        "Sample 1",
        "Sample 2",
    ]
    seen = [request for request in live.engine().submitted if request.params.n == 2][-1].params
    assert (seen.max_new_tokens, seen.temperature, seen.top_p) == (3, 0.5, 0.9)


@in_browser
def test_the_curl_line_repeats_the_request(live, open_page, tmp_path):
    import shlex

    page = open_page(live)
    write_into(page, "prompt", "it's red")
    page.press("Enter", CTRL)
    wait_for(page, "generate-status", "complete")
    words = shlex.split(text_of(page, "generate-curl"))
    assert words[:3] == ["curl", "-N", f"{live.url}/generate_stream"]
    body = words[words.index("-d") + 1]
    answer = live.client.post("/generate_stream", content=body, headers={"content-type": "application/json"})
    assert f'"generated_text":"{text_of(page, "samples")}"' in answer.text


@in_browser
def test_scoring_several_inputs(live, open_page):
    page = open_page(live)
    page.tab_to("tab-generate")
    page.press("ArrowRight")
    assert page.focus() == "tab-score"
    write_into(page, "inputs", 'red\n\n{"sentence1": "one", "sentence2": "two"}')
    page.tab_to("score")
    page.press("Space")
    wait_for(page, "score-status", "2 inputs")
    answer = live.post("/score", {"model": "echo", "inputs": ["red", {"sentence1": "one", "sentence2": "two"}]}).json()
    rows = page.value(
        "[...document.querySelectorAll('#scores tbody tr')].map((row) => [...row.cells].map((c) => c.textContent))"
    )
    wanted = [
        [label, f"{p:.4f}", f"{logit:.4f}"]
        for result in answer["results"]
        for label, p, logit in zip(result["labels"], result["probabilities"], result["logits"], strict=True)
    ]
    assert rows == wanted
    assert f"{answer['results'][0]['score']:.4f}" in text_of(page, "scores")
    widths = page.value("[...document.querySelectorAll('#scores .fill')].map((e) => parseFloat(e.style.width))")
    assert widths == pytest.approx([100 * p for result in answer["results"] for p in result["probabilities"]], rel=1e-4)


@in_browser
def test_labels_and_template_may_be_given(live, open_page):
    page = open_page(live)
    page.tab_to("tab-generate")
    page.press("End")
    write_into(page, "inputs", "green")
    page.tab_to("More")
    page.press("Space")
    write_into(page, "labels", "red, blue, left")
    write_into(page, "template", "one {input}")
    page.press("Enter", CTRL)
    assert "likeliest" in wait_for(page, "scores", "likeliest")
    assert page.value("[...document.querySelectorAll('#scores tbody th')].map((e) => e.textContent)") == [
        "red",
        "blue",
        "left",
    ]


@in_browser
def test_a_calibrated_run_that_cannot_generate(serve, runs, open_page):
    rng = np.random.default_rng(0)
    calibration = fit_calibration("binary", rng.normal(size=(200, 2)), (rng.random(200) > 0.5).astype(float), seed=0)
    own = {"scoring": Scoring(template="{a} {b}"), "own_scoring": True, "calibration": calibration}
    for name in ("echo", "other"):
        (runs / name / "checkpoint-best-ckpt" / "scoring.json").write_text("{}")
    live = serve(texts=own, engine={"can_generate": False}, preload=["echo"])
    until(lambda: live.client.get("/ready").status_code == 200)
    page = open_page(live, ready="calibrated")
    assert page.value("document.getElementById('panel-generate').hidden") is True  # scores are what it is for
    assert '{"a":"…","b":"…"}' in text_of(page, "inputs-hint")
    write_into(page, "inputs", '{"a": "red", "b": "blue"}')
    page.press("Enter", CTRL)
    answer = live.post("/score", {"model": "echo", "input": {"a": "red", "b": "blue"}}).json()
    assert f"{answer['calibrated']:.4f}" in wait_for(page, "scores", "calibrated")
    page.tab_to("tab-score", back=True)
    page.press("ArrowLeft")
    assert "cannot generate" in text_of(page, "generate-cannot")
    assert page.value("document.getElementById('generate').disabled") is True


@in_browser
def test_errors_are_told_in_the_server_s_words(live, open_page):
    page = open_page(live)
    write_into(page, "prompt", "red")
    page.tab_to("More")
    page.press("Enter")
    write_into(page, "temperature", "hot")
    page.press("Enter")
    told = live.post("/generate_stream", {"model": "echo", "prompt": "red", "temperature": "hot"}).json()["error"]
    assert told["message"] in wait_for(page, "generate-error", "HTTP 400")
    assert page.focus() == "temperature"
    assert page.value("document.activeElement.getAttribute('aria-invalid')") == "true"


@in_browser
def test_an_error_within_a_stream(live, open_page):
    page = open_page(live)
    write_into(page, "prompt", "wrong")
    page.press("Enter", CTRL)
    wait_for(page, "generate-error", "engine_failed")
    assert page.value("document.getElementById('stop').hidden") is True


@in_browser
def test_a_server_that_is_gone(serve, open_page):
    live = serve()
    page = open_page(live)
    live.server.should_exit = True
    until(lambda: not live.server.started or live.server.servers == [] or not live.server.servers[0].is_serving())
    write_into(page, "prompt", "red")
    page.press("Enter", CTRL)
    wait_for(page, "generate-error", "does not answer")


@in_browser
def test_a_key_is_asked_for_and_kept_in_memory_only(serve, tmp_path, open_page):
    (tmp_path / "keys").write_text(f"{KEY}\n")
    live = serve(api_key_file=str(tmp_path / "keys"))
    page = open_page(live, ready="")
    page.until("document.activeElement.id === 'key'")
    page.write("another")
    page.press("Enter")
    wait_for(page, "key-why", "not accepted")
    page.write(KEY)
    page.press("Enter")
    wait_for(page, "facts", "trained")
    assert page.value("document.getElementById('key-form').hidden") is True
    assert page.focus() == "run"
    write_into(page, "prompt", "red green")
    page.press("Enter", CTRL)
    wait_for(page, "generate-status", "complete")
    assert "$WORKFLOW_API_KEY" in text_of(page, "generate-curl")
    assert KEY not in page.value(
        "document.documentElement.outerHTML + JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    )
