"""The part of a report about rows: samples over the steps, the worst of the last evaluation, and charts of scores.

Knows nothing of where predictions come from.
"""

from __future__ import annotations

from collections.abc import Sequence

from workflow.pages.markup import long_text, note, number, table
from workflow.pages.run_files import RunFiles
from workflow.pages.samples import MOST_ROWS, Looked, Sample, look_at_scores, look_at_texts
from workflow.pages.scored import scored_part


def rows_part(run: RunFiles) -> str:
    """Everything about rows, of the newest prediction file."""
    if not run.predictions:
        return note("There are no prediction files: the data has no eval rows, or nothing was evaluated yet.")
    last = max(run.predictions)
    looked, samples = look_at_texts(run, last) if run.task == "seq2seq" else look_at_scores(run, last)
    charts = scored_part(run, looked) if run.task == "clf" else ""
    return charts + _samples(run, samples) + _worst(run, looked)


def _samples(run: RunFiles, samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    steps = sorted({step for sample in samples for step in sample.given})
    is_text = run.task == "seq2seq"
    rows = [
        [
            str(sample.row),
            long_text(sample.asked),
            long_text(sample.wanted),
            *(_given(sample, step) for step in steps),
        ]
        for sample in samples
    ]
    head = ["eval row", "prompt" if is_text else "input", "wanted", *(f"step {step:,}" for step in steps)]
    return table("The same rows over the steps", head, rows, kind="rows")


def _given(sample: Sample, step: int) -> str:
    if step not in sample.given:
        return '<span class="soft">not there</span>'
    right = sample.is_right.get(step)
    mark = '<span class="right" title="right">\u2713</span> ' if right else ""
    return mark + long_text(sample.given[step])


def _worst(run: RunFiles, looked: Looked) -> str:
    is_text = run.task == "seq2seq"
    if not looked.worst:
        return note("Every row of the last evaluation is as wanted.") if is_text else ""
    head = ["eval row", "prompt" if is_text else "input", "wanted", "given", "token F1" if is_text else "off by"]
    rows = [
        [
            str(wrong.row),
            long_text(wrong.asked),
            long_text(wrong.wanted),
            long_text(wrong.given),
            number(1 - wrong.distance if is_text else wrong.distance),
        ]
        for wrong in looked.worst
    ]
    of = f"the first {MOST_ROWS:,}" if looked.is_cut else f"{looked.rows:,}"
    what = (
        "do not match, by token F1 (first generation)"
        if is_text
        else "are decided otherwise at 0.5; the largest errors"
    )
    if run.settings.get("problem") == "regression":
        what = "largest errors"
        return table(f"Worst rows at step {looked.step:,}: {what} of {of} rows", head, rows, kind="rows")
    caption = f"Worst rows at step {looked.step:,}: {looked.wrong:,} of {of} rows {what}"
    return table(caption, head, rows, kind="rows")
