"""How fast an update is on one GPU: ours with each back end of attention, and transformers' Seq2SeqTrainer with bf16=True.

    python benchmarks/training_gpu.py [--like flan-t5-large flan-t5-xl] [--mixes instruction scan cola full] [--budget_s 440]
        [--contenders trainer triton sdpa matmul] [--tokens 32768] [--updates 2] [--rounds 2] [--device cuda] [--direct]

Runs unaided with torch, transformers (and its accelerate) and this checkout; prints a JSON line for each shape and mix of
lengths. Weights are random and made on the device; all contenders train on the same rows, dropout on, AdamW, clipping at 1. Ours go
through our backend where DeepSpeed is installed (unless --direct), else through the same arithmetic by hand: weights in bf16, masters,
sums of gradients and moments in fp32. `cola` is a yes/no task: theirs completes "yes" or "no" and the end, ours scores. A contender takes
the largest micro-batch that fits into memory; one that fails is reported. Times are of whole updates, data and optimizer
included, by CUDA events after an update of warming up. The gates, on a small shape on the same device, without dropout: loss and gradients
in fp32 within 1e-5 of transformers' eager ones, and the cosine of bf16 gradients above 0.999.

`--device cpu --like tiny` tries the script itself, in fp32; with Triton and TRITON_INTERPRET=1 the kernel too.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import importlib
import importlib.util
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import transformers

from workflow.models.attention_backends import choose
from workflow.models.classifier import LabelRows
from workflow.models.ragged_training import RaggedScorer, RaggedT5
from workflow.models.shapes import SHAPES, Shape
from workflow.models.varlen_attention import why_no_kernel
from workflow.runtime import current_commit
from workflow.training.flops import T5Dimensions

VOCABULARY, LR, CLIP = 32128, 5e-5, 1.0
YES, NO, END = 4273, 150, 1
DIFFERENT_UPDATES = 4
MATMUL_SIZE = 8192
GATE_LENGTHS = ([200, 4, 1, 30, 64, 65], [1, 70, 3, 2, 64, 30])

Row = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Packed:
    """Sequences one after another."""

    ids: torch.Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], device: torch.device) -> Packed:
        """On the device, without waiting for the copy."""
        ids = torch.from_numpy(np.concatenate(rows))
        ids = ids.pin_memory() if device.type == "cuda" else ids
        return cls(ids.to(device, non_blocking=True), tuple(map(len, rows)))


def lengths_of(mix: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(prompts' lengths, completions') of a mix, alike in every run."""
    rng = np.random.default_rng(0)
    if mix == "instruction":  # medians 60 and 30
        found = rng.lognormal(4.1, 0.9, count).clip(4, 512), rng.lognormal(3.4, 0.9, count).clip(2, 114)
    elif mix == "scan":  # short commands, actions of many lengths
        found = rng.normal(17, 4, count).clip(6, 30), rng.lognormal(3.9, 0.7, count).clip(4, 250)
    elif mix == "cola":  # a template and a sentence
        found = rng.lognormal(2.5, 0.4, count).clip(4, 45) + 12, np.full(count, 2)
    else:
        found = np.full(count, 512), np.full(count, 114)
    return found[0].astype(int), found[1].astype(int)


def updates_of(mix: str, num_tokens: int) -> list[list[Row]]:
    """Rows of some updates, each of at least so many tokens; as many rows in each, a multiple of 16."""
    mean = sum(float(part.mean()) for part in lengths_of(mix, 4096))
    size = 16 * math.ceil(num_tokens / mean / 16)
    while True:
        sources, targets = lengths_of(mix, size * DIFFERENT_UPDATES)
        if (sources + targets).reshape(DIFFERENT_UPDATES, size).sum(axis=1).min() >= num_tokens:
            break
        size += 16
    rng = np.random.default_rng(1)
    rows = [
        (rng.integers(3, VOCABULARY, a), label(rng) if mix == "cola" else rng.integers(3, VOCABULARY, b))
        for a, b in zip(sources, targets, strict=True)
    ]
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def label(rng: np.random.Generator) -> np.ndarray:
    """The completion of a yes/no row."""
    return np.array([YES if rng.random() < 0.7 else NO, END])


def make(shape: Shape, dtype: torch.dtype, *, dropout: float = 0.1, attention: str | None = None) -> Any:
    """A v1.1 model with its own head and random weights, made on the device."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=shape.d_model,
        d_kv=shape.d_kv,
        d_ff=shape.d_ff,
        num_heads=shape.num_heads,
        num_layers=shape.num_layers,
        num_decoder_layers=shape.num_layers,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        dropout_rate=dropout,
        **({"attn_implementation": attention} if attention else {}),
    )
    torch.manual_seed(0)
    with DEVICE:
        model = transformers.T5ForConditionalGeneration(config)
        model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, shape.d_model).mul_(shape.d_model**-0.5))
    return model.to(dtype).train()


# ---- clocks


class Stopwatch:
    """Moments on the device's own clock, which the host does not wait for until it reads them."""

    def __init__(self) -> None:
        self.moments: list[Any] = []

    def press(self) -> None:
        """Now, after all work that was asked for."""
        if DEVICE.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.moments.append(event)
        else:
            self.moments.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between one moment and the next."""
        pairs = list(zip(self.moments[:-1], self.moments[1:], strict=True))
        if DEVICE.type != "cuda":
            return [b - a for a, b in pairs]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1000 for a, b in pairs]


def measured_peak() -> float | None:
    """FLOP/s of a large bf16 product; None on a CPU."""
    if DEVICE.type != "cuda":
        return None
    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    watch = Stopwatch()
    for _ in range(13):
        a @ b
        watch.press()
    return 2 * MATMUL_SIZE**3 / statistics.median(watch.seconds()[2:])


# ---- contenders


def micro_batches(rows: Sequence[Row], parts: int) -> Iterator[Sequence[Row]]:
    """Neighbours in length together, as our trainer deals them."""
    ordered = sorted(rows, key=lambda row: -len(row[0]) - len(row[1]))
    size = -(-len(rows) // parts)
    return (ordered[start : start + size] for start in range(0, len(rows), size))


class Direct:
    """bf16 weights with fp32 masters, fp32 sums of gradients and fused AdamW, by hand."""

    name = "by hand"

    def __init__(self, model: Any, form: Any) -> None:
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

    def __init__(self, model: Any, form: Any) -> None:
        from workflow.training.backend import Backend
        from workflow.training.ds_config import plan_backend
        from workflow.training.optim import make_optimizer, parameter_groups

        precision = "bf16" if torch.bfloat16 == DTYPE else "fp32"
        plan = plan_backend(
            deepspeed="auto",
            precision=precision,
            optimizer="adamw",
            world_size=1,
            max_grad_norm=CLIP,
            micro_batch_size=1,
        )
        optimizer = make_optimizer("adamw", parameter_groups(model, lr=LR, weight_decay=0.0))
        self.backend = Backend(model, optimizer, plan, max_grad_norm=CLIP, device=DEVICE, form=form)
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

    def __init__(self, shape: Shape, mix: str) -> None:
        self.scores = mix == "cola"
        model = make(shape, DTYPE)
        self.dimensions = T5Dimensions.of(model.config, num_outputs=2 if self.scores else None)
        if self.scores:
            model.lm_head = LabelRows(model.lm_head.weight, [YES, NO]).to(DEVICE)
        self.form = RaggedScorer(model) if self.scores else RaggedT5(model)
        self.engine = (Direct if IS_DIRECT else ThroughBackend)(model, self.form)
        self.engine.form.train()

    def flops(self, row: Row) -> float:
        """Of a row, in training."""
        return self.dimensions.training_flops(len(row[0]), 1 if self.scores else len(row[1]))

    def loss(self, rows: Sequence[Row]) -> torch.Tensor:
        """Summed over the rows."""
        source = Packed.of([row[0] for row in rows], DEVICE)
        if not self.scores:
            return self.engine.form(source, Packed.of([row[1] for row in rows], DEVICE))  # type: ignore[no-any-return]
        labels = Packed.of([np.array([0 if row[1][0] == YES else 1]) for row in rows], DEVICE).ids
        return torch.nn.functional.cross_entropy(self.engine.form(source), labels, reduction="sum")

    def turn(self, updates: Sequence[Sequence[Row]], attention: str, parts: int) -> list[float]:
        """Seconds of each update but the first."""
        self.form.attention = attention
        self.engine.reset()
        watch = Stopwatch()
        for rows in updates:
            divisor = float(len(rows) if self.scores else sum(len(row[1]) for row in rows))
            batches, total = list(micro_batches(rows, parts)), torch.zeros((), device=DEVICE)
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

    def __init__(self) -> None:
        self.watch = Stopwatch()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """transformers calls it after the optimizer's step."""
        self.watch.press()


class Theirs:
    """Seq2SeqTrainer with its defaults and bf16=True, on padded batches of the same rows."""

    def __init__(self, shape: Shape) -> None:
        self.model = make(shape, torch.float32)
        self.dimensions = T5Dimensions.of(self.model.config)
        self.attention = self.model.config._attn_implementation

    def flops(self, row: Row) -> float:
        """Of a row, in training."""
        return self.dimensions.training_flops(len(row[0]), len(row[1]))

    @alone()
    def turn(self, updates: Sequence[Sequence[Row]], parts: int) -> list[float]:
        """Seconds of each update but the first."""
        clock = Clock()
        size = len(updates[0])
        arguments = transformers.Seq2SeqTrainingArguments(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=size // parts,
            gradient_accumulation_steps=parts,
            max_steps=len(updates),
            learning_rate=LR,
            bf16=DEVICE.type == "cuda",
            use_cpu=DEVICE.type == "cpu",
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


def padded(rows: list[dict]) -> dict:
    """What DataCollatorForSeq2Seq gives."""

    def filled(name: str, value: int) -> torch.Tensor:
        parts = [torch.from_numpy(row[name]) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)

    ids = filled("input_ids", 0)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": filled("labels", -100)}


# ---- gates


def gate(attention: str) -> dict[str, Any]:
    """How far our forward with a back end is from transformers' eager one, on a small shape on this device."""
    shape = Shape(d_model=128, d_kv=32, d_ff=256, num_heads=4, num_layers=2)
    eager = make(shape, torch.float32, dropout=0.0, attention="eager")
    for name, weight in eager.named_parameters():  # larger than T5 starts with, so that every part has a say
        if weight.dim() > 1:
            scale = shape.d_kv if name.endswith("q.weight") else 1
            torch.nn.init.normal_(weight, std=(weight.shape[-1] * scale) ** -0.5)
    rng = np.random.default_rng(2)
    sources, targets = ([rng.integers(3, VOCABULARY, length) for length in part] for part in GATE_LENGTHS)
    batch = padded([{"input_ids": a, "labels": b} for a, b in zip(sources, targets, strict=True)])
    logits = eager(**{name: part.to(DEVICE) for name, part in batch.items()}).logits.float().flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"].to(DEVICE).flatten(), reduction="sum")
    expected = gradients(eager, loss)
    largest = max(float(part.abs().max()) for part in expected.values())
    own_loss, own = own_gradients(eager, torch.float32, attention, sources, targets)
    found: dict[str, Any] = {
        "loss": abs(own_loss / loss.item() - 1),
        "gradient": max(float((own[name] - expected[name]).abs().max()) for name in expected) / largest,
    }
    found["passed"] = found["loss"] <= 1e-5 and found["gradient"] <= 1e-5
    if DEVICE.type == "cuda" or attention != "triton":  # Triton's interpreter has no bf16 products
        _, half = own_gradients(eager, torch.bfloat16, attention, sources, targets)
        flat = [torch.cat([part[name].flatten().double() for name in expected]) for part in (half, expected)]
        found["bf16_cosine"] = float(torch.nn.functional.cosine_similarity(*flat, dim=0))
        found["passed"] = found["passed"] and found["bf16_cosine"] > 0.999
    return found


def own_gradients(
    eager: Any, dtype: torch.dtype, attention: str, sources: list[np.ndarray], targets: list[np.ndarray]
) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss, gradients) of our forward of the same weights."""
    model = copy.deepcopy(eager).to(dtype)
    model.zero_grad()
    form = RaggedT5(model).train()
    form.attention = attention
    loss = form(Packed.of(sources, DEVICE), Packed.of(targets, DEVICE))
    return loss.item(), gradients(model, loss)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """In fp32, by name."""
    loss.backward()
    return {name: weight.grad.float() for name, weight in model.named_parameters()}


# ---- the run


class Scores:
    """What was measured of one shape and mix."""

    def __init__(self, shape: str, mix: str) -> None:
        self.shape, self.mix = shape, mix
        self.updates = updates_of(mix, given.tokens)
        self.parts = dict.fromkeys(given.contenders, 1)
        self.seconds: dict[str, list[float]] = {name: [] for name in given.contenders}
        self.flops: dict[str, float] = {}
        self.memory: dict[str, int] = {}
        self.failed: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.turns = 0

    def measure(
        self, name: str, flops: Callable[[Row], float], turn: Callable[[Sequence[Sequence[Row]], int], list[float]]
    ) -> None:
        """A contender's turn; out of memory, it tries again with twice the micro-batches."""
        chosen = [self.updates[(self.turns + n) % len(self.updates)] for n in range(1 + given.updates)]
        while name not in self.failed and not is_over():
            clear_memory()
            try:
                self.seconds[name] += turn(chosen, self.parts[name])
            except torch.OutOfMemoryError as error:
                if self.parts[name] >= 16:
                    self.failed[name] = f"out of memory: {' '.join(str(error).split())[:160]}"
                self.parts[name] *= 2
                continue
            except Exception as error:
                self.failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                return
            self.memory[name] = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0
            self.flops[name] = statistics.mean(sum(map(flops, rows)) for rows in chosen[1:])
            return

    def round(self) -> None:
        """One turn of each contender."""
        shape = SHAPES[self.shape]
        if "trainer" in self.seconds and "trainer" not in self.failed and not is_over():
            self.with_model("trainer", lambda: Theirs(shape), lambda model: {"trainer": model.turn})
        names = [name for name in self.seconds if name != "trainer" and name not in self.failed]
        if names and not is_over():
            self.with_model(
                "ours",
                lambda: Ours(shape, self.mix),
                lambda model: {name: lambda rows, parts, name=name: model.turn(rows, name, parts) for name in names},
            )
        self.turns += 1

    def with_model(self, what: str, build: Callable[[], Any], turns: Callable[[Any], dict[str, Callable]]) -> None:
        """Builds a model, measures with it, and frees its memory."""
        try:
            model = build()
        except Exception as error:
            names = [name for name in self.seconds if (name == "trainer") == (what == "trainer")]
            self.failed |= dict.fromkeys(names, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            return
        self.notes[what] = f"attention {model.attention}" if what == "trainer" else model.engine.name
        for name, turn in turns(model).items():
            self.measure(name, model.flops, turn)
        if what == "ours":
            model.close()
        del model, turn
        clear_memory()

    def report(self, peak: float | None) -> dict[str, Any]:
        """As one JSON line."""
        tokens = statistics.mean(sum(len(a) + len(b) for a, b in rows) for rows in self.updates)
        found: dict[str, Any] = {}
        for name, seconds in self.seconds.items():
            if not seconds:
                found[name] = {"error": self.failed.get(name, "no time was left")}
                continue
            best = min(seconds)
            found[name] = {
                "seconds": {"min": best, "median": statistics.median(seconds), "updates": len(seconds)},
                "tokens_per_s": tokens / best,
                "mfu": self.flops[name] / best / peak if peak else None,
                "micro_batches": self.parts[name],
                "memory_bytes": self.memory[name],
                **({"error": self.failed[name]} if name in self.failed else {}),
            }
        base = found.get("trainer", {}).get("tokens_per_s")
        ratios = {name: one["tokens_per_s"] / base for name, one in found.items() if base and "tokens_per_s" in one}
        head = {"what": "an update of training", "shape": self.shape, "mix": self.mix, "rows": len(self.updates[0])}
        return {**head, "tokens": tokens, "contenders": found, "ratio_to_trainer": ratios, "notes": self.notes}


def clear_memory() -> None:
    """Nothing of a contender that is done stays on the device."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def is_over() -> bool:
    """Whether the budget is spent."""
    return time.perf_counter() - STARTED > given.budget_s


def gates() -> dict[str, Any]:
    """Of each back end that is a contender."""
    found: dict[str, Any] = {}
    for name in given.contenders:
        if name != "trainer":
            try:
                found[name] = gate(name)
            except Exception as error:
                found[name] = {
                    "passed": False,
                    "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                }
    return found


def main() -> None:
    """Gates, peak, then every shape and mix, as long as the budget lasts."""
    surroundings: dict[str, Any] = {
        "gates": gates(),
        "kernel": why_no_kernel() or "available",
        "choice": str(choose(DEVICE, DTYPE, width=64)),
        "peak_flops": measured_peak(),
        "versions": {name: version_of(name) for name in ("torch", "transformers", "triton", "deepspeed", "accelerate")},
        "hardware": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU",
        "commit": current_commit(),
    }
    for shape in given.like:
        for mix in given.mixes:
            scores = Scores(shape, mix)
            for _ in range(given.rounds):
                scores.round()
            line = {**scores.report(surroundings["peak_flops"]), **surroundings}
            print(json.dumps({**line, "elapsed_s": time.perf_counter() - STARTED}), flush=True)


def version_of(name: str) -> str | None:
    """Of an installed package; None where it is not."""
    if importlib.util.find_spec(name) is None:
        return None
    return str(importlib.import_module(name).__version__)


if __name__ == "__main__":
    STARTED = time.perf_counter()
    parser = argparse.ArgumentParser()
    parser.add_argument("--like", nargs="+", default=["flan-t5-large", "flan-t5-xl"], choices=list(SHAPES))
    parser.add_argument("--mixes", nargs="+", default=["instruction", "scan", "cola", "full"])
    names = ["trainer", "triton", "sdpa", "matmul"]
    parser.add_argument("--contenders", nargs="+", default=names, choices=names)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--budget_s", type=float, default=440.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--direct", action="store_true")
    given = parser.parse_args()
    DEVICE = torch.device(given.device)
    DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    IS_DIRECT = given.direct or importlib.util.find_spec("deepspeed") is None
    transformers.logging.set_verbosity_error()
    if not IS_DIRECT:
        from workflow.runtime import Ranks, join_ranks

        join_ranks(Ranks(0, 1, 0), device=DEVICE.type)
    main()
