"""Who is measured by `training_gpu.py`: our forward with each back end of attention, and transformers' Seq2SeqTrainer."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from gpu_rows import NO, YES, Packed, Row, make, padded

from workflow.models.classifier import LabelRows
from workflow.models.ragged_training import RaggedScorer, RaggedT5
from workflow.models.shapes import Shape
from workflow.training.flops import T5Dimensions

LR, CLIP = 5e-5, 1.0


@dataclass(frozen=True)
class Place:
    """Where and how contenders compute; `is_direct` without DeepSpeed."""

    device: torch.device
    dtype: torch.dtype
    is_direct: bool


class Stopwatch:
    """Moments on the device's own clock, which the host does not wait for until it reads them."""

    def __init__(self, device: torch.device) -> None:
        self.is_gpu = device.type == "cuda"
        self.moments: list[Any] = []

    def press(self) -> None:
        """Now, after all work that was asked for."""
        if self.is_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.moments.append(event)
        else:
            self.moments.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between one moment and the next."""
        pairs = list(zip(self.moments[:-1], self.moments[1:], strict=True))
        if not self.is_gpu:
            return [b - a for a, b in pairs]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1000 for a, b in pairs]


def micro_batches(rows: Sequence[Row], parts: int) -> Iterator[Sequence[Row]]:
    """Neighbours in length together, as our trainer deals them."""
    ordered = sorted(rows, key=lambda row: -len(row[0]) - len(row[1]))
    size = -(-len(rows) // parts)
    return (ordered[start : start + size] for start in range(0, len(rows), size))


class Direct:
    """bf16 weights with fp32 masters, fp32 sums of gradients and fused AdamW, by hand."""

    name = "by hand"

    def __init__(self, model: Any, form: Any, place: Place) -> None:  # noqa: ARG002
        self.form = form
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.masters = [weight.detach().clone().float().requires_grad_() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(self.masters, lr=LR, weight_decay=0.0, fused=True)
        for weight, master in zip(self.weights, self.masters, strict=True):
            weight.register_post_accumulate_grad_hook(lambda weight, master=master: self._move(weight, master))

    @staticmethod
    def _move(weight: Any, master: Any) -> None:
        if master.grad is None:
            master.grad = weight.grad.float() if weight.dtype != torch.float32 else weight.grad.clone()
        else:
            master.grad += weight.grad
        weight.grad = None

    def reset(self) -> None:
        """Forgets what an update that failed has left."""
        for one in (*self.weights, *self.masters):
            one.grad = None

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:  # noqa: ARG002
        """Adds to the sums."""
        loss.backward()

    def step(self) -> None:
        """Clips, updates, and rounds the masters to weights."""
        torch.nn.utils.clip_grad_norm_([master for master in self.masters if master.grad is not None], CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.masters)


class ThroughBackend:
    """Our own backend."""

    def __init__(self, model: Any, form: Any, place: Place) -> None:
        from workflow.training.backend import Backend
        from workflow.training.ds_config import plan_backend
        from workflow.training.optim import make_optimizer, parameter_groups

        precision = "bf16" if place.dtype == torch.bfloat16 else "fp32"
        plan = plan_backend(
            deepspeed="auto",
            precision=precision,
            optimizer="adamw",
            world_size=1,
            max_grad_norm=CLIP,
            micro_batch_size=1,
        )
        optimizer = make_optimizer("adamw", parameter_groups(model, lr=LR, weight_decay=0.0))
        self.backend = Backend(model, optimizer, plan, max_grad_norm=CLIP, device=place.device, form=form)
        self.name = f"DeepSpeed {plan.name}"
        self.form = self.backend.wrapped

    def reset(self) -> None:
        """Nothing: sums that an update which failed has left change numbers, but no times."""

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Adds gradients."""
        self.backend.backward(loss, is_last=is_last)

    def step(self) -> None:
        """Clips and updates."""
        self.backend.step(1.0)


class Ours:
    """A model in our form, with an optimizer; one for all back ends of attention."""

    def __init__(self, shape: Shape, mix: str, place: Place) -> None:
        self.scores = mix == "cola"
        self.device = place.device
        model = make(shape, place.dtype, place.device)
        self.dimensions = T5Dimensions.of(model.config, num_outputs=2 if self.scores else None)
        if self.scores:
            model.lm_head = LabelRows(model.lm_head.weight, [YES, NO]).to(place.device)
        self.form = RaggedScorer(model) if self.scores else RaggedT5(model)
        self.engine = (Direct if place.is_direct else ThroughBackend)(model, self.form, place)
        self.engine.form.train()

    def flops(self, row: Row) -> float:
        """Of a row, in training."""
        return self.dimensions.training_flops(len(row[0]), 1 if self.scores else len(row[1]))

    def loss(self, rows: Sequence[Row]) -> torch.Tensor:
        """Summed over the rows."""
        source = Packed.of([row[0] for row in rows], self.device)
        if not self.scores:
            return self.engine.form(source, Packed.of([row[1] for row in rows], self.device))  # type: ignore[no-any-return]
        labels = Packed.of([np.array([0 if row[1][0] == YES else 1]) for row in rows], self.device).ids
        return torch.nn.functional.cross_entropy(self.engine.form(source), labels, reduction="sum")

    def turn(self, updates: Sequence[Sequence[Row]], attention: str, parts: int) -> list[float]:
        """Seconds of each update but the first."""
        self.form.attention = attention
        self.engine.reset()
        watch = Stopwatch(self.device)
        for rows in updates:
            divisor = float(len(rows) if self.scores else sum(len(row[1]) for row in rows))
            batches, total = list(micro_batches(rows, parts)), torch.zeros((), device=self.device)
            for number, batch in enumerate(batches, start=1):
                loss = self.loss(batch)
                self.engine.backward(loss / divisor, is_last=number == len(batches))
                total += loss.detach()
            self.engine.step()
            assert math.isfinite(float(total)), "the loss is not finite"  # our trainer looks too
            watch.press()
        return watch.seconds()

    def close(self) -> None:
        """Lets go of what hangs on the backend."""
        if isinstance(self.engine, ThroughBackend):
            self.engine.backend.destroy()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hides traces of our process group, which would make transformers divide the work."""
    hidden = {name: os.environ.pop(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ}
    try:
        yield
    finally:
        os.environ |= hidden


class Clock(transformers.TrainerCallback):
    """When each step ended."""

    def __init__(self, device: torch.device) -> None:
        self.watch = Stopwatch(device)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """transformers calls it after the optimizer's step."""
        self.watch.press()


class Theirs:
    """Seq2SeqTrainer with its defaults and bf16=True, on padded batches of the same rows."""

    def __init__(self, shape: Shape, place: Place) -> None:
        self.device = place.device
        self.model = make(shape, torch.float32, place.device)
        self.dimensions = T5Dimensions.of(self.model.config)
        self.attention = self.model.config._attn_implementation

    def flops(self, row: Row) -> float:
        """Of a row, in training."""
        return self.dimensions.training_flops(len(row[0]), len(row[1]))

    @alone()
    def turn(self, updates: Sequence[Sequence[Row]], parts: int) -> list[float]:
        """Seconds of each update but the first."""
        clock = Clock(self.device)
        size = len(updates[0])
        arguments = transformers.Seq2SeqTrainingArguments(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=size // parts,
            gradient_accumulation_steps=parts,
            max_steps=len(updates),
            learning_rate=LR,
            bf16=self.device.type == "cuda",
            use_cpu=self.device.type == "cpu",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )

        class InOrder(transformers.Seq2SeqTrainer):
            def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
                return torch.utils.data.SequentialSampler(range(size * len(updates)))

        assert arguments.parallel_mode.value == "not_parallel"
        trainer = InOrder(
            model=self.model,
            args=arguments,
            train_dataset=[{"input_ids": a, "labels": b} for rows in updates for a, b in rows],
            data_collator=padded,
            callbacks=[clock],
        )
        with contextlib.redirect_stdout(sys.stderr):  # it prints a summary
            trainer.train()
        return clock.watch.seconds()
