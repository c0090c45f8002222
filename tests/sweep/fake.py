"""A made-up entry program: a second of work instead of a training, with the same flags, files and exit codes.

The metric is a known function of the settings, so that tests know which point must win.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
import time

from workflow.config.clf_settings import ClfSettings
from workflow.config.flags import parse


def accuracy(lr: float, batch: int, seed: int) -> float:
    """Best at lr = 1e-3 and small batches; seeds shift it a little."""
    return 0.9 - 0.1 * abs(math.log10(lr) + 3) - 0.001 * batch + 0.01 * ((seed * 7) % 3 - 1)


def predict(run, share: float, seed: int, of: str = "") -> float:
    """Writes predictions that are right in about this share of 200 rows; gives the share that is."""
    chance = random.Random(seed)
    records = []
    for number in range(200):
        target = number % 2
        right = chance.random() < share
        records.append(
            {
                "orig_d": {"input": f"row {number}", "target": target},
                "pred_score": 0.8 if right == bool(target) else 0.2,
            }
        )
    (run / f"{of}checkpoint-9-preds.json").write_text(json.dumps(records))
    return sum((record["pred_score"] > 0.5) == record["orig_d"]["target"] for record in records) / 200


def slices(settings, records) -> dict:
    """The metrics of each part of the eval rows: the longer its name, the worse; no data is read without --slice_by."""
    if (key := settings.evaluation.slice_by) is None:
        return {}
    rows = json.loads((settings.run.mount / "data" / f"{settings.data.data_name}.json").read_text())["eval"]
    worse = {row[key]: 0.01 * len(row[key]) for row in rows}
    return {
        name: {metric: {**record, "value": record["value"] - by} for metric, record in records.items()}
        for name, by in worse.items()
    }


def main() -> None:
    settings = parse(ClfSettings, sys.argv[1:], prog="fake", example="").settings
    run = settings.run.mount / "models" / settings.run.training_run_name
    run.mkdir(parents=True, exist_ok=True)
    with (run.parent / "starts.log").open("a") as log:
        log.write(f"{run.name}\n")
    if settings.score.template == "fails" and settings.run.seed == 1 and not (run.parent / "mended").exists():
        print("error: the made-up failure", file=sys.stderr)
        sys.exit(1)
    lr = settings.optim.lr or 1e-4
    value = accuracy(lr, settings.training.train_batch_size, settings.run.seed)
    if settings.data.data_name == "rows":
        value = predict(run, value, settings.run.seed)
    evaluations = 9 if settings.training.max_steps == 9 else 1
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
    with (run / "metrics.jsonl").open("w") as metrics:
        for step in range(1, evaluations + 1):
            time.sleep(float(os.environ.get("FAKE_S", "0.05")))
            metrics.write(
                json.dumps({"step": step, "eval_loss": 1 - value, "accuracy": value * step / evaluations}) + "\n"
            )
            metrics.flush()
    if value < float(os.environ.get("FAKE_LINGERS_BELOW", "0")):  # as long as it takes to be stopped
        time.sleep(120)
    records = {
        "accuracy": {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 11},
        "eval_loss": {"value": 1 - value, "n": 11},
    }
    measured = {"step": 9, "metrics": records, "slices": slices(settings, records)}
    report = {
        "schema_version": 1,
        "run": run.name,
        "task": "clf",
        "model": "made-up",
        "data": str(settings.data.data_name),
        "data_hash": "0" * 16,
        "best_metric": "accuracy",
        "initial": None,
        "final": measured,
        "best": measured,
        "final_train_loss": 0.1,
        "steps": 9,
        "examples": 9,
        "epochs": 1.0,
        "speed": {"tokens_per_s": 1.0, "examples_per_s": 1.0, "train_seconds": 1.0, "mfu": None},
        "settings": settings.model_dump(mode="json"),
        "backend": {},
        "environment": {},
    }
    if settings.strategies.swa is not None:
        averaged = predict(run, value, settings.run.seed + 100, "swa-")
        records = {"accuracy": {"value": averaged, "n": 200}}
        report["averages"] = {"swa": {"step": 9, "metrics": records, "slices": {}}}
    (run / ".report").write_text(json.dumps(report))
    (run / ".report").rename(run / "report.json")


if __name__ == "__main__":
    main()
