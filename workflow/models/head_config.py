"""What the configuration of a model with a classification head says: its labels, its kind of targets, its dropout.

Knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workflow.errors import ModelError
from workflow.label_names import listed, place_of, places_of

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


PLACEHOLDER = "LABEL_{}"
"""What transformers calls outputs without names."""
PROBLEM_TYPES = {
    "multi_label_classification": "multilabel",
    "regression": "regression",
    "single_label_classification": None,
}


@dataclass(frozen=True)
class OwnHead:
    """What a checkpoint's configuration says of its head; `labels` are none where its outputs have no names."""

    outputs: int
    labels: tuple[str, ...]
    says: str | None
    """multilabel or regression, where `problem_type` says so; binary for one output that it calls multi-label."""

    @property
    def problem(self) -> str:
        """What its outputs are, as said, else by their number: one is a number, two are binary, more are classes."""
        return self.says or {1: "regression", 2: "binary"}.get(self.outputs, "multiclass")

    @property
    def names(self) -> tuple[str, ...]:
        """Its labels; without names those of its places, which for two are no and yes."""
        if self.outputs == 1 or (self.problem == "binary" and not self.labels):
            return ("no", "yes")
        return self.labels or tuple(PLACEHOLDER.format(place) for place in range(self.outputs))

    def notes(self) -> tuple[str, ...]:
        """What was assumed where the configuration does not say it."""
        if self.outputs == 1 and self.says is None:
            return ("its head has one output, read as a number; --problem binary reads it as a yes by a sigmoid",)
        if self.outputs > 2 and not self.labels:
            return (f"its head's {self.outputs} outputs have no names; --labels names them, in their order",)
        return ()

    def is_sigmoid(self, problem: str) -> bool:
        """Whether its one output is the logit of yes."""
        return self.outputs == 1 and problem == "binary" and self.says != "regression"

    def sigmoid_place(self, labels: Sequence[str]) -> int:
        """Which of two labels its one output is the logit of: the one of its name, else the second."""
        return 0 if self.labels and place_of(self.labels[0], labels) == 0 else 1

    def fits(self, problem: str, labels: Sequence[str]) -> bool:
        """Whether its outputs are as many as these targets need."""
        wanted = 1 if problem == "regression" else len(labels)
        return wanted == 2 if self.is_sigmoid(problem) else wanted == self.outputs


def own_head(config: Any) -> OwnHead:
    """What a configuration says of its head."""
    labels = tuple(str(label) for _, label in sorted((config.id2label or {}).items()))
    unnamed = labels == tuple(PLACEHOLDER.format(place) for place in range(len(labels)))
    says = PROBLEM_TYPES.get(config.problem_type or "")
    return OwnHead(
        len(labels), () if unnamed else labels, "binary" if says == "multilabel" and len(labels) == 1 else says
    )


def label_notes(own: OwnHead, problem: str, labels: Sequence[str]) -> tuple[str, ...]:
    """How what is asked of a trained head differs from what it says of itself."""
    found = []
    if own.says not in (None, "binary", problem):
        found.append(f"the checkpoint says that its head is for {own.says} targets; here they are {problem}")
    if own.is_sigmoid(problem):
        found.append(f"its head's one output is read as the logit of {labels[own.sigmoid_place(labels)]}, by a sigmoid")
    elif own.labels and problem != "regression" and (places := places_of(labels, own.labels)) != in_order(own.labels):
        told = f"the checkpoint calls its labels {listed(own.labels)}; here they are, in this order, {listed(labels)}"
        found.append(told if places is None else f"{told}; each output was put in its label's place, by name")
    return tuple(found)


def in_order(labels: Sequence[str]) -> tuple[int, ...]:
    """0, 1, 2, ..."""
    return tuple(range(len(labels)))


def check_trained_head(name: str, own: OwnHead, problem: str, labels: Sequence[str]) -> None:
    """Raises ModelError where a trained head cannot mean what is asked of it."""
    what = f"{own.outputs} output{'s' if own.outputs > 1 else ''}" + (f" ({listed(own.labels)})" if own.labels else "")
    if own.says == "regression" and own.outputs > 1:
        raise ModelError(f"{name}: its head gives {own.outputs} numbers for an input; this program reads one")
    if not own.fits(problem, labels):
        wanted = "regression targets" if problem == "regression" else f"{problem} targets with labels {listed(labels)}"
        raise ModelError(
            f"{name}: its head has {what}, and no output for each of {wanted}; leave --labels and --problem out, or "
            "name as many labels as it has outputs"
        )
    strayed = [label for place, label in enumerate(labels) if place_of(label, own.labels) not in (None, place)]
    if problem != "regression" and not own.is_sigmoid(problem) and strayed and places_of(labels, own.labels) is None:
        raise ModelError(
            f"{name}: its head has {what}; of --labels {' '.join(labels)}, {listed(strayed)} stands elsewhere there, and "
            "others have no such name; give all of its names, or leave --labels out"
        )
