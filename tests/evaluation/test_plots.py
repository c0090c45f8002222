"""Figures: which files, whole, the same again, what they say, and the edges."""

from __future__ import annotations

import hashlib

import matplotlib
import numpy as np
import pytest
from scipy.stats import binomtest

from workflow.evaluation import plots
from workflow.evaluation.plots import wilson_interval, write_plots

FILES = [f"{name}.{kind}" for name in ("reliability", "roc", "scores") for kind in ("png", "svg")]


def example(rows=400, seed=0):
    rng = np.random.default_rng(seed)
    scores = 1 / (1 + np.exp(-rng.normal(size=rows) * 2))
    return scores, (rng.random(rows) < scores).astype(float)


def texts(monkeypatch) -> list[str]:
    """Every text that is drawn from now on, newlines as spaces."""
    from matplotlib.text import Text

    seen = []
    draw = Text.draw

    def noted(self, *arguments, **named):
        seen.append(" ".join(self.get_text().split()))
        return draw(self, *arguments, **named)

    monkeypatch.setattr(Text, "draw", noted)
    return seen


def test_files_are_whole_pictures_and_nothing_else(tmp_path):
    written = write_plots(tmp_path / "deep" / "plots", *example(), title="a run")
    assert [path.name for path in written] == FILES
    assert sorted(path.name for path in (tmp_path / "deep" / "plots").iterdir()) == sorted(FILES)
    for path in written:
        content = path.read_bytes()
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG")
            assert content.endswith(b"IEND\xaeB`\x82")
            width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
            assert (width, height) == (780, 780)
        else:
            assert content.rstrip().endswith(b"</svg>")
            assert b"<dc:date>" not in content


def test_the_same_numbers_give_the_same_files_over_old_ones(tmp_path):
    def digests():
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in written]

    written = write_plots(tmp_path, *example(), title="a")
    first = digests()
    written = write_plots(tmp_path, *example(seed=1), title="a")
    assert not set(digests()) & set(first)
    written = write_plots(tmp_path, *example(), title="a")
    assert digests() == first


def test_an_error_leaves_the_old_file(tmp_path, monkeypatch):
    (path, *_) = write_plots(tmp_path, *example(), title="a")
    before = path.read_bytes()

    def broken(*_, **__):
        raise OSError("full")

    monkeypatch.setattr(plots.Figure, "savefig", broken)
    with pytest.raises(OSError, match="full"):
        write_plots(tmp_path, *example(seed=1), title="a")
    assert path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_nothing_of_matplotlib_is_changed(tmp_path):
    before = dict(matplotlib.rcParams)
    write_plots(tmp_path, *example(), title="a")
    assert dict(matplotlib.rcParams) == before


def test_what_is_written_on_them(tmp_path, monkeypatch):
    seen = texts(monkeypatch)
    scores, targets = np.array([0.1, 0.2, 0.8, 0.9] * 5), np.array([0.0, 0.0, 1.0, 1.0] * 5)
    write_plots(tmp_path, scores, targets, title="my run, step 7")
    assert "my run, step 7" in seen
    assert "ROC: area under the curve 1.000 (1.000\u20131.000)" in seen
    assert any(text.startswith("Reliability: calibration error (ECE) 0.150 (") for text in seen)
    for label in ("score", "mean target", "rows", "false positive rate", "true positive rate", "guessing"):
        assert label in seen
    assert "target yes (10 rows)" in seen
    assert "share of the class's rows" in seen


@pytest.mark.parametrize(
    ("scores", "targets", "note"),
    [
        ([0.2, 0.6, 0.7], [1.0, 1.0, 1.0], "all 3 targets are at least 0.5: AUC needs both classes"),
        ([0.2, 0.6], [0.1, 0.3], "all 2 targets are below 0.5: AUC needs both classes"),
        ([], [], "no rows"),
        ([0.2, np.nan], [0.0, 1.0], "1 of 2 predictions are NaN or infinite"),
        ([0.5], [1.0], "all 1 targets are at least 0.5: AUC needs both classes"),
        ([0.0, 0.0, 1.0, 1.0], [0.0] * 4, "all 4 targets are below 0.5: AUC needs both classes"),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path, monkeypatch, scores, targets, note):
    seen = texts(monkeypatch)
    written = write_plots(tmp_path, np.array(scores), np.array(targets), title="x")
    assert [path.name for path in written] == FILES
    assert note in seen


@pytest.mark.parametrize("title", ["", "costs $5 or $x_{", "名前 ü \U0001f4a5", "long " * 100, "a\nb", r"\frac{"])
def test_any_title(tmp_path, monkeypatch, title):
    seen = texts(monkeypatch)
    write_plots(tmp_path, *example(30), title=title)
    expected = title.replace("名前", "??").replace("\U0001f4a5", "?").split()
    shown = max((text for text in seen if text.split()[:1] == expected[:1]), default="", key=len).split()
    assert shown == (expected if len(title) < 160 else [*expected[:31], "..."])


def test_bars_are_wilsons():
    low, high = wilson_interval(np.array([0.0, 0.3, 1.0]), np.array([4, 10, 7]))
    for number, (hits, rows) in enumerate([(0, 4), (3, 10), (7, 7)]):
        expected = binomtest(hits, rows).proportion_ci(method="wilson")
        assert (low[number], high[number]) == pytest.approx((expected.low, expected.high))
