"""What every kind of run needs before it starts: where it is, its model, its data, its header.

Knows nothing of the loop. Each step that can fail on one rank is made to fail on all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from workflow import paths as names
from workflow.config.settings import Seq2SeqSettings
from workflow.data.checks import check
from workflow.data.examples import SEQ2SEQ, Examples, load_examples
from workflow.data.features import Features, LengthLimits, load_features
from workflow.data.packing import Batch
from workflow.data.sources import Source
from workflow.errors import ConfigError, did_you_mean
from workflow.evaluation.evaluator import Evaluator
from workflow.inference.engine import TransformersEngine
from workflow.inference.sampling import SamplingParams
from workflow.models.load import LoadedModel, is_path, load_seq2seq
from workflow.models.verbalizers import no_yes_tokens
from workflow.runtime import Ranks, collectively, torch_device
from workflow.training.objectives import token_losses

DEBUG_LIMITS = (64, 16)


@dataclass(frozen=True)
class Place:
    """Where a run happens: this process's ranks and device, the mount, and a console that is silent but on the first rank."""

    ranks: Ranks
    device: str
    mount: Path
    console: Console


@dataclass(frozen=True)
class Data:
    """A data set with its token ids."""

    examples: Examples
    train: Features
    eval: Features

    @property
    def longest_completion(self) -> int:
        """Tokens, end of sequence included."""
        return max(
            (int(features.lengths("completion").max()) for features in (self.train, self.eval) if len(features)),
            default=1,
        )


def run_name(settings: Seq2SeqSettings) -> str:
    """The name of the run's folder."""
    if settings.run.training_run_name is not None:
        return names.checked_name(settings.run.training_run_name, what="--training_run_name")
    init = settings.model.model_init_path or settings.model.model_init_name
    data = settings.data.data_name
    assert init is not None
    assert data is not None
    return names.run_name(init, data, settings.run.seed)


def model_name(settings: Seq2SeqSettings, mount: Path) -> str:
    """The folder or hub name to load; a run folder means its best checkpoint."""
    given = settings.model.model_init_path
    if given is None:
        assert settings.model.model_init_name is not None
        given = str(mount / "models" / names.checked_name(settings.model.model_init_name, what="--model_init_name"))
        if not Path(given).exists():
            raise ConfigError(
                f"--model_init_name {settings.model.model_init_name}: no such folder: {given}; --model_init_path takes a path or a hub name"
            )
    return str(names.model_folder(Path(given))) if is_path(given) else given


def load_model(name: str, settings: Seq2SeqSettings, place: Place) -> LoadedModel:
    """The model on every rank; from the hub, the first rank of a machine fetches it before the others read it."""
    if not is_path(name):
        place.console.print(f"fetching {name} from the hub, unless it is in the local cache")
    return collectively(
        lambda: load_seq2seq(name, dropout=settings.model.dropout), place.ranks, first_alone=not is_path(name)
    )


def load_data(source: Source, settings: Seq2SeqSettings, tokenizer: Any, place: Place) -> Data:
    """Rows and token ids, made by the first rank of each machine and mapped by all."""
    limits = LengthLimits(settings.data.max_source_length, settings.data.max_target_length, settings.data.keep_source)
    row_limits = DEBUG_LIMITS if settings.run.debug else (None, None)
    cache = names.cache_dir()

    def load() -> Data:
        examples = load_examples(source, SEQ2SEQ, cache, limits=row_limits)
        train, evaluation = (load_features(examples, split, tokenizer, limits, cache) for split in ("train", "eval"))
        return Data(examples, train, evaluation)

    data = collectively(load, place.ranks, first_alone=True)
    if not len(data.eval):
        place.console.print("no eval rows: nothing will be evaluated, and the last checkpoint counts as the best")
    return data


def check_slice_key(key: str | None, data: Data) -> None:
    """Refuses a key that no eval row has. Raises ConfigError."""
    rows = data.examples.eval
    if key is None or not len(rows) or any(key in row for row in rows):
        return
    raise ConfigError(
        f"--slice_by {key}: no eval row has this key{did_you_mean(key, rows[0])}; the first has {', '.join(rows[0])}"
    )


def say_data(data: Data, tokenizer: Any, console: Console, ranks: Ranks) -> None:
    """The short form of `workflow data check`."""
    if not ranks.is_first:
        return
    found = check(data.examples, features={"train": data.train, "eval": data.eval}, tokenizer=tokenizer)
    rows = ", ".join(f"{split.rows} {name} rows" for name, split in found.splits.items())
    console.print(f"data      {found.label}: {rows}")
    for warning in found.warnings():
        console.print(f"  [yellow]note[/]  {escape(warning)}")


def sampling(settings: Seq2SeqSettings, data: Data) -> SamplingParams:
    """How evaluation decodes; the longest completion of the data bounds the length."""
    evaluation = settings.evaluation
    return SamplingParams(
        max_new_tokens=evaluation.max_new_tokens or data.longest_completion,
        temperature=evaluation.temperature,
        top_k=evaluation.top_k,
        top_p=evaluation.top_p,
        n=evaluation.n_samples,
        num_beams=evaluation.num_beams,
    )


def evaluator(
    settings: Seq2SeqSettings, place: Place, data: Data, model: Any, tokenizer: Any, *, in_step: bool
) -> Evaluator:
    """An evaluator of the eval rows on a model as it is at each call; `in_step` for models sharded by ZeRO-3."""
    engine = TransformersEngine(model, tokenizer, label_tokens=no_yes_tokens(tokenizer), in_step=in_step)

    @torch.no_grad()
    def row_losses(batch: Batch) -> torch.Tensor:
        was_training = model.training
        model.eval()
        try:
            return token_losses(model, batch, model.config).sum(dim=1)
        finally:
            model.train(was_training)

    return Evaluator(
        engine,
        row_losses,
        data.examples.eval,
        data.eval,
        sampling(settings, data),
        ranks=place.ranks,
        device=torch_device(place.device, place.ranks),
        batch_size=settings.evaluation.eval_batch_size,
        seed=settings.run.seed,
        pad_id=tokenizer.pad_token_id,
        slice_by=settings.evaluation.slice_by,
    )
