"""The card of a checkpoint: facts from a task, written as `README.md` beside the weights.

Knows nothing of how a card reads (`pages.card`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow import __version__
from workflow.data.scoring import Scoring
from workflow.evaluation.calibration import Calibration
from workflow.evaluation.evaluator import Evaluation
from workflow.evaluation.score_evaluator import ScoreEvaluation
from workflow.files import whole_file
from workflow.models.classifier import LoadedClassifier, label_tokens
from workflow.models.load import is_path
from workflow.pages.card import CardFacts, card
from workflow.paths import CARD_NAME

if TYPE_CHECKING:
    from workflow.recipe.task import Task


def write_card(task: Task[Any], folder: Path, step: int, found: Evaluation | None, *, of: str = "", **own: Any) -> None:
    """Writes the card of the checkpoint after `step` updates, or of an average then; `own` are the facts that the kind of task adds. Raises OSError."""
    data, config, start = task.data, task.loaded.model.config, task.model_label
    splits = {"train": data.train, "eval": data.eval, "calibration": data.calibration}
    facts = CardFacts(
        run=task.run_name,
        step=step,
        start=start,
        start_is_hub=not is_path(start) and task.settings.model.model_init_name is None,
        data=Path(data.examples.label).name,
        data_hash=data.examples.fingerprint,
        rows={name: len(features) for name, features in splits.items()},
        family=str(config.model_type),
        size=task.loaded.size_text,
        metrics=found.metrics if found else None,
        best_metric=task.best_metric,
        truncated=_truncated(splits),
        training=_training(task),
        keep=task.settings.data.keep_source,
        average=task.strategies.about_average(of, step) if of else "",
        has_adapters=task.loaded.adapters is not None,
        version=__version__,
        **own,
    )
    with whole_file(folder / CARD_NAME) as file:
        file.write(card(facts))


def scorer_facts(
    loaded: LoadedClassifier, scoring: Scoring, max_length: int, found: Evaluation | None
) -> dict[str, Any]:
    """What the card of a model that scores says besides."""
    is_t5 = loaded.start_token is not None
    calibration = found.calibration if isinstance(found, ScoreEvaluation) else None
    return {
        "kind": "labels" if is_t5 else "head",
        "problem": scoring.problem,
        "labels": scoring.labels,
        "label_tokens": label_tokens(loaded.tokenizer, scoring.labels) if is_t5 else (),
        "range": (scoring.low, scoring.high),
        "template": scoring.template,
        "max_length": max_length,
        "calibration": _calibration_text(calibration),
    }


def _calibration_text(found: Calibration | None) -> str:
    if found is None or found.reason:
        why = f" ({found.reason})" if found is not None else ""
        return f"Scores are as the model gives them: no calibration was fitted{why}."
    which = "leaves scores as they are" if found.method == "none" else f"is by {found.method}"
    return f"`calibration.json`, fitted on {found.num_rows:,} rows, {which}; the code above gives uncalibrated scores."


def _truncated(splits: Mapping[str, Any]) -> list[str]:
    """One line for each part of the rows that was cut."""
    cuts = {
        (name, field): features.truncation(field)
        for name, features in splits.items()
        if len(features)
        for field in features.fields
        if field != "token_types"
    }
    lines = [
        f"{cut.rows:,} of the {name} rows lost {cut.tokens:,} tokens of their {field} to the length limit."
        for (name, field), cut in cuts.items()
        if cut.rows
    ]
    return lines or ["No row of the data was cut."]


def _training(task: Task[Any]) -> dict[str, Any]:
    settings = task.settings
    size = settings.training.train_batch_size * settings.training.gradient_accumulation_steps
    return {
        "updates of": f"{size} examples",
        "learning rate": _rates(task),
        "schedule": settings.optim.lr_scheduler,
        "optimizer": settings.optim.optimizer,
        "seed": settings.run.seed,
        **({"strategies": _strategies(task)} if task.strategies.strategies else {}),
    }


def _rates(task: Task[Any]) -> str:
    """The peak of the groups' rates, from the lowest to the highest where they differ."""
    lowest, highest = task.peak_rates[0], task.peak_rates[-1]
    return f"{highest:.3g}" if lowest == highest else f"{lowest:.3g} to {highest:.3g}"


def _strategies(task: Task[Any]) -> str:
    """Each that is on, with its settings."""
    chosen = task.settings.strategies.model_dump(mode="json", exclude_none=True)
    told = []
    for strategy in task.strategies.strategies:
        values = chosen.get(strategy.name)
        within = ", ".join(f"{name} {value}" for name, value in values.items()) if isinstance(values, dict) else ""
        told.append(f"{strategy.name} ({within})" if within else strategy.name)
    return " and ".join(told)
