"""How fast an update is: ours on ragged batches, ours on padded ones, and transformers' Seq2SeqTrainer; prints one JSON line.

    python benchmarks/training.py [DATA --tokenizer FOLDER] [--scores] [--even] [--like t5-small] [--batch 16] [--updates 2]
        [--rounds 2] [--contenders trainer trainer-grouped padded ragged trainer-bf16 ragged-bf16]

DATA is a file of prompts and completions, or (--scores) of inputs and targets, which Seq2SeqTrainer learns as the texts yes and no;
without it, random tokens of instruction-like lengths, or (--even) of one length: no padding at all. All contenders train on the same
rows, dropout on, AdamW; CPU seconds of one thread, the contenders interleaved, one update of warming up before each turn (but for
trainer-grouped, which has its longest rows there), the minimum and the median over turns. The gates: without dropout, loss and gradients of
the ragged forward are those of transformers' eager one (fp32: 1e-5 of the largest; bf16: their cosine above 0.999).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from typing import Any

import numpy as np
import torch
import transformers
from training_rows import Rows, Vocabulary, instruction_like, of_scores, of_texts, random_tokens
from training_turns import CPU, Ours, gradients, in_turns, least_and_median, steps_of, worst_difference

from workflow.data.division import MicroBatchLimits
from workflow.data.packing import collate
from workflow.data.plan import DataPlan
from workflow.models.classifier import LabelRows, LoadedClassifier
from workflow.models.load import load_tokenizer, quiet_transformers
from workflow.models.ragged_training import RaggedScorer, RaggedT5
from workflow.models.scratch import make_model
from workflow.models.shapes import SHAPES
from workflow.runtime import Ranks, current_commit, join_ranks, leave_ranks
from workflow.training.memory_plan import CPU_TOKENS
from workflow.training.objectives import CompletionLoss, ScoreLoss

LR = 5e-5


def objective_of(model: Any, rows: Rows, *, is_ragged: bool) -> tuple[Any, Any]:
    """(what is minimised, what is called for it); scores get a head of two rows."""
    if rows.targets is None:
        return CompletionLoss(model.config, rows, pad_id=0, device=CPU, is_ragged=is_ragged), (
            RaggedT5(model) if is_ragged else model
        )
    tokens = [int(rows.rows[int(np.argmax(rows.targets[:, target]))]["completion"][0]) for target in range(2)]
    model.lm_head = LabelRows(model.lm_head.weight, tokens)
    loaded = LoadedClassifier(model, Vocabulary(), problem="binary", start_token=model.config.decoder_start_token_id)
    objective = ScoreLoss(loaded, rows, pad_id=0, device=CPU, is_ragged=is_ragged)
    return objective, RaggedScorer(model) if is_ragged else model


def ours(model: Any, rows: Rows, batch: int, *, is_ragged: bool, precision: str = "fp32") -> Ours:
    """Our loop, on ragged batches or padded ones."""
    objective, form = objective_of(model, rows, is_ragged=is_ragged)
    limits = MicroBatchLimits(tokens=CPU_TOKENS, padded=not is_ragged)
    return Ours(model, objective, form, num_rows=len(rows), batch=batch, lr=LR, limits=limits, precision=precision)


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

    def __init__(self, model: Any, rows: Rows, batch: int, **arguments: Any) -> None:
        self.model, self.rows, self.batch, self.arguments = model, rows, batch, arguments
        self.plan = DataPlan(len(rows.rows), batch, 0)

    def turn(self, steps: list[int]) -> float:
        """CPU seconds of all steps but the first."""
        clock, arguments = Clock(), self.arguments
        chosen = [row for step in steps for row in self.plan.rows(step).tolist()]

        class InOrder(transformers.Seq2SeqTrainer):
            def _get_train_sampler(self, *given: Any) -> torch.utils.data.Sampler:
                if "train_sampling_strategy" in arguments:
                    return super()._get_train_sampler(*given)
                return torch.utils.data.SequentialSampler(range(len(chosen)))

        trainer = InOrder(
            model=self.model,
            args=arguments_of(self.batch, max_steps=len(steps), **arguments),
            train_dataset=[
                {"input_ids": one["prompt"], "labels": one["completion"]}
                for one in map(self.rows.rows.__getitem__, chosen)
            ],
            data_collator=self.padded,
            callbacks=[clock],
        )
        began = time.process_time()
        trainer.train()
        if "train_sampling_strategy" in arguments:
            return (clock.ends[-1] - began) * (len(steps) - 1) / len(steps)
        return clock.ends[-1] - clock.ends[0]

    def padded(self, rows: list[dict]) -> dict:
        """What DataCollatorForSeq2Seq gives."""
        batch = collate(Rows([(row["input_ids"], row["labels"]) for row in rows]), range(len(rows)), pad_id=0)
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}


def gates(model: Any, rows: Rows, chosen: list[int]) -> dict:
    """How far the ragged forward is from transformers' eager one, without dropout.

    ReLU gives way to GELU here: rounding decides on which side of ReLU's kink a value near zero falls, and the gradient jumps there.
    """
    model = smooth(copy.deepcopy(model))
    eager = copy.deepcopy(model).eval()
    eager.set_attn_implementation("eager")
    objective, call = objective_of(eager, rows, is_ragged=False)
    expected_loss = objective.loss_sum(call, chosen)
    expected = gradients(eager, expected_loss)
    found = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        other = copy.deepcopy(model).to(dtype).eval()
        objective, call = objective_of(other, rows, is_ragged=True)
        loss = objective.loss_sum(call.eval(), chosen)
        found[precision] = (loss.item(), gradients(other, loss))
    loss, mine = found["fp32"]
    worst = worst_difference(mine, expected)
    flat = [torch.cat([of[name].flatten().double() for name in expected]) for of in (found["bf16"][1], expected)]
    cosine = float(torch.nn.functional.cosine_similarity(*flat, dim=0))
    apart = abs(loss / expected_loss.item() - 1)
    passed = apart <= 1e-5 and worst <= 1e-5 and cosine > 0.999
    return {"loss": apart, "gradient": worst, "bf16_cosine": cosine, "passed": passed}


def smooth(model: Any) -> Any:
    """The same model with GELU in the place of ReLU."""
    if model.config.dense_act_fn == "relu":
        model.config.dense_act_fn = "gelu"
        for module in model.modules():
            if isinstance(getattr(module, "act", None), torch.nn.ReLU):
                module.act = torch.nn.GELU()
    return model


def read_flags() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="?")
    parser.add_argument("--tokenizer")
    parser.add_argument("--scores", action="store_true")
    parser.add_argument("--even", action="store_true")
    parser.add_argument("--like", default="t5-small", choices=list(SHAPES))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    names = ["trainer", "trainer-grouped", "padded", "ragged", "trainer-bf16", "ragged-bf16"]
    parser.add_argument("--contenders", nargs="+", default=names, choices=names)
    return parser.parse_args()


def main() -> None:
    """Measures and prints."""
    given = read_flags()
    torch.set_num_threads(1)
    quiet_transformers()
    join_ranks(Ranks(0, 1, 0), device="cpu")
    tokenizer = load_tokenizer(given.tokenizer) if given.tokenizer else Vocabulary()
    count = 50 * given.batch
    if given.data:
        rows = (of_scores if given.scores else of_texts)(given.data, tokenizer, count)
    else:
        rows = random_tokens([128] * count, [32] * count) if given.even else instruction_like(count)
    model = make_model(SHAPES[given.like], tokenizer, seed=0)
    gate = gates(model, rows, DataPlan(len(rows.rows), given.batch, 0).rows(1).tolist()[:4])
    make = {
        "trainer": lambda model: Theirs(model, rows, given.batch),
        "trainer-grouped": lambda model: Theirs(model, rows, given.batch, train_sampling_strategy="group_by_length"),
        "trainer-bf16": lambda model: Theirs(model, rows, given.batch, bf16=True),
        "padded": lambda model: ours(model, rows, given.batch, is_ragged=False),
        "ragged": lambda model: ours(model, rows, given.batch, is_ragged=True),
        "ragged-bf16": lambda model: ours(model, rows, given.batch, is_ragged=True, precision="bf16"),
    }
    contenders = {name: make[name](copy.deepcopy(model).train()) for name in given.contenders}
    rounds = steps_of(given.rounds, given.updates)
    seconds = in_turns(contenders, rounds)
    timed = DataPlan(len(rows.rows), given.batch, 0)
    chosen = np.concatenate([timed.rows(step) for steps in rounds for step in steps[1:]])
    totals = {name: sum(values) * given.updates for name, values in seconds.items()}
    tokens = int(rows.lengths("prompt")[chosen].sum() + rows.lengths("completion")[chosen].sum())
    print(
        json.dumps(
            {
                "what": "an update of seq2seq training, CPU seconds of one thread",
                "data": given.data or ("one length" if given.even else "instruction-like lengths"),
                "shape": given.like,
                "examples_an_update": given.batch,
                "tokens_an_update": tokens / len(rounds) / given.updates,
                "seconds": least_and_median(seconds),
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
