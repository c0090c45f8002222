"""What the configuration of a model with a classification head says: its labels, its kind of targets, its dropout.

Knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workflow.errors import ModelError

DROPOUTS = (
    "dropout_rate",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "classifier_dropout_prob",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "pooler_dropout",
    "embedding_dropout",
    "mlp_dropout",
)
"""What configurations of the model families call their dropout rates."""


def set_up(config: Any, problem: str, labels: Sequence[str], tokenizer: Any, dropout: float | None) -> None:
    """Writes these labels, this kind of targets and this dropout into a configuration."""
    names = labels if problem != "regression" else ["score"]
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {label: number for number, label in enumerate(names)}
    config.problem_type = {
        "multilabel": "multi_label_classification",
        "regression": "regression",
    }.get(problem, "single_label_classification")
    if config.pad_token_id is None:  # GPT-2 has none of its own
        config.pad_token_id = tokenizer.pad_token_id
    if dropout is not None:
        for key in DROPOUTS:
            if hasattr(config, key):
                setattr(config, key, dropout)


def own_labels(config: Any) -> tuple[str, ...]:
    """The names that a checkpoint gives its head's outputs, in their order; none where it has transformers' LABEL_0, ..."""
    found = tuple(str(label) for _, label in sorted((config.id2label or {}).items()))
    return () if found == tuple(f"LABEL_{number}" for number in range(len(found))) else found


def label_notes(name: str, own: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    """How the labels asked for differ from a trained head's own. Raises ModelError for the same ones in another order."""
    mine, theirs = [label.casefold() for label in labels], [label.casefold() for label in own]
    if not own or mine == theirs:
        return ()
    if sorted(mine) == sorted(theirs):
        raise ModelError(
            f"{name}: its head was trained with these labels in another order, so that each score would stand under another's "
            f"name; pass --labels {' '.join(own)}"
        )
    return (f"the checkpoint calls its labels {', '.join(own)}; here they are, in this order, {', '.join(labels)}",)
