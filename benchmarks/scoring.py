"""How fast the engine scores, against `model.generate(max_new_tokens=1)` one row at a time and against padded batches of 32 through
transformers' forward; prints one JSON line.

    python benchmarks/scoring.py DATA [--like t5-small] [--rows 64] [--rounds 3]

DATA is a classification data set (its eval rows are scored). CPU seconds of one thread, contenders interleaved, the minimum over
rounds. The gate: all contenders' scores agree to 1e-5.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import transformers

from workflow.data.packing import pad
from workflow.data.scoring import Scoring
from workflow.data.sources import find_source
from workflow.inference.batch import predictions, score_all
from workflow.inference.head_engine import score_engine
from workflow.models.classifier import LabelRows, LoadedClassifier, label_tokens
from workflow.models.load import quiet_transformers
from workflow.models.scratch import make_model, train_vocabulary
from workflow.models.shapes import SHAPES
from workflow.recipe.scorers import LoadedScorer, score_requests
from workflow.runtime import current_commit

parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("--like", default="t5-small", choices=list(SHAPES))
parser.add_argument("--rows", type=int, default=64)
parser.add_argument("--rounds", type=int, default=3)
given = parser.parse_args()

torch.set_num_threads(1)
quiet_transformers()
rows = [row for split, _, row in find_source(given.data, Path("mount")).rows() if split == "eval"][: given.rows]
scoring = Scoring()
texts = [" ".join(part for part in scoring.texts.of(row) if part) for row in rows]
tokenizer = train_vocabulary(iter(texts * 4), vocab_size=8000)
plain = make_model(SHAPES[given.like], tokenizer, seed=0).eval()
tokens = label_tokens(tokenizer, scoring.labels)
head = plain.lm_head
loaded = LoadedClassifier(
    plain, tokenizer, problem="binary", labels=scoring.labels, start_token=plain.config.decoder_start_token_id
)
requests = score_requests(LoadedScorer(loaded, scoring, None), rows)


@torch.no_grad()
def by_generate() -> list[float]:
    """One row at a time, as users of transformers do."""
    plain.lm_head = head
    found = []
    for request in requests:
        out = plain.generate(
            input_ids=torch.tensor([request.token_ids]),
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found.append(float(out.logits[0][0, tokens].softmax(0)[1]))
    return found


@torch.no_grad()
def by_padded_batches() -> list[float]:
    """The whole head for one position, 32 rows at a time in the file's order, as users of transformers do next."""
    plain.lm_head = head
    found: list[float] = []
    for start in range(0, len(requests), 32):
        ids = [request.token_ids for request in requests[start : start + 32]]
        logits = plain(
            input_ids=pad(ids, tokenizer.pad_token_id),
            attention_mask=pad([[1] * len(row) for row in ids], 0),
            decoder_input_ids=torch.full((len(ids), 1), plain.config.decoder_start_token_id),
        ).logits[:, 0, tokens]
        found += logits.softmax(-1)[:, 1].tolist()
    return found


def by_engine() -> list[float]:
    """Packed, the label rows of the head, one position."""
    plain.lm_head = label_rows
    logits = score_all(engine, requests, width=loaded.width)
    return [float(score) for score in predictions("binary", logits)[:, 1]]


label_rows = LabelRows(head.weight, tokens)
plain.lm_head = label_rows
engine = score_engine(loaded, fuse=True)
contenders = {"generate": by_generate, "padded": by_padded_batches, "engine": by_engine}
seconds: dict[str, list[float]] = {name: [] for name in contenders}
scores: dict[str, list[float]] = {}
for _ in range(given.rounds):
    for name, run in contenders.items():
        started = time.process_time()
        scores[name] = run()
        seconds[name].append(time.process_time() - started)
difference = max(abs(a - b) for other in scores.values() for a, b in zip(scores["engine"], other, strict=True))
best = {name: min(values) for name, values in seconds.items()}
print(
    json.dumps(
        {
            "what": "scoring by the engine against generate(max_new_tokens=1) one by one and padded batches of 32, fp32, CPU seconds of one thread",
            "shape": given.like,
            "rows": len(rows),
            "tokens": sum(len(request.token_ids) for request in requests),
            "seconds": best,
            "ratio": {name: best[name] / best["engine"] for name in ("generate", "padded")},
            "gate": {"difference": difference, "passed": difference <= 1e-5},
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "commit": current_commit(),
        }
    )
)
