"""Made-up runs and studies, written as the program writes them: reports through the real model, study.json as agreed."""

from __future__ import annotations

import json
from pathlib import Path

from workflow.config.cascade import flatten
from workflow.config.clf_settings import ClfSettings
from workflow.config.settings import Seq2SeqSettings
from workflow.evaluation.report import Measured, MetricRecord, Report, Speed, write_report

KINDS = {"clf": ClfSettings, "seq2seq": Seq2SeqSettings}


def record(value, n=100, **more):
    """A metric's record; with a value, an interval of 0.05 to both sides unless another is given."""
    if value is None:
        return MetricRecord(value=None, n=n, reason=more.get("reason", "undefined here"))
    return MetricRecord(value=value, low=more.get("low", value - 0.05), high=more.get("high", value + 0.05), n=n)


def measured(step, metrics, slices=None):
    return Measured(
        step=step,
        metrics={name: record(value) for name, value in metrics.items()},
        slices={part: {name: record(v) for name, v in found.items()} for part, found in (slices or {}).items()},
    )


def report(
    run,
    best,
    *,
    final=None,
    entry="clf",
    data="cola",
    model="tiny",
    best_metric=None,
    slices=None,
    averages=None,
    finished="2024-05-01T10:00:00+0000",
    **settings,
):
    """A report whose `best` metrics are these; the last step's are the same unless given."""
    kind = KINDS[entry]
    return Report(
        run=run,
        task=entry,
        model=model,
        data=data,
        data_hash=f"hash-of-{data}",
        best_metric=best_metric or next(iter(best)),
        initial=None,
        final=measured(20, final or best, slices),
        best=measured(10, best, slices),
        averages={name: measured(20, of) for name, of in (averages or {}).items()},
        final_train_loss=0.5,
        steps=20,
        examples=320,
        epochs=2.0,
        speed=Speed(tokens_per_s=1.0, examples_per_s=1.0, train_seconds=1.0, mfu=None),
        settings={**flatten(kind()), "training_run_name": run, "data_name": data, "model_init_name": model, **settings},
        backend={},
        environment={"finished_at": finished},
    )


def write_run(models: Path, name, best, **more) -> Path:
    folder = models / name
    folder.mkdir(parents=True, exist_ok=True)
    write_report(folder / "report.json", report(name, best, **more))
    return folder


def point(name, labels, *, metrics=(), study="study", entry="clf", settings=None, **more):
    return {
        "name": name,
        "entry": entry,
        "run": f"{study}-{name}",
        "labels": labels,
        "metrics": list(metrics),
        "settings": settings or {},
        **more,
    }


def write_study(folder: Path, mount: Path, points, *, kind="suite") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    study = {"schema_version": 1, "kind": kind, "name": folder.name, "mount": str(mount), "points": points}
    (folder / "study.json").write_text(json.dumps(study))
    return folder


def write_job(folder: Path, name, log="", **job):
    place = folder / "points" / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "job.json").write_text(json.dumps(job))
    (place / "log.txt").write_text(log)


GLUE_METRICS = {
    "CoLA": ("mcc",),
    "SST-2": ("accuracy",),
    "MRPC": ("accuracy", "f1"),
    "STS-B": ("pearson", "spearman"),
    "QQP": ("accuracy", "f1"),
    "MNLI": ("accuracy",),
    "MNLI-mm": ("accuracy",),
    "QNLI": ("accuracy",),
    "RTE": ("accuracy",),
    "WNLI": ("accuracy",),
}


def glue_value(model, task, metric, seed):
    """Any number that differs between all of these, between 0.5 and 0.9."""
    number = sum(map(ord, f"{model}{task}{metric}")) * 7919 + seed * 104729
    return 0.5 + (number % 4001) / 10000


def write_glue(root: Path, *, models=("bert-tiny", "t5_tiny"), tasks=tuple(GLUE_METRICS), seeds=(0, 1, 2), left_out=()):
    """A suite over tasks, models and seeds; `left_out` (model, task, seed) has no report."""
    points = []
    for model in models:
        for task in tasks:
            for seed in seeds:
                name = f"{model}-{task}-{seed}"
                labels = {"task": task, "model": model, "setting": "base", "seed": seed, "train": None, "eval": None}
                own = {"model_init_name": model, "data_name": task, "seed": seed, "lr": 1e-3}
                points.append(point(name, labels, metrics=GLUE_METRICS[task], study="glue", settings=own))
                if (model, task, seed) not in left_out:
                    values = {metric: glue_value(model, task, metric, seed) for metric in GLUE_METRICS[task]}
                    write_run(root / "mount" / "models", f"glue-{name}", values, data=task, model=model, seed=seed)
    return write_study(root / "glue", root / "mount", points)
