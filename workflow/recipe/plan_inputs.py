"""What a plan is made from: a model's configuration, the lengths of rows, the GPUs at hand. No weight is read.

Knows nothing of what is decided from them. Imports torch only where there is a GPU to be asked.
"""

from __future__ import annotations

import ctypes
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from workflow import paths as names
from workflow.config.clf_settings import ClfSettings
from workflow.config.settings import Seq2SeqSettings
from workflow.data.sources import Source, find_source
from workflow.errors import DataError, ModelError, did_you_mean
from workflow.models.model_shape import T5_FAMILIES, ModelShape, T5Shape, shape_of
from workflow.models.published import PUBLISHED, published_config
from workflow.training.flops import PEAK_FLOPS, peak_flops

Settings = Seq2SeqSettings | ClfSettings

FAMILIES = ("t5-*", "t5-v1_1-*", "flan-t5-*", "mt5-*", "umt5-*", "byt5-*", "bert-*", "gpt2-*")

DEFAULT_GPUS = (1, 2, 4, 8)
DEFAULT_MEMORY = 80 * 10**9
DEFAULT_GPU = "A100"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.txt", "vocab.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Model:
    """A model by name; `folder` holds its tokenizer where there is one here."""

    name: str
    config: dict[str, Any]
    shape: ModelShape
    folder: str | None


@dataclass(frozen=True)
class Lengths:
    """Tokens of the training rows, or of one row as long as the limits allow; `note` says which. `num_rows`: None if not known."""

    sources: npt.NDArray[np.integer]
    targets: npt.NDArray[np.integer]
    num_rows: int | None
    note: str

    @property
    def longest(self) -> tuple[int, int]:
        """Of the row with most tokens."""
        row = int(np.argmax(self.sources.astype(np.int64) + self.targets))
        return int(self.sources[row]), int(self.targets[row])


@dataclass(frozen=True)
class Machine:
    """Counts of GPUs to plan for, the memory of the smallest in bytes, and their peak in FLOP/s where it is known."""

    counts: tuple[int, ...]
    memory: int
    device: str
    label: str
    gpu: str | None

    @property
    def peak(self) -> float | None:
        """Dense bf16."""
        return peak_flops(self.gpu) if self.gpu is not None else None


def find_model(settings: Settings, mount: Path) -> Model:
    """The model that training would start from. Raises ModelError."""
    name, folder = _model_name(settings, mount)
    labels = len(settings.score.labels) if isinstance(settings, ClfSettings) else 2
    if folder is None:
        config = published_config(name) or _cached(name)
        where = name if _cached_file(name, *TOKENIZER_FILES) else None
    else:
        config, where = _read(folder / "config.json"), str(folder)
    if config is None:
        near = did_you_mean(name.rpartition("/")[2], PUBLISHED)
        raise ModelError(
            f"{name}: no folder here, no published size that is known, and no config.json in the hub's cache{near}; "
            f"known are the published {', '.join(FAMILIES)}"
        )
    return Model(name, config, shape_of(config, name=name, num_labels=labels), where)


def _model_name(settings: Settings, mount: Path) -> tuple[str, Path | None]:
    """(name, its folder or None). A name under the mount that is not there may still be a published one."""
    model = settings.model
    given = model.model_init_path
    if given is None and model.model_init_name is not None:
        folder = mount / "models" / names.checked_name(model.model_init_name, what="--model_init_name")
        return model.model_init_name, names.model_folder(folder) if folder.exists() else None
    given = given or getattr(model, "model_pretrain_name", None)
    assert given is not None
    folder = Path(given)
    return given, names.model_folder(folder) if folder.exists() else None


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot read this configuration: {error}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{file}: holds no object")
    return found


def _cached_file(name: str, *files: str) -> str | None:
    """The first of a hub model's files that the cache holds."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = (try_to_load_from_cache(name, file) for file in files)
        return next((path for path in found if isinstance(path, str)), None)
    except HFValidationError:
        return None


def _cached(name: str) -> dict[str, Any] | None:
    file = _cached_file(name, "config.json")
    return _read(Path(file)) if file is not None else None


# ---- lengths


def find_lengths(settings: Settings, model: Model, mount: Path, *, needs_data: bool) -> Lengths:
    """Of the data where it and a tokenizer are here (made once, kept in the cache), else the settings' limits.

    Raises DataError for data that is not here where the plan `needs_data`, and for broken data.
    """
    name = settings.data.data_name
    if name is None:
        return _limits(settings, model, None, "no --data_name given")
    try:
        source = find_source(name, mount, settings.data.quoting)
    except DataError as error:
        if needs_data:
            raise
        return _limits(settings, model, None, f"the data is not here ({error})")
    if model.folder is None:
        rows = sum(split == "train" for split, _, _ in source.rows())
        return _limits(settings, model, rows, f"no tokenizer of {model.name} here")
    sources, targets = _tokens(settings, model, model.folder, source)
    if not len(sources):
        raise DataError(f'{source.label}: no training rows ("train" is empty or missing)')
    return Lengths(sources, targets, len(sources), f"lengths of the {len(sources):,} training rows")


def _limits(settings: Settings, model: Model, rows: int | None, why: str) -> Lengths:
    source, target = _longest_allowed(settings, model)
    text = f"{why}: every row is taken to be as long as the limits, {source} + {target} tokens"
    return Lengths(np.array([source]), np.array([target]), rows, text)


def _longest_allowed(settings: Settings, model: Model) -> tuple[int, int]:
    if isinstance(settings, Seq2SeqSettings):
        return settings.data.max_source_length, settings.data.max_target_length
    if isinstance(model.shape, T5Shape):
        return settings.score.max_length, 1
    return min(settings.score.max_length, model.shape.num_positions), 0


def _tokens(
    settings: Settings, model: Model, folder: str, source: Source
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    from workflow.data.class_names import class_names
    from workflow.data.encoders import INPUT, LengthLimits, ScoreEncoder, Seq2SeqEncoder
    from workflow.data.examples import SEQ2SEQ, ScoredRows, load_examples
    from workflow.data.features import load_features
    from workflow.data.scoring import Scoring
    from workflow.data.texts import read_template
    from workflow.models.load import load_tokenizer, quiet_transformers
    from workflow.recipe.settling import settled

    quiet_transformers()
    cache = names.cache_dir()
    if isinstance(settings, Seq2SeqSettings):
        data = settings.data
        limits = LengthLimits(data.max_source_length, data.max_target_length, data.keep_source)
        encoder = Seq2SeqEncoder(load_tokenizer(folder), limits)
        features = load_features(load_examples(source, SEQ2SEQ, cache), "train", encoder, cache)
        return features.lengths("prompt"), features.lengths("completion")
    score = settings.score
    low, high = score.target_range or (0.0, 1.0)
    template = read_template(score.template) if score.template is not None else None
    classes = class_names(row for _, _, row in source.rows())
    scoring = settled(score, Scoring(score.kind, score.labels, low, high, template), folder, classes, trained=False)
    is_t5 = model.config["model_type"] in T5_FAMILIES
    tokenizer = load_tokenizer(settings.model.tokenizer or folder, for_scores=not is_t5)
    targets = scoring.targets(from_text=source.is_untyped, names=classes)
    has_types = (
        not is_t5 and "token_type_ids" in tokenizer.model_input_names and model.config.get("type_vocab_size", 2) > 1
    )
    longest, _ = _longest_allowed(settings, model)
    score_encoder = ScoreEncoder(
        tokenizer, scoring.texts, longest, settings.data.keep_source, is_t5, has_types, targets
    )
    examples = load_examples(source, ScoredRows(scoring.texts, targets), cache)
    lengths = load_features(examples, "train", score_encoder, cache).lengths(INPUT)
    return lengths, np.full(len(lengths), int(is_t5), dtype=np.int32)


# ---- the machine


def find_machine(*, counts: tuple[int, ...] | None, memory: int | None, gpu: str | None) -> Machine:
    """The GPUs that are asked for; what is not said is this machine's where it has GPUs, else a usual one's."""
    here = _gpus_here() if memory is None else []
    if memory is None and here:
        name, found = min(here, key=lambda one: one[1])
        return Machine(counts or (len(here),), found, "cuda", f"{name} of this machine", gpu or name)
    text = "as asked" if memory is not None else "assumed, for there is no GPU here"
    return Machine(counts or DEFAULT_GPUS, memory or DEFAULT_MEMORY, "cuda", text, gpu or DEFAULT_GPU)


def this_machine(nproc: int | None) -> Machine:
    """What training would get here: its GPUs, or as many CPU ranks as asked for, which share the memory."""
    from workflow.runtime import ranks_from_environment

    ranks = ranks_from_environment()
    world_size = ranks.world_size if ranks is not None else nproc
    if here := _gpus_here():
        return find_machine(counts=(world_size or len(here),), memory=None, gpu=None)
    count = world_size or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine((count,), memory // count, "cpu", "a rank's share of this machine's memory, no GPU here", None)


def _gpus_here() -> list[tuple[str, int]]:
    """(name, bytes) of each visible GPU. torch is asked only where there is a driver: it is slow to import."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    import torch

    every = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [(one.name, one.total_memory) for one in every]


def known_gpu(name: str) -> str:
    """A GPU whose peak is known. Raises ModelError otherwise."""
    if peak_flops(name) is None:
        raise ModelError(
            f"--gpu {name}: no peak is known{did_you_mean(name, PEAK_FLOPS)}; known are {', '.join(PEAK_FLOPS)}"
        )
    return name
