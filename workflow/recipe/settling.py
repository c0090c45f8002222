"""What a scoring run's settings leave open, settled by its model and its data: labels, kind of targets, pairs or single texts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from workflow.config.clf_settings import ClfSettings, ScoreSection
from workflow.data.class_names import ClassNames
from workflow.data.examples import Examples
from workflow.data.scoring import Scoring
from workflow.data.texts import Reads, Texts
from workflow.errors import ConfigError, DataError, ModelError
from workflow.label_names import listed, places_of
from workflow.metric_names import SCORE_METRICS, usual_problem
from workflow.metric_names import listed as listed_metrics
from workflow.models.classifier import LoadedClassifier
from workflow.recipe.scorers import scoring_of


def settled(score: ScoreSection, asked: Scoring, name: str | None, names: ClassNames, *, trained: bool) -> Scoring:
    """How rows are scored by the model `name` (None for any) on data with these class names, where the settings do not say it.

    A model that is used as it is (`trained`) says its labels and its kind of targets. One to be trained keeps its labels
    where they are those of the data, or two without names; else the labels are the data's.
    """
    said, head = scoring_of(name) if name is not None else (None, None)
    reads = said.reads if said is not None and trained else None
    asked = replace(asked, reads=reads)
    is_open = score.problem == "auto"
    if "labels" in score.model_fields_set:
        says = head.says if head is not None and trained else None
        return replace(asked, problem=says) if is_open and says and head and head.fits(says, asked.labels) else asked
    if said is not None and trained:
        if head is not None and head.is_sigmoid(score.problem):
            return asked
        return replace(asked, labels=said.labels, problem=said.problem if is_open else score.problem)
    if said is not None and _keeps(said, names) and score.problem in ("auto", said.problem):
        return replace(asked, labels=said.labels, problem=said.problem)
    generates = name is not None and head is None  # a T5's labels are words of its vocabulary
    if len(names.names) > 1 and not (generates and len(names.names) == 2):
        return replace(asked, labels=names.names, problem=usual_problem(names.names) if is_open else score.problem)
    return asked


def _keeps(said: Scoring, names: ClassNames) -> bool:
    if said.problem not in ("binary", "multiclass"):
        return False
    return places_of(names.names, said.labels) is not None if names else len(said.labels) == 2


def check_metric(settings: ClfSettings, problem: str) -> None:
    """Raises ConfigError where the metric that chooses the best checkpoint is none of these targets."""
    known, name = SCORE_METRICS[problem], settings.evaluation.save_best_metric
    if name not in known:
        raise ConfigError(
            f"--save_best_metric {name}: no metric of {problem} targets, which these are; there are, best when: {listed_metrics(known)}"
        )


def check_classes(name: str, loaded: LoadedClassifier, names: ClassNames) -> None:
    """Raises ModelError where a trained head knows the data's classes by name, and the labels have other names."""
    head = loaded.own_head
    if head is None or not names or loaded.problem not in ("binary", "multiclass"):
        return
    if places_of(names.names, head.labels) is not None and places_of(names.names, loaded.labels) is None:
        raise ModelError(
            f"{name}: its head and the data call the classes {listed(head.labels)}, and --labels {' '.join(loaded.labels)} has "
            "other names, by which neither would be found; leave --labels out, or give these"
        )


def what_is_read(examples: Examples) -> tuple[Reads | None, list[str]]:
    """Whether the training rows are single texts or pairs (None for both), and what to tell of it.

    Raises DataError for eval and calibration rows of the other kind.
    """
    texts = Texts()
    counts = Counter(texts.kind_of(row) for row in examples.train)
    if len(counts) > 1:
        few, many = sorted(counts, key=lambda kind: counts[kind])
        first = next(number for number, row in enumerate(examples.train) if texts.kind_of(row) == few)
        words = {"texts": "single texts", "pairs": "pairs"}
        note = f"{counts[few]} of {len(examples.train)} training rows are {words[few]} beside {words[many]}, first train[{first}]"
        return None, [note]
    (reads,) = counts
    unread = texts.unread_partner(examples.train[0]) if reads == "texts" else None
    fit = Texts(reads=reads)
    for split in ("eval", "calibration"):
        for number, row in enumerate(examples.split(split)):
            if problem := fit.problem_of(row):
                raise DataError(f"{examples.label}: {split}[{number}] is not like the training rows: {problem}")
    return reads, [unread] if unread else []
