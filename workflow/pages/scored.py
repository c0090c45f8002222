"""How good a scorer's numbers are, in charts: reliability, ROC, scores by class; and what calibration does.

Knows nothing of models; is given scores and targets.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.metrics import roc_curve

from workflow import paths as names
from workflow.errors import WorkflowError
from workflow.evaluation.metrics import Floats
from workflow.evaluation.plots import wilson_interval
from workflow.evaluation.report import MetricRecord
from workflow.evaluation.score_files import read_calibration
from workflow.evaluation.score_metrics import score_metrics
from workflow.evaluation.weighted_metrics import NUM_BINS, Integers
from workflow.files import read_json
from workflow.pages.charts import Chart, Line, chart
from workflow.pages.markup import measured, metric, note, section, table, text
from workflow.pages.run_files import RunFiles
from workflow.pages.samples import Looked, targets_of

UNIT = (0.0, 1.0)


def scored_part(run: RunFiles, looked: Looked) -> str:
    """Charts of binary scores, and the calibration's table where there is one."""
    if looked.targets is None or looked.vectors is None:
        return note("The prediction files hold scores alone (--scores_only): there are no targets to compare with.")
    if targets_of(run).problem != "binary":
        return calibration_table(run)
    scores, targets = looked.vectors[:, 1], looked.targets[:, 1]
    charts = "".join(map(chart, score_charts(scores, targets)))
    cut = note(f"Drawn from the first {looked.rows:,} rows.") if looked.is_cut else ""
    return f'<div class="charts">{charts}</div>{cut}{calibration_table(run)}'


def score_charts(scores: Floats, targets: Floats) -> list[Chart]:
    """Reliability, ROC (where both classes are there), and how scores are spread; scores and targets [n] in [0, 1]."""
    found = score_metrics("binary", scores, targets, names=("auc", "ece"))
    return [
        _reliability(scores, targets, found["ece"].value),
        *_roc(scores, targets, found["auc"].value),
        _spread(scores, targets),
    ]


def reliability(scores: Floats, targets: Floats) -> tuple[Floats, Floats, Integers]:
    """(mean score, mean target, rows) of each of NUM_BINS equal bins that has any."""
    bins = np.minimum((scores * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    used = counts > 0
    means, shares = (np.bincount(bins, weights=of, minlength=NUM_BINS)[used] / counts[used] for of in (scores, targets))
    return means, shares, counts[used]


def _reliability(scores: Floats, targets: Floats, ece: float | None) -> Chart:
    means, shares, counts = reliability(scores, targets)
    low, high = wilson_interval(shares, counts)
    points = list(zip(means.tolist(), shares.tolist(), strict=True))
    return Chart(
        f"Reliability: calibration error (ECE) {measured(ece)}",
        [Line("mean target of a bin", points, marks=True)],
        f"{len(scores):,} rows in {len(points)} bins; on the dashed line a score is the share of yes.",
        "mean score",
        UNIT,
        UNIT,
        diagonal=True,
        intervals=list(zip(means.tolist(), low.tolist(), high.tolist(), strict=True)),
    )


def _roc(scores: Floats, targets: Floats, auc: float | None) -> list[Chart]:
    if auc is None:
        return []
    false, true, _ = roc_curve(targets >= 0.5, scores)
    points = list(zip(false.tolist(), true.tolist(), strict=True))
    about = "Share of yes found against share of no taken for yes, at every threshold."
    title = f"ROC: area under the curve (AUC) {measured(auc)}"
    return [Chart(title, [Line("true positive rate", points)], about, "false positive rate", UNIT, UNIT, diagonal=True)]


def _spread(scores: Floats, targets: Floats) -> Chart:
    lines = []
    for place, (name, chosen) in enumerate((("target no", targets < 0.5), ("target yes", targets >= 0.5))):
        if chosen.any():
            heights, edges = np.histogram(scores[chosen], bins=25, range=UNIT)
            shares = heights / chosen.sum()
            steps = [
                (float(edge), float(share)) for at, share in enumerate(shares) for edge in (edges[at], edges[at + 1])
            ]
            lines.append(Line(f"{name} ({int(chosen.sum()):,} rows)", steps, colour=1 - place))
    return Chart("Scores by class", lines, "Share of the class's rows in each of 25 bins.", "score", UNIT)


def calibration_table(run: RunFiles) -> str:
    """What the best checkpoint's calibration.json says it does to rows that it was not fitted on."""
    file = names.RunPaths(run.root).best / names.CALIBRATION_NAME
    record = read_json(file)
    if not isinstance(record, dict):
        return note("No calibration was fitted for the best checkpoint.")
    try:
        fitted = read_calibration(file)
    except WorkflowError as error:
        return note(str(error))
    assert fitted is not None
    if fitted.reason:
        return note(f"No calibration was fitted: {fitted.reason}.")
    reported: Mapping[str, MetricRecord] = {
        name: MetricRecord.model_validate(value) for name, value in (record.get("reported") or {}).items()
    }
    rows = []
    for method in fitted.methods:
        suffix = "" if method == "none" else f"_{method}"
        label = "as the model gives them" if method == "none" else method
        chosen = " (chosen)" if method == fitted.method else ""
        rows.append(
            [text(label + chosen), *(metric(reported.get(f"{name}{suffix}")) for name in ("ece", "brier", "log_loss"))]
        )
    caption = f"Best checkpoint's calibration, fitted on {fitted.num_rows:,} rows, measured on others"
    return table(caption, ["scores", "ECE", "Brier", "log loss"], rows)


def scored_section(run: RunFiles, looked: Looked, *, title: str, name: str) -> str:
    """The part of the page about a scorer's numbers."""
    return section(
        title, f'<p class="soft">Of the predictions at step {looked.step}.</p>', scored_part(run, looked), name=name
    )
