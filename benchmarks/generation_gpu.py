"""How fast the engine generates on one GPU; runs unaided there and prints one JSON line a scenario.

    python benchmarks/generation_gpu.py [--like flan-t5-xl] [--prompts 128] [--new_tokens 128] [--device cuda]

Random weights in bf16, prompts of 260 to 440 random tokens, a fixed number of new tokens each. The gate: on some prompts of the small
shape in fp32, recorded steps give the tokens of eager ones. `--device cpu --like tiny` tries the script itself.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from typing import Any

import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

from workflow.inference.batch import generate_all
from workflow.inference.engine import T5Engine
from workflow.inference.interface import EngineLimits
from workflow.inference.requests import GenerateRequest
from workflow.inference.sampling import SamplingParams
from workflow.models.shapes import SHAPES
from workflow.runtime import current_commit

VOCABULARY = 32128
LENGTHS = (260, 440)


class Numbers:
    """A tokenizer whose texts are the token numbers: detokenizing is not what is measured."""

    eos_token_id = 1

    def decode(self, tokens: list[int], **_: Any) -> str:
        """The numbers."""
        return " ".join(map(str, tokens))


def make(like: str, dtype: torch.dtype) -> Any:
    """A model of a published shape with random weights, made on the device."""
    shape = SHAPES[like]
    config = T5Config(
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
    )
    with torch.device(given.device):
        return T5ForConditionalGeneration(config).to(dtype).eval()


def requests(count: int, new_tokens: int) -> list[GenerateRequest]:
    """Prompts of random tokens, and so many new tokens each."""
    rng = random.Random(0)
    params = SamplingParams(new_tokens, min_new_tokens=new_tokens)
    return [
        GenerateRequest([rng.randrange(3, VOCABULARY) for _ in range(rng.randint(*LENGTHS))], params)
        for _ in range(count)
    ]


def synchronised() -> float:
    """Now, with the device idle."""
    if given.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(engine: T5Engine, asked: list[GenerateRequest]) -> list[float]:
    """Each round's time, after a first one that is not counted."""
    found = []
    for _ in range(given.rounds + 1):
        started = synchronised()
        generate_all(engine, asked)
        found.append(synchronised() - started)
    return found[1:]


def gate() -> dict[str, Any]:
    """Recorded (fused) against eager steps in fp32: the share of equal answers."""
    model, asked = make("tiny", torch.float32), requests(16, 24)
    limits = EngineLimits.at_least(rows=16, tokens=LENGTHS[1])
    eager = generate_all(T5Engine(model, Numbers(), limits=limits), asked)
    fused = generate_all(T5Engine(model, Numbers(), limits=limits, fuse=True), asked)
    equal = sum(a.generations[0].token_ids == b.generations[0].token_ids for a, b in zip(eager, fused, strict=True))
    return {"equal": equal, "of": len(asked), "passed": equal == len(asked)}


def main() -> None:
    """All prompts at once, and one alone."""
    model = make(given.like, torch.bfloat16)
    limits = EngineLimits.at_least(rows=given.prompts, tokens=64 * LENGTHS[1])
    engine = T5Engine(model, Numbers(), limits=limits, fuse=True)
    report: dict[str, Any] = {"what": "generation by the engine, bf16", "shape": given.like, "gate": gate()}
    for name, count in (("all", given.prompts), ("one", 1)):
        took = seconds(engine, requests(count, given.new_tokens))
        rate = count * given.new_tokens / min(took)
        report[name] = {
            "prompts": count,
            "seconds": min(took),
            "median_s": sorted(took)[len(took) // 2],
            "tokens_per_s": rate,
        }
    if given.device == "cuda":
        report["hardware"] = torch.cuda.get_device_name()
        report["memory_bytes"] = torch.cuda.max_memory_allocated()
    report["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({**report, "new_tokens": given.new_tokens, "commit": current_commit()}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--like", default="flan-t5-xl", choices=list(SHAPES))
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    main()
