"""The page at / in a browser: fixtures and what tests do in it, by keyboard.

Knows nothing of what the page should say.
"""

from __future__ import annotations

import pytest

from tests.server.chromium import Chromium, find_chromium

PROGRAM = find_chromium()
in_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here; name one in WORKFLOW_CHROMIUM")


def text_of(browser: Chromium, place: str) -> str:
    return browser.value(f"document.getElementById('{place}').textContent")


def wait_for(browser: Chromium, place: str, words: str) -> str:
    browser.until(f"document.getElementById('{place}').textContent.includes({words!r})")
    return text_of(browser, place)


def write_into(browser: Chromium, place: str, text: str):
    """Goes to a field by keyboard, and writes into it."""
    browser.tab_to(place)
    browser.write(text)


def refusal(problem) -> bool:
    """Whether the browser only tells that an answer was an error, which the page tells too."""
    routes = ("/info", "/score", "/generate_stream", "/v1/completions")
    return isinstance(problem, dict) and problem.get("source") == "network" and problem["url"].endswith(routes)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Chromium(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a server's page; afterwards nothing was wrong in it, and nothing was asked of anybody else."""
    opened = []

    def open_it(live, *, ready="trained"):
        browser.problems.clear()
        browser.requests.clear()
        browser.open(live.url + "/")
        if ready:
            wait_for(browser, "facts", ready)
        opened.append(live)
        return browser

    yield open_it
    browser.value("0")  # takes in what the browser has told until now
    assert not [problem for problem in browser.problems if not refusal(problem)]
    for request in browser.requests:
        assert request["url"].startswith((opened[-1].url, "data:")), request["url"]
    browser.open("about:blank")
