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
import copy
import gc
import importlib
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import transformers
from gpu_contenders import Ours, Place, Stopwatch, Theirs
from gpu_rows import VOCABULARY, Packed, Row, make, padded, updates_of

from workflow.models.attention_backends import choose
from workflow.models.ragged_training import RaggedT5
from workflow.models.shapes import SHAPES, Shape
from workflow.models.varlen_attention import why_no_kernel
from workflow.runtime import Ranks, current_commit, join_ranks

MATMUL_SIZE = 8192
GATE_LENGTHS = ([200, 4, 1, 30, 64, 65], [1, 70, 3, 2, 64, 30])


def measured_peak() -> float | None:
    """FLOP/s of a large bf16 product; None on a CPU."""
    if PLACE.device.type != "cuda":
        return None
    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=PLACE.device, dtype=torch.bfloat16) for _ in range(2))
    watch = Stopwatch(PLACE.device)
    for _ in range(13):
        a @ b
        watch.press()
    return 2 * MATMUL_SIZE**3 / statistics.median(watch.seconds()[2:])


def gate(attention: str) -> dict[str, Any]:
    """How far our forward with a back end is from transformers' eager one, on a small shape on this device."""
    shape = Shape(d_model=128, d_kv=32, d_ff=256, num_heads=4, num_layers=2)
    eager = make(shape, torch.float32, PLACE.device, dropout=0.0, attention="eager")
    for name, weight in eager.named_parameters():  # larger than T5 starts with, so that every part has a say
        if weight.dim() > 1:
            scale = shape.d_kv if name.endswith("q.weight") else 1
            torch.nn.init.normal_(weight, std=(weight.shape[-1] * scale) ** -0.5)
    rng = np.random.default_rng(2)
    sources, targets = ([rng.integers(3, VOCABULARY, length) for length in part] for part in GATE_LENGTHS)
    batch = padded([{"input_ids": a, "labels": b} for a, b in zip(sources, targets, strict=True)])
    logits = eager(**{name: part.to(PLACE.device) for name, part in batch.items()}).logits.float().flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"].to(PLACE.device).flatten(), reduction="sum")
    expected = gradients(eager, loss)
    largest = max(float(part.abs().max()) for part in expected.values())
    own_loss, own = own_gradients(eager, torch.float32, attention, sources, targets)
    found: dict[str, Any] = {
        "loss": abs(own_loss / loss.item() - 1),
        "gradient": max(float((own[name] - expected[name]).abs().max()) for name in expected) / largest,
    }
    found["passed"] = found["loss"] <= 1e-5 and found["gradient"] <= 1e-5
    if PLACE.device.type == "cuda" or attention != "triton":  # Triton's interpreter has no bf16 products
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
    loss = form(Packed.of(sources, PLACE.device), Packed.of(targets, PLACE.device))
    return loss.item(), gradients(model, loss)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """In fp32, by name."""
    loss.backward()
    return {name: weight.grad.float() for name, weight in model.named_parameters()}


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
            self.memory[name] = torch.cuda.max_memory_allocated() if PLACE.device.type == "cuda" else 0
            self.flops[name] = statistics.mean(sum(map(flops, rows)) for rows in chosen[1:])
            return

    def round(self) -> None:
        """One turn of each contender."""
        shape = SHAPES[self.shape]
        if "trainer" in self.seconds and "trainer" not in self.failed and not is_over():
            self.with_model("trainer", lambda: Theirs(shape, PLACE), lambda model: {"trainer": model.turn})
        names = [name for name in self.seconds if name != "trainer" and name not in self.failed]
        if names and not is_over():
            self.with_model(
                "ours",
                lambda: Ours(shape, self.mix, PLACE),
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
    if PLACE.device.type == "cuda":
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
        "choice": str(choose(PLACE.device, PLACE.dtype, width=64)),
        "peak_flops": measured_peak(),
        "versions": {name: version_of(name) for name in ("torch", "transformers", "triton", "deepspeed", "accelerate")},
        "hardware": torch.cuda.get_device_name() if PLACE.device.type == "cuda" else "CPU",
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
    device = torch.device(given.device)
    PLACE = Place(
        device,
        torch.bfloat16 if device.type == "cuda" else torch.float32,
        given.direct or importlib.util.find_spec("deepspeed") is None,
    )
    transformers.logging.set_verbosity_error()
    if not PLACE.is_direct:
        join_ranks(Ranks(0, 1, 0), device=device.type)
    main()
