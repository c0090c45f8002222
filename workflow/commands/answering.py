"""`workflow generate`.

Knows nothing of models.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from workflow.commands.parsing import add_mount, command_parser
from workflow.errors import ConfigError


def generate(argv: Sequence[str]) -> int:
    """Answers prompts with a run or a checkpoint."""
    parser = command_parser(
        "generate",
        "Answers prompts with a run or a checkpoint.",
        'workflow generate quickstart "Normalise the date: March 3rd, 2021"',
    )
    parser.add_argument("model", metavar="RUN", help="a run's name under mount/models, a folder, or a hub name")
    parser.add_argument("prompt", nargs="*", help="prompts to answer, one line each on standard output")
    parser.add_argument(
        "--data", metavar="FILE", help='a file of rows with "prompt" (.json, .jsonl, .csv, .tsv, .parquet); needs --out'
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="prediction file to write, in the format of training-time evaluations"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="below 0.01 decoding is greedy (default: 0)")
    parser.add_argument("--n_samples", type=int, default=1, help="answers per prompt (default: 1)")
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--top_k", type=int, default=0)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--max_new_tokens", type=int, help="by default what the checkpoint was saved with")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    add_mount(parser)
    given = parser.parse_args(argv)
    _check_generate(given)
    from workflow.recipe.predict import generate

    return generate(given)


def _check_generate(given: argparse.Namespace) -> None:
    from workflow.config.settings import GREEDY_BELOW

    if bool(given.prompt) == bool(given.data):
        raise ConfigError("workflow generate: pass either prompts or --data FILE")
    if given.data and not given.out:
        raise ConfigError("workflow generate: --data needs --out FILE")
    if given.num_beams > 1 and (given.temperature >= GREEDY_BELOW or given.n_samples > 1):
        raise ConfigError("workflow generate: --num_beams needs greedy decoding (--temperature 0) and --n_samples 1")
    if given.temperature < GREEDY_BELOW and (given.top_p != 1 or given.top_k):
        raise ConfigError(
            "workflow generate: --top_p and --top_k say nothing with greedy decoding (a --temperature below 0.01); pass --temperature 1, say"
        )
    for name in ("n_samples", "num_beams", "batch_size"):
        if getattr(given, name) < 1:
            raise ConfigError(f"workflow generate: --{name} must be at least 1")
    if given.temperature < 0 or not 0 < given.top_p <= 1 or given.top_k < 0 or (given.max_new_tokens or 1) < 1:
        raise ConfigError(
            "workflow generate: --temperature and --top_k must not be negative, --top_p lies in (0, 1], --max_new_tokens is at least 1"
        )
