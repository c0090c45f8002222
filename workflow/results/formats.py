"""Sheets as Markdown, CSV, LaTeX (booktabs), one HTML page, and on the terminal.

Knows nothing of results: pure functions of texts.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files

from rich.table import Table

from workflow.results.sheets import Sheet

LABEL = ' class="label"'
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\u00b1": r"$\pm$",
}


def markdown(sheets: Sequence[Sheet]) -> str:
    """GitHub's tables, one below the other."""
    return "\n".join(_markdown(sheet) for sheet in sheets)


def _markdown(sheet: Sheet) -> str:
    marks = [":--" if number < sheet.num_labels else "--:" for number in range(len(sheet.head))]
    lines = ["| " + " | ".join(map(_in_markdown, row)) + " |" for row in (sheet.head, marks, *sheet.rows)]
    notes = "".join(f"\n{_in_markdown(note)}.\n" for note in sheet.notes)
    return f"**{_in_markdown(sheet.title)}**\n\n" + "\n".join(lines) + "\n" + notes


def _in_markdown(text: str) -> str:
    one_line = " ".join(text.split())
    return re.sub(r"([\\|*_`<\[])", r"\\\1", one_line)


def comma_separated(sheets: Sequence[Sheet]) -> str:
    """The first sheet: a CSV file holds one table."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(sheets[0].head)
    writer.writerows(sheets[0].rows)
    return file.getvalue()


def latex(sheets: Sequence[Sheet]) -> str:
    """`tabular`s of the booktabs package (`\\usepackage{booktabs}`), to stand in a `table` of one's own."""
    return "\n".join(_latex(sheet) for sheet in sheets)


def _latex(sheet: Sheet) -> str:
    align = "l" * sheet.num_labels + "r" * (len(sheet.head) - sheet.num_labels)
    rows = [" & ".join(map(_in_latex, row)) + r" \\" for row in sheet.rows]
    notes = [f"% {' '.join(note.split())}" for note in (sheet.title, *sheet.notes)]
    return "\n".join(
        [
            *notes,
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            " & ".join(map(_in_latex, sheet.head)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def html(sheets: Sequence[Sheet]) -> str:
    """One page that needs nothing else, light or dark as the reader's system is."""
    page = files("workflow.results").joinpath("page.html").read_text(encoding="utf-8")
    title = sheets[0].title if sheets else ""
    return page.replace("{title}", escape(title)).replace("{body}", "\n".join(_html(sheet) for sheet in sheets))


def _html(sheet: Sheet) -> str:
    head = "".join(
        f'<th scope="col"{LABEL if number < sheet.num_labels else ""}>{escape(name)}</th>'
        for number, name in enumerate(sheet.head)
    )
    rows = "\n".join(f"<tr>{_html_row(row, sheet.num_labels)}</tr>" for row in sheet.rows)
    notes = "".join(f"<p>{escape(note)}.</p>" for note in sheet.notes)
    return (
        f'<section><h2>{escape(sheet.title)}</h2>\n<div class="wide" tabindex="0" role="region" '
        f'aria-label="{escape(sheet.title)}"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>\n'
        f"{notes}</section>"
    )


def _html_row(row: Sequence[str], num_labels: int) -> str:
    return "".join(
        f'<th scope="row">{escape(text)}</th>' if number < num_labels else f"<td>{escape(text)}</td>"
        for number, text in enumerate(row)
    )


FORMATS: dict[str, Callable[[Sequence[Sheet]], str]] = {
    "md": markdown,
    "csv": comma_separated,
    "latex": latex,
    "html": html,
}


def rich_table(sheet: Sheet) -> Table:
    """The sheet for a terminal."""
    table = Table(title=sheet.title, caption=".\n".join(sheet.notes) or None)
    for number, name in enumerate(sheet.head):
        label = number < sheet.num_labels
        table.add_column(name, justify="left" if label else "right", overflow="fold")
    for row in sheet.rows:
        table.add_row(*row)
    return table
