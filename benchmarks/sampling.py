"""What drawing a token costs beside taking the most likely one: tokens a CPU second of one engine, in turns in one process.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py

A small random T5 with a vocabulary of 32,128: the smaller the model, the more of a step is the choice of the token. Prints
one JSON line; `ratio_*` is of greedy decoding.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from transformers import T5Config, T5ForConditionalGeneration

from workflow.inference.batch import generate_all
from workflow.inference.engine import T5Engine
from workflow.inference.requests import GenerateRequest
from workflow.inference.sampling import SamplingParams

WAYS = {
    "greedy": {},
    "temperature": {"temperature": 1.0},
    "top_k": {"temperature": 1.0, "top_k": 50},
    "top_p": {"temperature": 1.0, "top_p": 0.9},
    "min_p": {"temperature": 1.0, "min_p": 0.05},
}


class Numbers:
    """A tokenizer whose text is the token numbers."""

    eos_token_id = 1

    def decode(self, tokens: list[int], **_: object) -> str:
        """The text."""
        return " ".join(map(str, tokens))


def tokens_a_cpu_second(engine: T5Engine, params: SamplingParams, num_prompts: int) -> float:
    """Of answering so many prompts side by side."""
    prompts = [[5 + 7 * number % 1000 for number in range(start, start + 20)] + [1] for start in range(num_prompts)]
    started = time.process_time()
    results = generate_all(engine, [GenerateRequest(ids, params, seed=seed) for seed, ids in enumerate(prompts)])
    tokens = sum(generation.num_tokens for result in results for generation in result.generations)
    return tokens / (time.process_time() - started)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--turns", type=int, default=7)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = T5Config(
        vocab_size=32128, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    engine = T5Engine(T5ForConditionalGeneration(config).eval(), Numbers(), fuse=True)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(given.turns):
        for way, more in WAYS.items():
            params = SamplingParams(given.tokens, **more)
            found[way].append(tokens_a_cpu_second(engine, params, given.prompts))
    best = {way: max(speeds) for way, speeds in found.items()}
    speeds = {f"tokens_per_cpu_s_{way}": round(speed) for way, speed in best.items()}
    ratios = {f"ratio_{way}": round(speed / best["greedy"], 3) for way, speed in best.items() if way != "greedy"}
    print(json.dumps({"benchmark": "sampling", "prompts": given.prompts, **speeds, **ratios}))


if __name__ == "__main__":
    main()
