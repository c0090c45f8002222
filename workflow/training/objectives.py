"""What training minimises: sums over the rows of a micro-batch, so that any division of an update adds up.

Knows nothing of ranks, accumulation or the backend; of a model, only whether it takes ragged batches or padded ones.
An objective says what an update's sum is divided by (label tokens, or examples), which the rows tell without asking
the other ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from workflow.data.encoders import INPUT
from workflow.data.features import Features, IntArray
from workflow.data.packing import IGNORED_LABEL, Batch, Ragged, ScoreBatch, collate, collate_scores, ragged
from workflow.models.classifier import LoadedClassifier
from workflow.strategies.base import LogitLoss
from workflow.strategies.composed import LossForm
from workflow.training.flops import Dimensions

Rows = npt.NDArray[np.int64]


class Objective(Protocol):
    """What the trainer needs to know of a task."""

    @property
    def source_lengths(self) -> IntArray:
        """Input tokens of each training row."""

    @property
    def target_lengths(self) -> IntArray:
        """Output tokens of each training row; with the inputs', the work that a row makes."""

    @property
    def dimensions(self) -> Dimensions | None:
        """What the FLOPs follow from, or None where that is not known."""

    @property
    def passes(self) -> int:
        """How often each row goes through the model in an update."""

    def divisor(self, rows: Rows) -> float:
        """What the summed loss of these rows is divided by."""

    def loss_sum(self, model: Any, rows: Sequence[int], *, seed: int | None = None) -> torch.Tensor:
        """The summed loss of these rows (zero, through a whole forward pass, without rows). `model` may be wrapped.

        With a seed, the masks of dropout over ragged batches are a function of it and of the row.
        """


class CompletionLoss:
    """Cross-entropy of completions, in nats per label token; for training maybe another loss, which a ragged model's head
    then computes itself (`HeadLoss.train_by`)."""

    def __init__(
        self,
        config: Any,
        features: Features,
        *,
        pad_id: int,
        device: torch.device,
        dimensions: Dimensions | None = None,
        is_ragged: bool = False,
        form: LossForm | None = None,
    ) -> None:
        self.form = form
        self.passes = form.passes if form is not None else 1
        self.config = config
        self.is_ragged = is_ragged
        self.features = features
        self.pad_id = pad_id
        self.device = device
        self.dimensions = dimensions
        self.source_lengths = features.lengths("prompt")
        self.target_lengths = features.lengths("completion")

    def divisor(self, rows: Rows) -> float:
        """Label tokens."""
        return float(self.target_lengths[rows].sum())

    def loss_sum(self, model: Any, rows: Sequence[int], *, seed: int | None = None) -> torch.Tensor:
        """The sum over label tokens."""
        if not self.is_ragged:
            return self._padded_sum(model, rows)
        source, target = (part.repeated(self.passes) for part in self._ragged(rows, seed))
        loss: torch.Tensor = model(source, target)
        return loss if rows else loss * 0.0

    def _padded_sum(self, model: Any, rows: Sequence[int]) -> torch.Tensor:
        if self.form is None:
            return self.padded_losses(model, rows).sum()
        batch = collate(self.features, rows, pad_id=self.pad_id).to(self.device)
        logits = token_logits(model, batch.repeated(self.passes), self.config)
        labels = batch.labels.flatten()
        real = labels != IGNORED_LABEL
        losses = self.form.loss(logits.reshape(self.passes, -1, logits.shape[-1])[:, real], labels[real])
        return losses.sum() if rows else logits.sum() * 0.0

    @torch.no_grad()
    def row_losses(self, model: Any, rows: Sequence[int]) -> torch.Tensor:
        """The sum over each row's label tokens, fp32 [rows]."""
        if not self.is_ragged:
            return self.padded_losses(model, rows).sum(dim=1)[: len(rows)]
        source, target = self._ragged(rows)
        parts = model(source, target).split(target.lengths)
        return torch.stack([part.sum() for part in parts])[: len(rows)]

    def padded_losses(self, model: Any, rows: Sequence[int]) -> torch.Tensor:
        """[rows, longest completion], by the forward of transformers."""
        batch = collate(self.features, rows, pad_id=self.pad_id).to(self.device)
        return token_losses(model, batch, self.config)

    def _ragged(self, rows: Sequence[int], seed: int | None = None) -> tuple[Ragged, Ragged]:
        source, target = (
            ragged(self.features, field, rows, pad_id=self.pad_id, seed=seed).to(self.device)
            for field in ("prompt", "completion")
        )
        return source, target


class ScoreLoss:
    """Divergence of scores from targets, averaged over examples."""

    def __init__(
        self,
        loaded: LoadedClassifier,
        features: Features,
        *,
        pad_id: int,
        device: torch.device,
        dimensions: Dimensions | None = None,
        is_ragged: bool = False,
        form: LossForm | None = None,
    ) -> None:
        self.form = form
        self.passes = form.passes if form is not None else 1
        self.loaded = loaded
        self.is_ragged = is_ragged
        self.features = features
        self.pad_id = pad_id
        self.device = device
        self.dimensions = dimensions
        self.source_lengths = features.lengths(INPUT)
        self.target_lengths = np.full(len(features), 1 if loaded.start_token is not None else 0, dtype=np.int32)

    def divisor(self, rows: Rows) -> float:
        """Examples."""
        return float(len(rows))

    def loss_sum(self, model: Any, rows: Sequence[int], *, seed: int | None = None) -> torch.Tensor:
        """The sum over examples."""
        logits = self._logits(model, rows, seed)
        if not rows:
            return logits.sum() * 0.0
        targets = torch.from_numpy(self.features.targets[list(rows)]).to(self.device)
        if self.form is not None:
            return self.form.loss(logits.view(self.passes, -1, logits.shape[1]), targets).sum()
        return score_losses(self.loaded.problem, logits, targets).sum()

    def _logits(self, model: Any, rows: Sequence[int], seed: int | None) -> torch.Tensor:
        if self.is_ragged:
            pack = ragged(self.features, INPUT, rows, pad_id=self.pad_id, seed=seed).to(self.device)
            return model(pack.repeated(self.passes))  # type: ignore[no-any-return]
        batch = collate_scores(self.features, rows, pad_id=self.pad_id).to(self.device)
        return batch_logits(model, self.loaded, batch.repeated(self.passes))


def batch_logits(model: Any, loaded: LoadedClassifier, batch: ScoreBatch) -> torch.Tensor:
    """fp32 [rows, width]; `model` is what to call, maybe wrapped."""
    return loaded.logits(
        model, input_ids=batch.input_ids, attention_mask=batch.attention_mask, token_types=batch.token_types
    )


def score_losses(problem: str, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of each row, fp32 [rows]; `logits` and `targets` are [rows, width].

    Binary and multi-class: KL(target || score), which is cross-entropy for hard targets and 0 for a perfect score.
    Multi-label: binary cross-entropy, averaged over the labels. Regression: squared error.
    """
    if problem == "regression":
        return (logits - targets).square().mean(dim=1)
    if problem == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)
    return F.kl_div(logits.log_softmax(dim=1), targets, reduction="none").sum(dim=1)


def shift_right(labels: torch.Tensor, *, start_token: int, pad_token: int) -> torch.Tensor:
    """Decoder inputs [rows, length]: the start token, then all labels but the last, ignored ones as padding."""
    shifted = labels.new_full(labels.shape, start_token)
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill(shifted == IGNORED_LABEL, pad_token)


def token_losses(model: Any, batch: Batch, config: Any) -> torch.Tensor:
    """Cross-entropy of each label, fp32 [rows, length], 0 where ignored.

    `model` is what to call, maybe wrapped by the backend (whose own `config` is another); `config` is the model's.
    """
    logits = token_logits(model, batch, config)
    losses = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
    return losses.view_as(batch.labels)


def token_logits(model: Any, batch: Batch, config: Any) -> torch.Tensor:
    """fp32 [rows, length, vocabulary]; arguments as for `token_losses`."""
    logits: torch.Tensor = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        decoder_input_ids=shift_right(
            batch.labels, start_token=config.decoder_start_token_id, pad_token=config.pad_token_id
        ),
        use_cache=False,
    ).logits
    return logits.float()


def token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy as strategies wrap it: logits [1, n, vocabulary], labels [n] -> [n]."""
    return F.cross_entropy(logits[0], labels, reduction="none")


def score_loss(problem: str) -> LogitLoss:
    """`score_losses` as strategies wrap it: logits [1, n, width], targets [n, width] -> [n]."""
    return lambda logits, targets: score_losses(problem, logits[0], targets)
