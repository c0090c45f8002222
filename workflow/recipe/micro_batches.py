"""How large micro-batches are: as the user says, as a trial finds, or as running out of memory has taught.

Knows nothing of the loop. What was found is written into the run's folder, so that the run goes on with the same
micro-batches wherever it is interrupted; running out of memory lowers it there, and the run starts again from its
newest checkpoint. No update changes by that: micro-batches only divide it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from workflow.config.sections import TrainingSection
from workflow.data.division import MicroBatchLimits
from workflow.errors import BackendError, StartAgain
from workflow.files import read_json, write_json
from workflow.paths import RunPaths
from workflow.runtime import Ranks, on_first
from workflow.training.ds_config import BackendPlan
from workflow.training.memory_plan import CPU_TOKENS
from workflow.training.trainer import MicroBatchMemoryError

LEFT = 0.6
"""The share of a micro-batch's tokens that is tried after memory ran out."""


@dataclass(frozen=True)
class MicroBatches:
    """The limits of micro-batches and, for people, where they come from."""

    limits: MicroBatchLimits
    why: str

    def __str__(self) -> str:
        parts = [f"{self.limits.rows} examples"] if self.limits.rows else []
        parts += [f"{self.limits.tokens} tokens"] if self.limits.tokens else []
        return f"at most {' and '.join(parts)} in a forward pass of a rank: {self.why}"


class MicroBatchSizes:
    """What a run's folder knows of them. It holds in the circumstances (device, ranks, stage, ...) in which it was found."""

    def __init__(self, paths: RunPaths, circumstances: dict[str, Any], ranks: Ranks) -> None:
        self.file, self.circumstances, self.ranks = paths.micro_batches, circumstances, ranks

    def plan(
        self,
        training: TrainingSection,
        *,
        padded: bool,
        passes: int,
        of_one_length: bool,
        trial: Callable[[MicroBatchLimits], int] | None,
    ) -> MicroBatches:
        """What is set, what was found before, else what a trial finds, else what CPUs get; lower where memory ran out.

        A collective call. Raises StartAgain, or BackendError, where memory runs out in the trial.
        """
        asked = MicroBatchLimits(training.micro_batch_size, training.micro_batch_tokens, padded, passes, of_one_length)
        is_set = asked.rows is not None or asked.tokens is not None
        found = on_first(self._found, self.ranks)
        if found is not None and (found["lowered"] or not is_set):
            tokens = min(found["tokens"], asked.tokens or found["tokens"])
            return MicroBatches(replace(asked, tokens=tokens), found["why"])
        if is_set:
            return MicroBatches(asked, "as set")
        if trial is None:
            return MicroBatches(replace(asked, tokens=CPU_TOKENS), "what CPUs are given")
        try:
            tokens, why = trial(asked), "found by a trial"
        except torch.OutOfMemoryError as error:
            self._write(1, "memory ran out in a trial", lowered=True)
            raise StartAgain("out of memory in a trial; starting again with one example at a time") from error
        if self.ranks.is_first:
            self._write(tokens, why, lowered=False)
        return MicroBatches(replace(asked, tokens=tokens), why)

    def after_out_of_memory(self, failed: MicroBatchMemoryError) -> BackendError:
        """Notes down what the run shall go on with. The error that starts it again, or says why that would not help."""
        if failed.rows <= 1:
            return BackendError(
                f"step {failed.step}: out of memory on a single example of {failed.tokens} tokens; add --gradient_checkpointing, "
                "use --deepspeed zero3, or cut rows shorter; the same command with these continues the run"
            )
        tokens = max(1, int(failed.tokens * LEFT))
        found = self._found()
        if found is not None and found["lowered"]:  # another rank was here first
            tokens = min(tokens, found["tokens"])
        self._write(tokens, f"memory ran out at {failed.tokens} tokens, step {failed.step}", lowered=True)
        return StartAgain(f"{failed}; going on from the newest checkpoint with {tokens} tokens at a time")

    def _found(self) -> dict[str, Any] | None:
        if not self.file.is_file():
            return None
        found = read_json(self.file, broken=BackendError)
        return found if isinstance(found, dict) and found.get("circumstances") == self.circumstances else None

    def _write(self, tokens: int, why: str, *, lowered: bool) -> None:
        found = {"tokens": tokens, "why": why, "lowered": lowered, "circumstances": self.circumstances}
        write_json(self.file, found)


def circumstances_of(device: torch.device, ranks: Ranks, plan: BackendPlan, *, checkpointing: bool) -> dict[str, Any]:
    """All that the memory of a token depends on, beside what a run's settings fix."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "world_size": ranks.world_size,
        "deepspeed": plan.name,
        "precision": plan.precision,
        "gradient_checkpointing": checkpointing,
    }
