"""What training minimises: sums over the label tokens of a batch, so that any division of an update adds up.

Knows nothing of ranks, accumulation or the backend.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from workflow.data.packing import IGNORED_LABEL, Batch


def shift_right(labels: torch.Tensor, *, start_token: int, pad_token: int) -> torch.Tensor:
    """Decoder inputs [rows, length]: the start token, then all labels but the last, ignored ones as padding."""
    shifted = labels.new_full(labels.shape, start_token)
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill(shifted == IGNORED_LABEL, pad_token)


def token_losses(model: Any, batch: Batch, config: Any) -> torch.Tensor:
    """Cross-entropy of each label, fp32 [rows, length], 0 where ignored.

    `model` is what to call, maybe wrapped by the backend (whose own `config` is another); `config` is the model's.
    """
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        decoder_input_ids=shift_right(
            batch.labels, start_token=config.decoder_start_token_id, pad_token=config.pad_token_id
        ),
        use_cache=False,
    ).logits
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    return losses.view_as(batch.labels)
