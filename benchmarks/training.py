"""How fast an update is: ours on ragged batches, ours on padded ones, and transformers' Seq2SeqTrainer; prints one JSON line.

    python benchmarks/training.py [DATA --tokenizer FOLDER] [--like t5-small] [--batch 16] [--updates 2] [--rounds 2]
        [--contenders trainer padded ragged trainer-bf16 ragged-bf16]

DATA is a data set of prompts and completions under mount/data; without it, random tokens of instruction-like lengths. All
contenders train on the same rows, dropout on, AdamW; CPU seconds of one thread, the contenders interleaved, one update of
warming up before each turn, the minimum and the median over turns. The gates: without dropout, loss and gradients of the ragged
forward are those of transformers' eager one (fp32: 1e-5 of the largest; bf16: their cosine above 0.999).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from workflow.data.division import MicroBatchLimits
from workflow.data.encoders import LengthLimits, Seq2SeqEncoder
from workflow.data.packing import collate
from workflow.data.plan import DataPlan
from workflow.data.sources import find_source
from workflow.models.load import head_names, load_tokenizer, quiet_transformers
from workflow.models.ragged_training import RaggedT5
from workflow.models.scratch import make_model
from workflow.models.shapes import SHAPES
from workflow.runtime import Ranks, current_commit, join_ranks, leave_ranks
from workflow.training.backend import Backend
from workflow.training.budget import CPU_TOKENS
from workflow.training.ds_config import plan_backend
from workflow.training.objectives import CompletionLoss, token_losses
from workflow.training.optim import make_optimizer, parameter_groups
from workflow.training.trainer import LoopSettings, Trainer

CPU = torch.device("cpu")
LR = 5e-5


class Vocabulary:
    """As much of a tokenizer as the model's shape and transformers' collator need, where there are no texts."""

    pad_token_id, eos_token_id, padding_side = 0, 1, "right"

    def __len__(self) -> int:
        return 32100


class Rows:
    """Token ids of rows, as `Features` gives them."""

    def __init__(self, rows: list[tuple[list[int], list[int]]]) -> None:
        self.rows = [{"prompt": np.array(a, np.int32), "completion": np.array(b, np.int32)} for a, b in rows]

    def row(self, field: str, row: int) -> np.ndarray:
        """Ids of one field of a row."""
        return self.rows[row][field]

    def lengths(self, field: str) -> np.ndarray:
        """Tokens of each row."""
        return np.array([len(row[field]) for row in self.rows], np.int32)


def instruction_like(count: int) -> Rows:
    """Log-normal lengths: prompts about 60 tokens, up to 512; completions about 30, up to 114."""
    rng = np.random.default_rng(0)
    sources = np.clip(rng.lognormal(4.1, 0.9, count), 4, 512).astype(int)
    targets = np.clip(rng.lognormal(3.4, 0.9, count), 2, 114).astype(int)
    return Rows(
        [
            (rng.integers(3, 32000, a).tolist(), rng.integers(3, 32000, b).tolist())
            for a, b in zip(sources, targets, strict=True)
        ]
    )


def of_texts(name: str, tokenizer: Any, count: int) -> Rows:
    """The first training rows of a data set."""
    encoder = Seq2SeqEncoder(tokenizer, LengthLimits(512, 512))
    chosen = [row for split, _, row in find_source(name, Path("mount")).rows() if split == "train"][:count]
    encoded = encoder.encode(chosen)
    return Rows(list(zip(encoded["prompt"].ids, encoded["completion"].ids, strict=True)))


class Ours:
    """Our loop and backend, on one rank."""

    def __init__(self, model: Any, rows: Rows, batch: int, *, is_ragged: bool, precision: str = "fp32") -> None:
        plan = plan_backend(
            deepspeed="auto",
            precision=precision,
            optimizer="adamw",
            world_size=1,
            max_grad_norm=1.0,
            micro_batch_size=batch,
        )
        groups = parameter_groups(model, lr=LR, weight_decay=0.0, head=head_names(model))
        form = RaggedT5(model) if is_ragged else None
        self.backend = Backend(model, make_optimizer("adamw", groups), plan, max_grad_norm=1.0, device=CPU, form=form)
        objective = CompletionLoss(model.config, rows, pad_id=0, device=CPU, is_ragged=is_ragged)
        loop = LoopSettings(10**9, 1, "constant", MicroBatchLimits(tokens=CPU_TOKENS, padded=not is_ragged), seed=0)
        self.trainer = Trainer(self.backend, objective, DataPlan(len(rows.rows), batch, 0), loop, ranks=Ranks(0, 1, 0))

    def turn(self, steps: list[int]) -> float:
        """CPU seconds of all steps but the first."""
        self.trainer.update(steps[0])
        started = time.process_time()
        for step in steps[1:]:
            self.trainer.update(step)
        return time.process_time() - started


class Clock(transformers.TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """transformers calls it after the optimizer's step."""
        self.ends.append(time.process_time())


def arguments_of(batch: int, **more: Any) -> transformers.Seq2SeqTrainingArguments:
    """Defaults, but for what would write or print; no data parallelism, which traces of our process group would turn on."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    arguments = transformers.Seq2SeqTrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **more,
    )
    assert arguments.parallel_mode.value == "not_parallel"
    return arguments


class Theirs:
    """Seq2SeqTrainer with its defaults, on the rows that our data plan names."""

    def __init__(self, model: Any, rows: Rows, batch: int, *, bf16: bool = False) -> None:
        self.model, self.rows, self.batch, self.bf16 = model, rows, batch, bf16
        self.plan = DataPlan(len(rows.rows), batch, 0)

    def turn(self, steps: list[int]) -> float:
        """CPU seconds of all steps but the first."""
        clock = Clock()
        chosen = [row for step in steps for row in self.plan.rows(step).tolist()]

        class InOrder(transformers.Seq2SeqTrainer):
            def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
                return torch.utils.data.SequentialSampler(range(len(chosen)))

        trainer = InOrder(
            model=self.model,
            args=arguments_of(self.batch, max_steps=len(steps), bf16=self.bf16),
            train_dataset=[
                {"input_ids": one["prompt"], "labels": one["completion"]}
                for one in map(self.rows.rows.__getitem__, chosen)
            ],
            data_collator=self.padded,
            callbacks=[clock],
        )
        trainer.train()
        return clock.ends[-1] - clock.ends[0]

    def padded(self, rows: list[dict]) -> dict:
        """What DataCollatorForSeq2Seq gives."""
        batch = collate(Rows([(row["input_ids"], row["labels"]) for row in rows]), range(len(rows)), pad_id=0)
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}


def gates(model: Any, rows: Rows, chosen: list[int]) -> dict:
    """How far the ragged forward is from transformers' eager one, without dropout."""
    eager = copy.deepcopy(model).eval()
    eager.set_attn_implementation("eager")
    expected_loss = token_losses(eager, collate(rows, chosen, pad_id=0), eager.config).sum()
    expected = gradients(eager, expected_loss)
    found = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        form = RaggedT5(copy.deepcopy(model).to(dtype)).eval()
        loss = CompletionLoss(model.config, rows, pad_id=0, device=CPU, is_ragged=True).loss_sum(form, chosen)
        found[precision] = (loss.item(), gradients(form.model, loss))
    loss, mine = found["fp32"]
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    worst = max(float((mine[name] - expected[name]).abs().max()) for name in expected) / largest
    flat = [torch.cat([of[name].flatten().double() for name in expected]) for of in (found["bf16"][1], expected)]
    cosine = float(torch.nn.functional.cosine_similarity(*flat, dim=0))
    apart = abs(loss / expected_loss.item() - 1)
    passed = apart <= 1e-5 and worst <= 1e-5 and cosine > 0.999
    return {"loss": apart, "gradient": worst, "bf16_cosine": cosine, "passed": passed}


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """In fp32, by name."""
    loss.backward()
    return {name: parameter.grad.float() for name, parameter in model.named_parameters()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="?")
    parser.add_argument("--tokenizer")
    parser.add_argument("--like", default="t5-small", choices=list(SHAPES))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    names = ["trainer", "padded", "ragged", "trainer-bf16", "ragged-bf16"]
    parser.add_argument("--contenders", nargs="+", default=names, choices=names)
    given = parser.parse_args()

    torch.set_num_threads(1)
    quiet_transformers()
    join_ranks(Ranks(0, 1, 0), device="cpu")
    tokenizer = load_tokenizer(given.tokenizer) if given.tokenizer else Vocabulary()
    count = 50 * given.batch
    rows = of_texts(given.data, tokenizer, count) if given.data else instruction_like(count)
    model = make_model(SHAPES[given.like], tokenizer, seed=0)
    gate = gates(model, rows, DataPlan(len(rows.rows), given.batch, 0).rows(1).tolist()[:4])
    make = {
        "trainer": lambda model: Theirs(model, rows, given.batch),
        "trainer-bf16": lambda model: Theirs(model, rows, given.batch, bf16=True),
        "padded": lambda model: Ours(model, rows, given.batch, is_ragged=False),
        "ragged": lambda model: Ours(model, rows, given.batch, is_ragged=True),
        "ragged-bf16": lambda model: Ours(model, rows, given.batch, is_ragged=True, precision="bf16"),
    }
    contenders = {name: make[name](copy.deepcopy(model).train()) for name in given.contenders}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    rounds = [list(range(1 + n * given.updates, 2 + (n + 1) * given.updates)) for n in range(given.rounds)]
    for steps in rounds:
        for name, contender in contenders.items():
            seconds[name].append(contender.turn(steps) / given.updates)
    timed = DataPlan(len(rows.rows), given.batch, 0)
    chosen = np.concatenate([timed.rows(step) for steps in rounds for step in steps[1:]])
    totals = {name: sum(values) * given.updates for name, values in seconds.items()}
    tokens = int(rows.lengths("prompt")[chosen].sum() + rows.lengths("completion")[chosen].sum())
    print(
        json.dumps(
            {
                "what": "an update of seq2seq training, CPU seconds of one thread",
                "data": given.data or "instruction-like lengths",
                "shape": given.like,
                "examples_an_update": given.batch,
                "tokens_an_update": tokens / len(rounds) / given.updates,
                "seconds": {name: {"min": min(v), "median": statistics.median(v)} for name, v in seconds.items()},
                "tokens_a_second": {name: tokens / total for name, total in totals.items()},
                "ratio_to_ragged": {name: total / totals.get("ragged", 1.0) for name, total in totals.items()},
                "gates": gate,
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
                "commit": current_commit(),
            }
        )
    )
    leave_ranks()


if __name__ == "__main__":
    main()
