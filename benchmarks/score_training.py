"""How fast an update of a BERT that scores is: on packed tokens, and on padded batches, whole or grouped by length; prints one JSON line.

    python benchmarks/score_training.py DATA --tokenizer FOLDER [--like bert-base] [--batch 16] [--updates 2] [--rounds 3]

DATA is a classification data set (its training rows are used). Dropout on, AdamW, fp32; CPU seconds of one thread, the contenders
interleaved, one update of warming up before each turn, the minimum and the median over turns. The gates: without dropout, loss and
gradients of the packed forward are those of transformers' padded one, to 1e-5 (of the largest gradient).
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from training_turns import CPU, Ours, gradients, in_turns, least_and_median, steps_of, worst_difference

from workflow.data.division import MicroBatchLimits
from workflow.data.encoders import INPUT
from workflow.data.examples import ScoredRows, load_examples
from workflow.data.features import Features, load_features
from workflow.data.plan import DataPlan
from workflow.data.scoring import Scoring
from workflow.data.sources import find_source
from workflow.models.classifier import LoadedClassifier, load_classifier
from workflow.models.load import quiet_transformers
from workflow.models.ragged import ragged_form_of
from workflow.models.scratch import write_scratch_model
from workflow.models.scratch_stacks import load_bert_tokenizer, make_bert
from workflow.models.shapes import BERT_SHAPES
from workflow.recipe.scorers import score_encoder
from workflow.runtime import Ranks, current_commit, join_ranks, leave_ranks
from workflow.training.objectives import ScoreLoss

LR = 3e-5


def loss_of(loaded: LoadedClassifier, features: Features, *, is_ragged: bool) -> ScoreLoss:
    """What is minimised."""
    return ScoreLoss(loaded, features, pad_id=loaded.tokenizer.pad_token_id, device=CPU, is_ragged=is_ragged)


def contender(loaded: LoadedClassifier, features: Features, *, batch: int, micro_batch: int, is_ragged: bool) -> Ours:
    """Our loop on a copy of the model."""
    model = copy.deepcopy(loaded.model).train()
    objective = loss_of(replace(loaded, model=model), features, is_ragged=is_ragged)
    form = ragged_form_of(model, scores=True) if is_ragged else model
    limits = MicroBatchLimits(rows=micro_batch, padded=not is_ragged)
    return Ours(model, objective, form, num_rows=len(features), batch=batch, lr=LR, limits=limits)


def gates(loaded: LoadedClassifier, features: Features, rows: list[int]) -> dict[str, Any]:
    """How far the packed forward is from transformers' padded one, without dropout."""
    found = []
    for is_ragged in (False, True):
        model = copy.deepcopy(loaded.model).eval()
        form = ragged_form_of(model, scores=True).eval() if is_ragged else model
        loss = loss_of(replace(loaded, model=model), features, is_ragged=is_ragged).loss_sum(form, rows)
        found.append((loss.item(), gradients(model, loss)))
    (expected_loss, expected), (loss, mine) = found
    worst = worst_difference(mine, expected)
    apart = abs(loss / expected_loss - 1)
    return {"loss": apart, "gradient": worst, "passed": apart <= 1e-5 and worst <= 1e-5}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--like", default="bert-base", choices=list(BERT_SHAPES))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()

    torch.set_num_threads(1)
    quiet_transformers()
    join_ranks(Ranks(0, 1, 0), device="cpu")
    scoring = Scoring()
    tokenizer = load_bert_tokenizer(given.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        write_scratch_model(
            Path(folder) / "model", make_bert(BERT_SHAPES[given.like], tokenizer, seed=0), tokenizer, {}
        )
        loaded = load_classifier(str(Path(folder) / "model"), problem=scoring.problem, labels=scoring.labels)
        examples = load_examples(
            find_source(given.data, Path("mount")), ScoredRows(scoring.texts, scoring.targets()), Path(folder)
        )
        encoder = score_encoder(loaded, scoring, 512, with_targets=True)
        features = load_features(examples, "train", encoder, Path(folder))
        plan = DataPlan(len(features), given.batch, 0)
        gate = gates(loaded, features, plan.rows(1).tolist()[:8])
        contenders = {
            "padded": contender(loaded, features, batch=given.batch, micro_batch=given.batch, is_ragged=False),
            "padded, 4 at a time": contender(loaded, features, batch=given.batch, micro_batch=4, is_ragged=False),
            "packed": contender(loaded, features, batch=given.batch, micro_batch=given.batch, is_ragged=True),
        }
        rounds = steps_of(given.rounds, given.updates)
        seconds = in_turns(contenders, rounds)
        lengths = features.lengths(INPUT)
        timed = [lengths[plan.rows(step)] for steps in rounds for step in steps[1:]]
    print(
        json.dumps(
            {
                "what": "an update of a BERT that scores, CPU seconds of one thread",
                "data": given.data,
                "shape": given.like,
                "examples_an_update": given.batch,
                "tokens_an_update": float(np.mean([rows.sum() for rows in timed])),
                "padded_tokens_an_update": float(np.mean([rows.max() * len(rows) for rows in timed])),
                "seconds": least_and_median(seconds),
                "ratio_to_packed": {name: sum(v) / sum(seconds["packed"]) for name, v in seconds.items()},
                "gates": gate,
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
                "commit": current_commit(),
            }
        )
    )
    leave_ranks()


if __name__ == "__main__":
    main()
