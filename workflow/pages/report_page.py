"""The report of one run or several: one HTML file that asks nobody for anything, and reads without scripts.

Knows nothing of training. What is missing is said in its place; a part that cannot be made costs itself alone.
"""

from __future__ import annotations

import base64
import hashlib
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from workflow import __version__
from workflow.console import make_console
from workflow.errors import ConfigError, ResultsError, WorkflowError
from workflow.evaluation.report import Report
from workflow.files import whole_file, why_not_writable
from workflow.pages import curves
from workflow.pages.charts import NUM_COLOURS, chart
from workflow.pages.head_part import result_part, run_head, slices_part, status
from workflow.pages.markup import folded, note, section, text
from workflow.pages.row_part import rows_part
from workflow.pages.run_files import RunFiles, find_run, read_run
from workflow.pages.settings_part import environment_part, groups_part, settings_part
from workflow.paths import REPORT_PAGE_NAME, find_mount

MOST_RUNS = 32
Part = tuple[str, str, Callable[[], str]]
"""(id, heading, how its content is made)."""


def write_page(file: Path, runs: Sequence[RunFiles]) -> None:
    """Writes the report of these runs; the file appears whole or not at all. Raises OSError, ResultsError."""
    if len(runs) > MOST_RUNS:
        raise ResultsError(f"{len(runs)} runs: a page compares at most {MOST_RUNS}; give fewer")
    page = render(runs)
    with whole_file(file) as out:
        out.write(page)


def try_own_page(root: Path, report: Report) -> str | None:
    """Writes report.html of a run that is about to be finished, and gives the reason where that fails.

    To be called before report.json is written: a run that is killed in between makes its page again. Whatever goes wrong,
    the run is as good as it was.
    """
    file = root / REPORT_PAGE_NAME
    try:
        write_page(file, [read_run(root, report=report)])
    except Exception as error:
        return (
            f"{file} could not be written: {type(error).__name__}: {error}; `workflow report {root.name}` tries again"
        )
    return None


def render(runs: Sequence[RunFiles]) -> str:
    """The page."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    parts = [(name, heading, _made(make)) for name, heading, make in _parts(runs)]
    parts = [part for part in parts if part[2]]
    links = "".join(f'<a href="#{name}">{text(heading)}</a>' for name, heading, _ in parts)
    body = "".join(section(heading, content, name=name) for name, heading, content in parts)
    script = _asset("report.js")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(script)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f'<title>{text(title)} \u2013 workflow report</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{_asset('report.css')}</style>\n</head>\n<body>\n"
        f'<header><p class="kicker">workflow report</p><h1><bdi>{text(title)}</bdi></h1></header>\n'
        f'<nav aria-label="Parts">{links}</nav>\n<main>{body}</main>\n'
        f"<footer>Made by workflow {text(__version__)} from the files of the run{'s' if len(runs) > 1 else ''}. "
        "Intervals are 95 % bootstrap intervals over the eval rows.</footer>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def policy(script: str) -> str:
    """What the page may do: nothing but its own styles and its own script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return files("workflow.pages").joinpath(name).read_text(encoding="utf-8")


def _made(make: Callable[[], str]) -> str:
    """A part's content, or why there is none: files may be damaged in any way, and the rest is still worth reading."""
    try:
        return make()
    except (WorkflowError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:400]
        return note(f"This part could not be made: {type(error).__name__}: {reason}")


def _parts(runs: Sequence[RunFiles]) -> list[Part]:
    single = runs[0] if len(runs) == 1 else None
    return [
        ("run", "The run", lambda: run_head(single)) if single else ("runs", "The runs", lambda: _legend(runs)),
        ("result", "Result", lambda: result_part(runs)),
        ("curves", "Curves", lambda: _curves(runs)),
        *([("rows", "Rows", lambda: rows_part(single))] if single else []),
        *([("slices", "Slices", lambda: slices_part(single))] if single else []),
        ("settings", "Settings", lambda: settings_part(runs) + (groups_part(single) if single else "")),
        ("environment", "Environment", lambda: environment_part(runs)),
    ]


def _legend(runs: Sequence[RunFiles]) -> str:
    """Each run with its colour and state; a script makes them switches."""
    items = []
    for place, run in enumerate(runs):
        kind, words = status(run)
        best = run.best.metrics.get(run.best_metric) if run.best else None
        value = f"{text(run.best_metric)} {best.value:.4g}" if best and best.value is not None else "not evaluated"
        again = " (colour used before)" if place >= NUM_COLOURS else ""
        items.append(
            f'<li data-run="{place}"><i class="swatch c{place % NUM_COLOURS}"></i><bdi>{text(run.name)}</bdi>'
            f'<span class="soft">{value}</span><span class="status {kind}">{text(words)}</span>{again}</li>'
        )
    told = "".join(note(f"{run.name}: {message}") for run in runs for message in run.notes)
    return f'<ul class="legend">{"".join(items)}</ul>{told}'


def _curves(runs: Sequence[RunFiles]) -> str:
    first, others = curves.metric_charts(runs)
    shown = [chart(drawn) for drawn in (curves.loss_chart(runs), *first, *curves.training_charts(runs))]
    more = [chart(drawn) for drawn in others]
    if not any(shown):
        return note("No curves: metrics.jsonl holds no figures yet.")
    folded_away = folded(f"{len(more)} more metrics", f'<div class="charts">{"".join(more)}</div>') if more else ""
    return f'<div class="charts">{"".join(shown)}</div>{folded_away}'


def write_pages(given: Namespace) -> int:
    """`workflow report`. Raises ResultsError, ConfigError."""
    mount = find_mount(given.mount)
    roots = list(dict.fromkeys(find_run(name, mount).resolve() for name in given.runs))
    out = given.out or Path(REPORT_PAGE_NAME)
    if reason := why_not_writable(out):
        raise ConfigError(f"--out {out}: {reason}; name a file that can be written")
    write_page(out, [read_run(root) for root in roots])
    make_console().print(f"written to {out}", soft_wrap=True)
    return 0
