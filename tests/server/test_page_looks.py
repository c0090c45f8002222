"""How the page at / looks and what it lets run: names for those who hear it, contrast, widths, its policy."""

from __future__ import annotations

import re

import pytest

from tests.server.browsing import in_browser, wait_for, write_into
from tests.server.chromium import CTRL
from workflow.server.pages import content_policy


@in_browser
def test_every_field_and_button_has_a_name(live, open_page):
    page = open_page(live)
    page.value("for (const hidden of document.querySelectorAll('[hidden]')) hidden.hidden = false")
    page.value("for (const closed of document.querySelectorAll('details')) closed.open = true")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("textbox", "button", "combobox", "checkbox", "tab", "tabpanel", "link", "region", "tablist")
    found = [node for node in nodes if node.get("role", {}).get("value") in roles]
    assert len(found) > 20
    assert not [node for node in found if not node.get("name", {}).get("value")]


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@in_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_is_legible_and_fits(live, open_page, dark, width):
    page = open_page(live)
    page.look(dark=dark, width=width, height=800)
    write_into(page, "prompt", "red green " * 20)
    page.press("Enter", CTRL)
    wait_for(page, "generate-status", "cut at max tokens")
    assert page.value("document.documentElement.scrollWidth") <= width
    shown = "getComputedStyle(document.querySelector('{}')).{}"
    ground = luminance(page.value(shown.format(".card", "backgroundColor")))
    assert (ground < 0.1) is dark
    for place in ("#samples .text", "#generate-status", "label", ".hint", "[role=tab]", "a"):
        ink = luminance(page.value(shown.format(place, "color")))
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) > 4.5, place
    page.look()


@in_browser
def test_what_is_not_the_page_s_own_does_not_run(live, open_page):
    page = open_page(live)
    page.value(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.slipped = 1'}))"
    )
    assert page.value("window.slipped") is None
    assert "Content Security Policy" in str(page.problems)
    page.problems.clear()


def test_the_policy_names_what_is_in_the_page(live):
    response = live.client.get("/")
    policy = response.headers["content-security-policy"]
    assert policy == content_policy(response.text)
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    assert response.text.count("<script") == response.text.count("<style") == 1
    assert not re.search(r"\s(style|on\w+)=\"", response.text)  # a hash does not cover attributes


def test_the_page_stays_one_file_of_a_moderate_size(live):
    assert len(live.client.get("/").content) < 60_000
