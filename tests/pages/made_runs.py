"""Run folders made by hand: what a run leaves, without training one."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

from workflow.config.cascade import Layer, resolve
from workflow.config.clf_settings import ClfSettings
from workflow.config.settings import Seq2SeqSettings
from workflow.data.targets import Targets
from workflow.evaluation.report import Measured, Report, Speed, records, write_report
from workflow.evaluation.score_evaluator import measure
from workflow.evaluation.score_files import write_scores
from workflow.evaluation.text_metrics import text_metrics
from workflow.files import write_json

STEPS = (0, 10, 20)
NASTY = [
    "<script>window.slipped = 1</script><img src='http://example.org/x.png' onerror='slipped()'>",
    "\u05e9\u05dc\u05d5\u05dd \u202e reversed \u0645\u0631\u062d\u0628\u0627",
    "\U0001f469\u200d\U0001f52c \U0001f1e8\U0001f1ed emoji",
    "long " * 20_000,
    "'\"&<>`",
    "null \x00 bell \x07",
]


def settings_of(task: str, **given) -> dict:
    kind = ClfSettings if task == "clf" else Seq2SeqSettings
    resolved = resolve(kind, [Layer("flag", {"model_init_path": "some/model", "data_name": "toy", **given})])
    flat = resolved.flat()
    return {
        "schema_version": 1,
        "settings": flat,
        "origins": {name: resolved.origin_text(name) for name in flat},
        "data_hash": "feedbeef" * 4,
        "inputs": {},
    }


def training_lines(last: int, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    return [
        {
            "step": step,
            "loss": 2 / step + rng.random() / 10,
            "grad_norm": rng.random(),
            "lr": 1e-3 * (1 - step / (last + 1)),
            "tokens_per_s": 1000 + 100 * rng.random(),
            "examples": 8 * step,
        }
        for step in range(1, last + 1)
    ]


def write_lines(root: Path, lines: list[dict]) -> None:
    lines = sorted(lines, key=lambda line: line["step"])
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def report_of(root: Path, task: str, settings: dict, measured: dict[int, Measured], best: str) -> Report:
    last = max(measured)
    return Report(
        run=root.name,
        task=task,
        model="some/model",
        data="toy.json",
        data_hash="feedbeef" * 4,
        best_metric=best,
        initial=measured[0],
        final=measured[last],
        best=measured[sorted(measured)[-2]],
        final_train_loss=0.1,
        steps=last,
        examples=8 * last,
        epochs=1.5,
        speed=Speed(tokens_per_s=1000, examples_per_s=10, train_seconds=75, mfu=None),
        settings=settings["settings"],
        backend={"name": "zero0", "ranks": 1},
        environment={"versions": {"torch": "2"}, "hardware": {"device": "cpu"}, "commit": "abc"},
    )


def scored_run(root: Path, *, finished: bool = True, rows: int = 60, seed: int = 0, **given) -> Path:
    """A binary scorer's run, whose scores become better over the steps; some inputs are nasty."""
    root.mkdir(parents=True)
    settings = settings_of("clf", **{"slice_by": "kind", **given})
    write_json(root / "args.json", settings)
    rng = np.random.default_rng(seed)
    targets = Targets()
    data = [{"input": NASTY[row % 6], "target": int(rng.random() < 0.4), "kind": f"<{row % 2}>"} for row in range(rows)]
    wanted = np.array([targets.vector(row["target"]) for row in data])
    lines, measured = training_lines(STEPS[-1], seed), {}
    for step in STEPS:
        margin = (2 * wanted[:, 1] - 1) * step / 10 + rng.normal(size=rows)
        yes = 1 / (1 + np.exp(-margin))
        vectors = np.stack([1 - yes, yes], axis=1)
        write_scores(
            root / f"checkpoint-{step}-preds.json", data, vectors, targets, scores_only=bool(given.get("scores_only"))
        )
        found = measure("binary", vectors, wanted)
        slices = {f"<{kind}>": records(measure("binary", vectors[kind::2], wanted[kind::2])) for kind in (0, 1)}
        measured[step] = Measured(step=step, metrics=records(found), slices=slices)
        values = {name: metric.value for name, metric in found.items()}
        lines.append({"step": step, "eval_loss": 1 / (step + 1), **values, "swa_auc": 0.5})
    write_lines(root, lines)
    if finished:
        write_report(root / "report.json", report_of(root, "clf", settings, measured, "auc"))
    return root


def text_run(root: Path, *, finished: bool = True, rows: int = 20, **given) -> Path:
    """A run that writes texts: at step 20 every other row is right."""
    root.mkdir(parents=True)
    settings = settings_of("seq2seq", **given)
    write_json(root / "training_args.json", settings)
    prompts = [NASTY[row % 6] for row in range(rows)]
    lines, measured = training_lines(STEPS[-1]), {}
    for step in STEPS:
        answers = [f"a b c {row}" if step == 20 and row % 2 else f"<b>no</b> {'a ' * (row % 3)}" for row in range(rows)]
        found = [
            {
                "prompt": prompt,
                "generations": [{"lm_postprocess": answer, "scores": None, "full_generated": answer}],
                "demonstration": "",
                "orig_d": {"prompt": prompt, "completion": f"a b c {row}"},
            }
            for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ]
        write_json(root / f"temperature=0.00_n=1_step={step}.json", found)
        metrics = text_metrics([f"a b c {row}" for row in range(rows)], [[answer] for answer in answers])
        measured[step] = Measured(step=step, metrics=records(metrics))
        lines.append({"step": step, "eval_loss": 1.0, **{name: metric.value for name, metric in metrics.items()}})
    write_lines(root, lines)
    if finished:
        write_report(root / "report.json", report_of(root, "seq2seq", settings, measured, "exact_match"))
    return root
