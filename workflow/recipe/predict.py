"""`workflow generate`: answers prompts on the terminal, or a file of rows into a prediction file.

Knows nothing of run folders but where their models are.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workflow import paths as names
from workflow.console import make_console
from workflow.data.encoders import encode
from workflow.data.examples import PROMPTS, row_problem
from workflow.data.sources import Row, file_rows
from workflow.data.tables import quoting_note
from workflow.errors import DataError
from workflow.evaluation.evaluator import write_predictions
from workflow.files import read_json
from workflow.inference.batch import generate_all
from workflow.inference.engine import T5Engine
from workflow.inference.interface import EngineLimits
from workflow.inference.requests import GenerateRequest, Result
from workflow.inference.sampling import SamplingParams
from workflow.models.load import LoadedModel, load_seq2seq, quiet_transformers
from workflow.models.verbalizers import no_yes_tokens
from workflow.recipe.place import Place, model_to_use
from workflow.runtime import Ranks, derived_seed, pick_device, torch_device
from workflow.training.ds_config import torch_dtype

DEFAULT_NEW_TOKENS = 256
"""For checkpoints that do not say; transformers would stop after 20."""


def answer(
    loaded: LoadedModel, model: Any, prompts: Sequence[str], params: SamplingParams, *, batch_size: int, seed: int
) -> list[Result]:
    """Answers prompts, whole (nothing is cut), in their order."""
    ids = encode(loaded.tokenizer, list(prompts))
    limits = EngineLimits.at_least(
        rows=max(batch_size, params.n, params.num_beams), tokens=max(map(len, ids), default=1)
    )
    engine = T5Engine(model, loaded.tokenizer, limits=limits, fuse=True, answers=loaded.answers)
    labels = no_yes_tokens(loaded.tokenizer)
    requests = [
        GenerateRequest(row, params, seed=derived_seed(seed, "sampling", number), label_tokens=labels)
        for number, row in enumerate(ids)
    ]
    return generate_all(engine, requests)


def generate(given: Namespace) -> int:
    """`workflow generate`: answers prompts on the terminal, or a file of rows into a prediction file."""
    quiet_transformers()
    place = Place(Ranks(), pick_device(), names.find_mount(given.mount), make_console())
    rows = _prompt_rows(given)
    source = model_to_use(given.model, place.mount)
    loaded = load_seq2seq(source)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    params = SamplingParams(
        max_new_tokens=given.max_new_tokens or loaded.model.generation_config.max_new_tokens or DEFAULT_NEW_TOKENS,
        temperature=given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        n=given.n_samples,
        num_beams=given.num_beams,
    )
    dtype = torch_dtype(given.precision, place.device)
    model = loaded.model.to(torch_device(place.device, place.ranks), dtype).eval()
    results = answer(
        loaded, model, [row["prompt"] for row in rows], params, batch_size=given.batch_size, seed=given.seed
    )
    if longer := _longer_than_trained(Path(source), loaded.tokenizer, rows):
        print(f"note: {longer}", file=sys.stderr)
    cut = sum(generation.finish_reason == "length" for result in results for generation in result.generations)
    if given.out:
        assert loaded.answers is not None
        write_predictions(given.out, rows, results, reference=loaded.answers.reference)
        place.console.print(f"{len(rows)} rows answered; predictions in {given.out}")
    else:
        for result in results:
            for generation in result.generations:
                print(generation.text)
    if cut:
        print(
            f"note: {cut} answers were cut at {params.max_new_tokens} tokens; --max_new_tokens allows more",
            file=sys.stderr,
        )
    return 0


def _longer_than_trained(checkpoint: Path, tokenizer: Any, rows: Sequence[Row]) -> str | None:
    """What a run's own evaluations would have cut, and what is read whole here."""
    settings = (read_json(checkpoint.parent / names.SETTINGS_NAMES[0]) or {}).get("settings", {})
    limit = settings.get("max_source_length")
    if not isinstance(limit, int):
        return None
    longer = sum(len(ids) > limit for ids in encode(tokenizer, [row["prompt"] for row in rows]))
    if not longer:
        return None
    return f"{longer} prompts have more than the {limit} tokens that this run was trained to read (--max_source_length); they are read whole"


def _prompt_rows(given: Namespace) -> list[Row]:
    if not given.data:
        return [{"prompt": prompt} for prompt in given.prompt]
    file = Path(given.data)
    if not file.is_file():
        raise DataError(f"--data {file}: no such file")
    rows = []
    if note := quoting_note(file, given.quoting):
        print(f"note: {note}", file=sys.stderr)
    for number, (_, row) in enumerate(file_rows(file, given.quoting)):
        if problem := PROMPTS.problem(row) or row_problem(row):
            raise DataError(f"{file}: row {number}: {problem}")
        rows.append(row)
    if not rows:
        raise DataError(f"{file}: no rows")
    return rows
