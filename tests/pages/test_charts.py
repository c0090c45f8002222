"""Charts: what is thinned, the ticks, the scales, and that a chart reads without its drawing."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as Tree
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow.pages.charts import MOST_POINTS, SIDE, Chart, Line, Scale, chart, scale_of, thinned, ticks
from workflow.pages.curves import smoothed


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5000))
def test_thinning_keeps_ends_and_extremes(values):
    points = list(enumerate(values))
    kept = thinned(points, most=50)
    assert len(kept) <= 52
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert min(y for _, y in kept) == min(values)
    assert max(y for _, y in kept) == max(values)
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})
    assert set(kept) <= set(points)


@given(st.floats(-1e5, 1e5), st.floats(1e-4, 1e6))
def test_ticks_are_round_few_and_inside(low, width):
    found = ticks(low, low + width)
    assert 1 <= len(found) <= 6
    slack = 1e-6 * width + 1e-9 * abs(low)
    assert all(low - slack <= value <= low + width + slack for value in found)


def test_scales():
    scale = scale_of([1.0, 1.0], None, may_be_log=True)
    assert scale.low < 1 < scale.high
    wide = scale_of([1e-4, 10.0], None, may_be_log=True)
    assert wide.is_log
    assert wide(1e-4) < wide(1e-2) < wide(10.0)
    assert wide(math.sqrt(wide.low * wide.high)) == pytest.approx(SIDE / 2)
    assert not scale_of([-1.0, 1000.0], None, may_be_log=True).is_log
    assert len(Scale(2.0, 40.0, is_log=True).ticks()) >= 2


def test_smoothing_is_an_unbiased_mean():
    assert [value for _, value in smoothed([(step, 3.0) for step in range(50)])] == pytest.approx([3.0] * 50)
    few = [(1, 5.0), (2, 1.0)]
    assert smoothed(few) == few
    jump = smoothed([(step, float(step >= 500)) for step in range(1000)])
    assert jump[499][1] == 0
    assert 0.5 < jump[560][1] < 1


def test_a_chart_reads_and_tells_its_points():
    points = [(float(step), math.sin(step)) for step in range(5000)]
    made = chart(Chart("a <b>", [Line("one & two", points), Line("flat", [(0.0, 0.0)], kind="dashed", colour=1)]))
    svg = re.search(r"<svg.*</svg>", made)[0]
    root = Tree.fromstring(svg)
    assert root.find("title").text == "a <b>"
    assert "one & two: 0 at 0" in root.find("desc").text
    assert made.count("<b>") == 0
    data = json.loads(unescape(re.search(r'data-chart="([^"]*)"', made)[1]))
    shown = data["lines"][0]["points"]
    assert len(shown) <= MOST_POINTS + 2
    assert all(abs(math.sin(x) - y) < 1e-4 for x, y in shown)
    assert chart(Chart("none", [])) == ""


def test_paths_stand_where_the_scale_puts_them():
    made = chart(Chart("t", [Line("l", [(0, 0), (5, 1), (10, 0)])], x_range=(0, 10), y_range=(0, 1)))
    assert 'd="M0 1000L500 0L1000 1000"' in made
