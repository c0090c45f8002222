"""Loads a run as a service: its engine, its texts, and what it was saved with. The one place that makes engines.

Knows nothing of HTTP or names' safety (`checkpoints`).
"""

from __future__ import annotations

import copy
import gc
import logging
from pathlib import Path
from typing import Any

import torch

from workflow import paths
from workflow.data.scoring import Scoring, read_scoring
from workflow.errors import ConfigError
from workflow.evaluation.score_files import read_calibration
from workflow.inference.engine import T5Engine
from workflow.inference.head_engine import HeadEngine
from workflow.inference.interface import Engine, EngineLimits
from workflow.models.ends import end_tokens
from workflow.models.load import FAMILIES, load_seq2seq, model_family, quiet_transformers
from workflow.models.manifest import check_hashes
from workflow.recipe.scorers import load_scorer
from workflow.runtime import Ranks, torch_device
from workflow.server.memory import serving_place
from workflow.server.service import LoadService, Service
from workflow.server.settings import ServeSettings
from workflow.server.texts import ModelTexts

logger = logging.getLogger("workflow.server")


def make_loader(settings: ServeSettings) -> LoadService:
    """A function that loads a run by these settings."""
    quiet_transformers()
    device, dtype = serving_place(settings.models)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: no GPU is visible here")

    def load_service(name: str, path: Path) -> Service:
        """The run of a name, from its checkpoint's folder. Raises ModelError."""
        if settings.models.check_hashes:
            check_hashes(path)
        is_t5 = model_family(str(path)) in FAMILIES
        model, texts, new_tokens, loaded = (_load_t5 if is_t5 else _load_head)(path)
        for note in loaded.notes:
            logger.warning("run %s: %s", name, note)
        model.to(torch_device(device, Ranks()), dtype).eval()
        return Service(
            name,
            path,
            make_engine(settings, model, loaded, is_t5=is_t5),
            texts,
            default_new_tokens=new_tokens or settings.engine.default_new_tokens,
            memory_bytes=sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
            device=device,
            precision="bf16" if dtype == torch.bfloat16 else "fp32",
            release=_give_memory_back,
        )

    return load_service


def make_engine(settings: ServeSettings, model: Any, loaded: Any, *, is_t5: bool) -> Engine:
    """An engine for a model that stands on its device; `loaded` has its tokenizer, and for a head how it is called."""
    bounds = settings.engine
    limits = EngineLimits(bounds.max_rows, bounds.max_encode_tokens, bounds.max_cache_tokens)
    if is_t5:
        return T5Engine(model, loaded.tokenizer, limits=limits, fuse=True, answers=loaded.answers)
    return HeadEngine(loaded, limits=limits)


def _load_t5(path: Path) -> tuple[Any, ModelTexts, int | None, Any]:
    """A T5, whether it was trained to score or not: the whole head stays, of which scores read the labels' rows."""
    loaded = load_seq2seq(str(path), mapped=False)
    own = read_scoring(path / paths.SCORING_NAME)
    texts = ModelTexts(
        copy.deepcopy(loaded.tokenizer),  # two threads, the engine's and the texts', must not share one
        vocab_size=loaded.model.config.vocab_size,
        scoring=own or Scoring(),
        own_scoring=own is not None,
        calibration=read_calibration(path / paths.CALIBRATION_NAME),
        ends=frozenset(end_tokens(loaded.model)),
    )
    return loaded.model, texts, loaded.model.generation_config.max_new_tokens, loaded


def _load_head(path: Path) -> tuple[Any, ModelTexts, int | None, Any]:
    """A model with a classification head."""
    scorer = load_scorer(str(path), mapped=False)
    loaded = scorer.loaded
    texts = ModelTexts(
        copy.deepcopy(loaded.tokenizer),
        vocab_size=loaded.model.config.vocab_size,
        scoring=scorer.scoring,
        own_scoring=True,
        calibration=scorer.calibration,
        ends_in_eos=False,
        has_types=loaded.takes_types,
    )
    return loaded.model, texts, None, loaded


def _give_memory_back() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
