"""The names of all metrics and which way is better, so that settings can check a name before anything heavy is loaded.

Knows nothing of how a metric is computed (`evaluation`).
"""

from __future__ import annotations

from collections.abc import Sequence

TEXT_METRICS = ("exact_match", "token_f1", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "eval_loss", "cut_by_length")
_OF_CLASSES = ("f1_macro", "precision_macro", "recall_macro")
_OF_NUMBERS = ("spearman", "pearson", "rmse")
_OF_PROBABILITIES = ("brier", "ece", "log_loss")
_RANKING = ("auc", "average_precision")
SCORE_METRICS = {
    "binary": ("eval_loss", "accuracy", "f1", *_RANKING, *_OF_CLASSES, "mcc", *_OF_NUMBERS, *_OF_PROBABILITIES),
    "multiclass": ("eval_loss", "accuracy", "auc", *_OF_CLASSES, "mcc", *_OF_PROBABILITIES),
    "multilabel": ("eval_loss", "accuracy", *_RANKING, *_OF_CLASSES, *_OF_PROBABILITIES),
    "regression": ("eval_loss", *_OF_NUMBERS),
}
"""What is measured for each kind of target."""

LOWER_IS_BETTER = frozenset({"eval_loss", "cut_by_length", "rmse", "brier", "ece", "log_loss"})


def usual_problem(labels: Sequence[str]) -> str:
    """The kind of target that labels mean unless another is named: binary for two of them, else multi-class."""
    return "binary" if len(labels) == 2 else "multiclass"


def higher_is_better(name: str) -> bool:
    """Whether a metric is best when high."""
    return name not in LOWER_IS_BETTER


def listed(names: tuple[str, ...]) -> str:
    """Names with their direction, for messages: `auc (high), rmse (low)`."""
    return ", ".join(f"{name} ({'high' if higher_is_better(name) else 'low'})" for name in names)


ALIASES = {
    "macro_f1": "f1_macro",
    "macro_precision": "precision_macro",
    "macro_recall": "recall_macro",
    "matthews_correlation": "mcc",
    "acc": "accuracy",
}
"""Names that other programs have for our metrics."""
NOT_PERCENT = LOWER_IS_BETTER | {"bleu", "chrf"}
"""Metrics that tables show as they are; all others are shares, or correlations, and shown times 100."""


def metric_of(name: str) -> str:
    """Our name of a metric that may go by another."""
    return ALIASES.get(name, name)
