"""The top of a report: what a run was, how far it came, and its metrics before, at best and at the end.

Knows nothing of curves or rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from workflow.evaluation.report import Measured, MetricRecord
from workflow.metric_names import higher_is_better
from workflow.pages.markup import measured, metric, note, number, table, text
from workflow.pages.run_files import RunFiles

SHORT_HASH = 12
MOST_SLICE_METRICS = 4


def status(run: RunFiles) -> tuple[str, str]:
    """(kind, words): finished, or how far the run came."""
    if run.report is not None:
        return "done", f"finished, {run.report.steps:,} steps"
    wanted = run.settings.get("max_steps")
    of = f" of {wanted:,}" if isinstance(wanted, int) else ""
    return "open", f"not finished: step {run.last_step:,}{of}"


def run_head(run: RunFiles) -> str:
    """Facts, notes, and the number that counts."""
    kind, words = status(run)
    facts = "".join(f"<div><dt>{text(name)}</dt><dd>{value}</dd></div>" for name, value in _facts(run).items())
    told = [*run.notes, *(run.report.notes if run.report else [])]
    if run.report is None:
        told.append(
            "There is no report.json: the run was stopped, failed, or is still training. This is what its files tell."
        )
    if run.left_out:
        shown = ", ".join(str(step) for step, _ in run.left_out[:10])
        told.append(f"{len(run.left_out)} updates were left out because they were not finite: steps {shown}")
    return f'<p class="status {kind}">{text(words)}</p>{_headline(run)}<dl class="facts">{facts}</dl>{"".join(map(note, told))}'


def _facts(run: RunFiles) -> dict[str, str]:
    settings, report = run.settings, run.report
    model = report.model if report else _model(run)
    facts = {
        "task": "writes texts (seq2seq)" if run.task == "seq2seq" else "scores or classifies (clf)",
        "started from": f"<bdi>{text(model)}</bdi>",
        "data": f"<bdi>{text(report.data if report else settings.get('data_name'))}</bdi>",
        "hash of the data": f"<code>{text((run.data_hash or 'unknown')[:SHORT_HASH])}</code>",
        "seed": text(settings.get("seed")),
    }
    if report:
        facts |= {
            "examples": f"{report.examples:,} ({number(report.epochs)} epochs)",
            "time of training": _duration(report.speed.train_seconds),
            "speed": f"{number(report.speed.tokens_per_s)} tokens/s",
            "ranks": text(report.backend.get("ranks")),
        }
    return facts


def _model(run: RunFiles) -> str:
    names = ("model_init_path", "model_init_name", "model_pretrain_name")
    return str(next((run.settings[name] for name in names if run.settings.get(name)), "unknown"))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _headline(run: RunFiles) -> str:
    """The best value of the metric that chooses the best, large."""
    best = run.best
    record = best.metrics.get(run.best_metric) if best else None
    if best is None or record is None:
        return note("Nothing was evaluated after step 0, so there is no best step: the data may have no eval rows.")
    before = run.initial.metrics.get(run.best_metric) if run.initial else None
    was = f", before training {measured(before.value)}" if before and before.value is not None else ""
    interval = ""
    if record.low is not None and record.high is not None:
        interval = f'<span class="interval">95 % interval {measured(record.low)} to {measured(record.high)}, {record.n:,} rows</span>'
    which = "high" if higher_is_better(run.best_metric) else "low"
    return (
        f'<p class="headline"><span class="value">{measured(record.value)}</span> <span class="name">{text(run.best_metric)}</span>'
        f'{interval}<span class="soft">best at step {best.step:,} (best when {which}){text(was)}</span></p>'
    )


def result_part(runs: Sequence[RunFiles]) -> str:
    """Of one run, metrics before, at best and at the end; of several, each run's best."""
    if len(runs) > 1:
        return _compared(runs)
    run = runs[0]
    columns = [*((name, part) for name, part in _stages(run) if part), *_averages(run)]
    if not columns:
        return note("Nothing was evaluated.")
    baseline = run.report.baseline if run.report else {}
    constant = ["a constant"] if baseline else []
    head = ["metric", *(f"{name}<br>step {part.step:,}" for name, part in columns), *constant]
    rows = [
        [
            _marked(name, run.best_metric),
            *(metric(part.metrics.get(name)) for _, part in columns),
            *([metric(baseline.get(name))] if baseline else []),
        ]
        for name in _names([part for _, part in columns])
    ]
    return table("Metrics with 95 % intervals over the eval rows", head, rows)


def _stages(run: RunFiles) -> list[tuple[str, Measured | None]]:
    """Before training, at best, at the end; one column where the best is the end."""
    last = "final" if run.report else "latest"
    if run.best and run.latest and run.best.step == run.latest.step:
        return [("before training", run.initial), (f"best and {last}", run.best)]
    return [("before training", run.initial), ("best", run.best), (last, run.latest)]


def _averages(run: RunFiles) -> list[tuple[str, Measured]]:
    return [(f"average ({name.upper()})", part) for name, part in run.averages.items()]


def _compared(runs: Sequence[RunFiles]) -> str:
    found = [run for run in runs if run.best]
    if not found:
        return note("None of the runs was evaluated after step 0.")
    columns = [
        column
        for run in found
        if run.best
        for column in [(run.name, run.best), *((f"{run.name}, {name}", part) for name, part in _averages(run))]
    ]
    stages = [part for _, part in columns]
    head = ["metric", *(f"{text(name)}<br>step {part.step:,}" for name, part in columns)]
    chosen = runs[0].best_metric
    rows = [[_marked(name, chosen), *(metric(part.metrics.get(name)) for part in stages)] for name in _names(stages)]
    return table("Metrics of each run's best step, with 95 % intervals", head, rows)


def _names(parts: Sequence[Measured]) -> list[str]:
    return list(dict.fromkeys(name for part in parts for name in part.metrics))


def _marked(name: str, chosen: str) -> str:
    shown = text(name).replace("_", "_<wbr>")
    return f"<strong>{shown}</strong>" if name == chosen else shown


def slices_part(run: RunFiles) -> str:
    """Metrics by value of the slice key, of the final (or best) step; the metric that chooses the best first."""
    part = next((part for part in (run.latest, run.best) if part and part.slices), None)
    if part is None:
        return ""
    names = [run.best_metric, *(name for name in next(iter(part.slices.values())) if name != run.best_metric)]
    names = names[:MOST_SLICE_METRICS]
    rows = [
        [
            f"<bdi>{text(value)}</bdi>",
            f"{next(iter(metrics.values())).n:,}" if metrics else "",
            _bar(metrics.get(names[0])),
            *(metric(metrics.get(name)) for name in names),
        ]
        for value, metrics in part.slices.items()
    ]
    key = text(run.settings.get("slice_by"))
    return table(f"By {key}, step {part.step:,}", [key, "rows", "", *map(text, names)], rows)


def _bar(record: MetricRecord | None) -> str:
    """A metric between 0 and 1 as a bar with its interval; nothing for others."""
    if record is None or record.value is None or not 0 <= record.value <= 1:
        return ""
    low, high = (end if end is not None else record.value for end in (record.low, record.high))
    return (
        f'<span class="bar" aria-hidden="true"><i style="width:{100 * record.value:.1f}%"></i>'
        f'<b style="left:{100 * max(0, low):.1f}%;width:{100 * (min(1, high) - max(0, low)):.1f}%"></b></span>'
    )
