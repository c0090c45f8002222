"""Uses a model without training it: `--no_train` evaluates on a data set, `workflow generate` answers prompts.

Knows nothing of run folders but where their models are.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from workflow import paths as names
from workflow.config.settings import Seq2SeqSettings
from workflow.console import make_console
from workflow.data.examples import PROMPTS, row_problem
from workflow.data.features import encode
from workflow.data.sources import Row, Source, file_rows
from workflow.errors import DataError, ModelError, did_you_mean
from workflow.evaluation.evaluator import write_predictions
from workflow.evaluation.report import measured
from workflow.files import write_json
from workflow.inference.engine import Request, Result, TransformersEngine, generate_all
from workflow.inference.sampling import SamplingParams
from workflow.models.load import LoadedModel, is_path, load_seq2seq, quiet_transformers
from workflow.models.verbalizers import no_yes_tokens
from workflow.recipe.prepare import Place, check_slice_key, evaluator, load_data, load_model, model_name, run_name
from workflow.runtime import Ranks, derived_seed, on_first, pick_device, torch_device
from workflow.training.ds_config import pick_precision

DEFAULT_NEW_TOKENS = 256
"""For checkpoints that do not say; transformers would stop after 20."""


def evaluate_only(settings: Seq2SeqSettings, place: Place, source: Source) -> None:
    """Predictions and metrics of a model go to preds/PRED_DIR of the working directory; no run is touched."""
    loaded = load_model(model_name(settings, place.mount), settings, place)
    data = load_data(source, settings, loaded.tokenizer, place)
    if not len(data.eval):
        raise DataError(f"{source.label}: no eval rows, so there is nothing to do with --no_train")
    check_slice_key(settings.evaluation.slice_by, data)
    folder = Path("preds") / names.checked_name(settings.run.pred_dir or run_name(settings), what="--pred_dir")
    model = placed(loaded, place, precision=settings.model.precision)
    runner = evaluator(settings, place, data, model, loaded.tokenizer, in_step=False)
    found = runner.evaluate()

    def write() -> None:
        file = folder / names.predictions_name(
            temperature=settings.evaluation.temperature, n_samples=settings.evaluation.n_samples, step=0
        )
        write_predictions(file, data.examples.eval, found.results)
        write_json(folder / "metrics.json", measured(0, found.metrics, found.slices).model_dump(mode="json"))
        place.console.print(found.one_line())
        place.console.print(f"predictions in {file}", soft_wrap=True)

    on_first(write, place.ranks)


def placed(loaded: LoadedModel, place: Place, *, precision: str) -> Any:
    """The model on this rank's device in its precision, for inference."""
    dtype = torch.bfloat16 if pick_precision(precision, place.device) == "bf16" else torch.float32
    return loaded.model.to(torch_device(place.device, place.ranks), dtype).eval()


def answer(
    loaded: LoadedModel, model: Any, prompts: Sequence[str], params: SamplingParams, *, batch_size: int, seed: int
) -> list[Result]:
    """Answers prompts, whole (nothing is cut), in their order."""
    engine = TransformersEngine(model, loaded.tokenizer, label_tokens=no_yes_tokens(loaded.tokenizer))
    ids = encode(loaded.tokenizer, list(prompts))
    requests = [Request(row, seed=derived_seed(seed, "sampling", number)) for number, row in enumerate(ids)]
    return generate_all(engine, requests, params, batch_size=batch_size)


def generate(given: Namespace) -> int:
    """`workflow generate`: answers prompts on the terminal, or a file of rows into a prediction file."""
    quiet_transformers()
    place = Place(Ranks(), pick_device(), names.find_mount(given.mount), make_console())
    rows = _prompt_rows(given)
    loaded = load_seq2seq(_model_to_use(given.model, place.mount))
    params = SamplingParams(
        max_new_tokens=given.max_new_tokens or loaded.model.generation_config.max_new_tokens or DEFAULT_NEW_TOKENS,
        temperature=given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        n=given.n_samples,
        num_beams=given.num_beams,
    )
    model = placed(loaded, place, precision=given.precision)
    results = answer(
        loaded, model, [row["prompt"] for row in rows], params, batch_size=given.batch_size, seed=given.seed
    )
    cut = sum(generation.finish_reason == "length" for result in results for generation in result.generations)
    if given.data:
        write_predictions(given.out, rows, results)
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


def _prompt_rows(given: Namespace) -> list[Row]:
    if not given.data:
        return [{"prompt": prompt} for prompt in given.prompt]
    file = Path(given.data)
    if not file.is_file():
        raise DataError(f"--data {file}: no such file")
    rows = []
    for number, (_, row) in enumerate(file_rows(file)):
        if problem := PROMPTS.problem(row) or row_problem(row):
            raise DataError(f"{file}: row {number}: {problem}")
        rows.append(row)
    if not rows:
        raise DataError(f"{file}: no rows")
    return rows


def _model_to_use(name: str, mount: Path) -> str:
    """A run under the mount, else a folder, else a hub name."""
    if "/" not in name and (mount / "models" / name).is_dir():
        return str(names.model_folder(mount / "models" / names.checked_name(name, what="RUN")))
    if is_path(name):
        return str(names.model_folder(Path(name)))
    runs = sorted(path.name for path in (mount / "models").glob("*") if path.is_dir() and not path.name.startswith("."))
    if hint := did_you_mean(name, runs):
        raise ModelError(f"no run named {name!r} under {mount / 'models'}{hint}")
    return name
