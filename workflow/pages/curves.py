"""Which curves a report shows of one run or several, and how training losses are smoothed.

Knows nothing of how a chart is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workflow.metric_names import higher_is_better
from workflow.pages.charts import Chart, Line
from workflow.pages.run_files import Curve, RunFiles

SMOOTH_SHARE = 0.05
"""The mean of a smoothed curve reaches over about this share of its points."""
AVERAGES = ("swa_", "ema_")
"""Prefixes of metrics of averaged weights, which are drawn beside those of the weights themselves."""
NUM_OPEN = 5
LOGGED = "lrs/"
"""Before the names of groups whose rates were logged: those that are no share of the highest one."""
USUAL = (
    *(
        "exact_match",
        "token_f1",
        "rougeL",
        "chrf",
        "bleu",
        "auc",
        "accuracy",
        "spearman",
        "f1_macro",
        "mcc",
        "rmse",
        "brier",
    ),
    "ece",
)
"""The metrics that are shown first, where there are more."""
TRAINING = {
    "grad_norm": "Gradient norm, before clipping",
    "tokens_per_s": "Real tokens a second",
    "sparsity": "Share of zero weights",
}


def smoothed(curve: Curve) -> Curve:
    """An exponential mean without the bias of its start; over about SMOOTH_SHARE of the points."""
    weight = 1 - 1 / max(1.0, SMOOTH_SHARE * len(curve))
    found, mean, sum_of_weights = [], 0.0, 0.0
    for step, value in curve:
        mean = weight * mean + (1 - weight) * value
        sum_of_weights = weight * sum_of_weights + (1 - weight)
        found.append((step, mean / sum_of_weights))
    return found


def loss_chart(runs: Sequence[RunFiles]) -> Chart:
    """Training loss, as logged (faint) and smoothed, and the loss on the eval rows (dashed); of averages too."""
    lines, single = [], len(runs) == 1
    for place, run in enumerate(runs):
        whose = "" if single else f"{run.name}: "
        if logged := run.train.get("loss"):
            lines.append(Line(f"{whose}training, as logged", logged, place, "faint"))
            lines.append(Line(f"{whose}training", smoothed(logged), place))
        for prefix in ("", *AVERAGES):
            if curve := run.evaluation.get(f"{prefix}eval_loss"):
                name = "evaluation" + (f" of {prefix[:-1].upper()}" if prefix else "")
                colour = _colour(single, 1, prefix)
                lines.append(Line(f"{whose}{name}", curve, place, "dashed", marks=True, colour=colour))
    about = "Training loss as logged (faint) and smoothed (solid, exponential mean); loss on the eval rows (dashed)."
    return Chart("Loss", lines, about, wide=True, may_be_log=True)


def _colour(single: bool, usual: int, prefix: str) -> int | None:
    return usual + ("", *AVERAGES).index(prefix) if single else None


def metric_charts(runs: Sequence[RunFiles]) -> tuple[list[Chart], list[Chart]]:
    """(the metrics to look at first, the others): the one that chooses the best before all."""
    known = list(dict.fromkeys(name for run in runs for name in run.evaluation if not name.startswith(AVERAGES)))
    chosen = [run.best_metric for run in runs]
    order = [name for name in dict.fromkeys([*chosen, *USUAL, *known]) if name in known and name != "eval_loss"]
    charts = [_metric_chart(name, runs) for name in order]
    return charts[:NUM_OPEN], charts[NUM_OPEN:]


def _metric_chart(name: str, runs: Sequence[RunFiles]) -> Chart:
    lines, single = [], len(runs) == 1
    for place, run in enumerate(runs):
        for prefix in ("", *AVERAGES):
            if curve := run.evaluation.get(prefix + name):
                label = (prefix + name) if single else f"{run.name}" + (f" ({prefix[:-1].upper()})" if prefix else "")
                colour = _colour(single, 0, prefix)
                lines.append(Line(label, curve, place, "dashed" if prefix else "line", marks=True, colour=colour))
    best = "best when high" if higher_is_better(name.removesuffix("_calibrated")) else "best when low"
    return Chart(name, lines, f"On the eval rows; {best}.")


def training_charts(runs: Sequence[RunFiles]) -> list[Chart]:
    """Learning rates by group, gradient norm, speed, sparsity: whatever was logged."""
    charts = [_rate_chart(runs)]
    for name, about in TRAINING.items():
        lines = []
        for place, run in enumerate(runs):
            curve = run.train.get(name) or run.evaluation.get(name)
            if curve:
                lines.append(Line(name if len(runs) == 1 else run.name, curve, place))
        charts.append(Chart(about, lines, may_be_log=name == "grad_norm"))
    return [drawn for drawn in charts if drawn.lines]


def _rate_chart(runs: Sequence[RunFiles]) -> Chart:
    if len(runs) > 1:
        lines = [Line(run.name, run.train["lr"], place) for place, run in enumerate(runs) if "lr" in run.train]
        return Chart("Learning rate", lines, "Of the group with the highest rate.")
    groups = rates_by_group(runs[0])
    lines = [Line(name, curve, 0, colour=place) for place, (name, curve) in enumerate(groups.items())]
    about = "" if len(groups) < 2 else "By parameter group."
    return Chart("Learning rate", lines, about)


def rates_by_group(run: RunFiles) -> Mapping[str, Curve]:
    """Learning rates of groups, those with the same ones together, the highest first.

    A group's rate is what was logged for it at a step, else its share of the highest one: the groups' initial rates' ratio.
    """
    logged = {name.removeprefix(LOGGED): dict(curve) for name, curve in run.train.items() if name.startswith(LOGGED)}
    highest = run.train.get("lr", [])
    initial = {
        str(group["name"]): float(rate)
        for group in run.groups
        if isinstance(rate := group.get("initial_lr"), int | float)
    }
    top = max(initial.values(), default=0.0)
    if not initial or top <= 0:
        return {name: [*curve.items()] for name, curve in logged.items()} or (
            {"learning rate": highest} if highest else {}
        )
    together: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for name, rate in sorted(initial.items(), key=lambda entry: -entry[1]):
        own = logged.get(name, {})
        curve = tuple((step, own.get(step, value * (rate / top))) for step, value in highest)
        together.setdefault(curve, []).append(name)
    if len(together) < 2:
        return {"learning rate": highest} if highest else {}
    return {_listed(names): list(curve) for curve, names in together.items()}


def _listed(group_names: Sequence[str]) -> str:
    more = f" and {len(group_names) - 2} more" if len(group_names) > 2 else ""
    return ", ".join(group_names[:2]) + more
