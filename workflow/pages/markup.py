"""HTML from values: escaped texts, cut texts, numbers, tables.

Knows nothing of runs. Everything that comes from a file passes `text`, so that no prompt can become markup.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from workflow.evaluation.report import MetricRecord

LONGEST_TEXT = 600
"""Characters of a text that are shown; beyond them it is cut, and the cell says so."""
REPLACED = {code: " " for code in range(32) if chr(code) not in "\n\t"} | {0x7F: " "}


def text(value: Any) -> str:
    """The escaped text of a value."""
    return html.escape(str(value).translate(REPLACED).encode("utf-8", "replace").decode("utf-8"), quote=True)


def long_text(value: Any, *, longest: int = LONGEST_TEXT) -> str:
    """A text of any length and direction, as one isolated block; cut beyond `longest` characters, and said to be."""
    whole = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if not whole:
        return '<span class="soft">(empty)</span>'
    cut = f' <span class="cut">\u2026 {len(whole) - longest:,} more characters</span>' if len(whole) > longest else ""
    return f'<bdi class="text">{text(whole[:longest])}</bdi>{cut}'


def number(value: float | None) -> str:
    """Four significant digits without needless zeros; a dash for none."""
    if value is None:
        return "\u2013"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def measured(value: float | None) -> str:
    """A metric: three decimals, or one from 10 on (BLEU and chrF), as in the run's own table; a dash for none."""
    if value is None:
        return "\u2013"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def metric(record: MetricRecord | None) -> str:
    """A value with its interval, or why there is none."""
    if record is None:
        return ""
    if record.value is None:
        return f'<span class="soft" title="{text(record.reason or "")}">not defined</span>'
    if record.low is None or record.high is None:
        return measured(record.value)
    return f'{measured(record.value)} <span class="soft range">({measured(record.low)}\u2013{measured(record.high)})</span>'


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "", first_is_head: bool = True
) -> str:
    """A table whose cells are HTML already, in a box that scrolls by itself where it is too wide."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = []
    for row in rows:
        cells = [
            f'<th scope="row">{cell}</th>' if first_is_head and not place else f"<td>{cell}</td>"
            for place, cell in enumerate(row)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}"><table class="{kind}">'
        f"<caption><span>{text(caption)}</span></caption><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def note(message: str) -> str:
    """A line that says what is missing or odd."""
    return f'<p class="note">{text(message)}</p>'


def section(title: str, *parts: str, name: str) -> str:
    """A part of the page with a heading that can be linked to."""
    return f'<section id="{name}"><h2>{text(title)}</h2>{"".join(parts)}</section>'


def folded(summary: str, *parts: str) -> str:
    """Content behind a line that opens it."""
    return f"<details><summary>{text(summary)}</summary>{''.join(parts)}</details>"
