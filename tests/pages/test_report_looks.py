"""How reports look in a browser: they fit, are legible in light and dark, ask nobody for anything, and answer a pointer."""

from __future__ import annotations

import pytest

from tests.pages.made_runs import scored_run, text_run
from tests.server.browsing import browser, in_browser  # noqa: F401
from tests.server.test_page_looks import luminance
from workflow.pages.report_page import write_page
from workflow.pages.run_files import read_run

pytestmark = in_browser
COLOUR = """(() => {
  const shown = document.body.appendChild(Object.assign(document.createElement('i'), {className: 'swatch c%d'}));
  return getComputedStyle(shown).borderTopColor;
})()"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    one = read_run(scored_run(folder / "a_run_with_a_name_that_is_really_very_long_and_has_no_spaces_at_all_in_it"))
    other = read_run(scored_run(folder / "other", seed=1, finished=False))
    texts = read_run(text_run(folder / "texts"))
    found = {"scored": [one], "texts": [texts], "both": [one, other]}
    for name, runs in found.items():
        write_page(folder / f"{name}.html", runs)
    return folder


@pytest.fixture
def opened(browser, pages):  # noqa: F811
    """Opens a page; afterwards it has asked nobody for anything, and nothing was wrong in it."""

    def open_it(name, **look):
        browser.look(**look)
        browser.problems.clear()
        browser.requests.clear()
        browser.open(f"file://{pages}/{name}.html")
        return browser

    yield open_it
    browser.value("0")
    assert not browser.problems
    assert [r["url"] for r in browser.requests if not r["url"].startswith((f"file://{pages}/", "data:,"))] == []
    browser.look()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["scored", "texts", "both"])
def test_it_fits_and_is_legible(opened, name, width, dark):
    page = opened(name, dark=dark, width=width)
    page.value("for (const closed of document.querySelectorAll('details')) closed.open = true")
    assert page.value("document.documentElement.scrollWidth") <= width
    shown = "getComputedStyle(document.querySelector('{}')).{}"
    ground = luminance(page.value(shown.format("section", "backgroundColor")))
    assert (ground < 0.1) is dark
    for place in ("p.status, .status", "td", "thead th", "figcaption", ".plot .x", ".below", "summary"):
        ink = luminance(page.value(shown.format(place, "color")))
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) > 4.5, place
    for number in range(8):  # lines need three to one
        line = luminance(page.value(COLOUR % number))
        assert (max(line, ground) + 0.05) / (min(line, ground) + 0.05) > 3, number


def test_charts_have_room_and_names(opened):
    page = opened("scored", width=390)
    sizes = page.value(
        "[...document.querySelectorAll('.charts > figure svg')].map(e => [e.clientWidth, e.clientHeight])"
    )
    assert len(sizes) > 8
    shown = [size for size in sizes if size[0]]
    assert min(width for width, _ in shown) > 240
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    for node in nodes:
        if node.get("role", {}).get("value") in ("image", "img", "table", "region", "button", "link", "navigation"):
            assert node["ignored"] or node.get("name", {}).get("value"), node


def test_the_pointer_shows_values_and_runs_can_be_hidden(opened):
    page = opened("both")
    page.value("document.querySelector('.plot').scrollIntoView({block: 'center'})")
    where = "(() => { const b = document.querySelector('.plot').getBoundingClientRect(); return [b.left, b.top, b.width, b.height] })()"
    box = page.value(where)
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] - 1, y=box[1] + box[3] / 2)
    tip = page.until("(document.querySelector('.tip:not([hidden])') || {}).textContent")
    assert tip.startswith("step 20")
    assert "other: evaluation 0.04762" in tip
    count = "[...document.querySelectorAll('.r1')].filter(e => getComputedStyle(e).display !== 'none').length"
    assert page.value(count) > 3
    page.value("document.querySelectorAll('.legend button')[1].click()")
    assert page.value(count) == 0
    assert page.value("document.querySelectorAll('.legend button')[1].getAttribute('aria-pressed')") == "false"
