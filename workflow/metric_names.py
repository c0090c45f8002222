"""The names of all metrics and which way is better, so that settings can check a name before anything heavy is loaded.

Knows nothing of how a metric is computed (`evaluation`).
"""

from __future__ import annotations

TEXT_METRICS = ("exact_match", "token_f1", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "eval_loss", "cut_by_length")
SCORE_METRICS = {
    "binary": (
        "eval_loss",
        "accuracy",
        "auc",
        "average_precision",
        "f1_macro",
        "precision_macro",
        "recall_macro",
        "mcc",
        "spearman",
        "pearson",
        "rmse",
        "brier",
        "ece",
        "log_loss",
    ),
    "multiclass": (
        "eval_loss",
        "accuracy",
        "auc",
        "f1_macro",
        "precision_macro",
        "recall_macro",
        "mcc",
        "brier",
        "ece",
        "log_loss",
    ),
    "multilabel": (
        "eval_loss",
        "accuracy",
        "auc",
        "average_precision",
        "f1_macro",
        "precision_macro",
        "recall_macro",
        "brier",
        "ece",
        "log_loss",
    ),
    "regression": ("eval_loss", "spearman", "pearson", "rmse"),
}
"""What is measured for each kind of target."""

LOWER_IS_BETTER = frozenset({"eval_loss", "cut_by_length", "rmse", "brier", "ece", "log_loss"})


def higher_is_better(name: str) -> bool:
    """Whether a metric is best when high."""
    return name not in LOWER_IS_BETTER


def listed(names: tuple[str, ...]) -> str:
    """Names with their direction, for messages: `auc (high), rmse (low)`."""
    return ", ".join(f"{name} ({'high' if higher_is_better(name) else 'low'})" for name in names)
