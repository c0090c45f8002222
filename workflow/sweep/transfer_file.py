"""The file of a transfer matrix: which data, languages, model types, models, settings and seeds.

Knows nothing of points or data files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from workflow.config.cascade import read_settings_file
from workflow.errors import ConfigError, did_you_mean
from workflow.models.nanogpt import CHECKPOINT_FILE

ModelType = Literal["normal", "ipa"]
MODEL_SETTINGS = ("model_init_path", "model_init_name", "model_pretrain_name")
OF_THE_MATRIX = ("data_name", "data", "slice_by", "seed", *MODEL_SETTINGS)
"""Settings that the file says elsewhere."""


def listed(value: Any) -> Any:
    """A single text, number or object where a list is meant, as a list of it."""
    return [value] if isinstance(value, str | int | float | dict) else value


class Languages(BaseModel):
    """Which languages are trained on and evaluated on: "all" that have the task, or their names."""

    model_config = ConfigDict(extra="forbid")

    train: Literal["all"] | list[str] = "all"
    eval: Literal["all"] | list[str] = "all"

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return value if value == "all" else listed(value)


class Checkpoints(BaseModel):
    """nanoGPT checkpoints, PREFIX/MODEL/ckpt.pt, with a MODEL for each model type."""

    model_config = ConfigDict(extra="forbid")

    prefix: str
    normal: str | None = None
    ipa: str | None = None
    tokenizer: str | dict[ModelType, str] | None = None
    """Checkpoints have none: a path or hub name, or one for each model type."""


class TransferFile(BaseModel):
    """Everything of a matrix. `name` is a data set's name, or one for each language, where a language has several."""

    model_config = ConfigDict(extra="forbid")

    registry: str
    task: str
    name: str | dict[str, str] | None = None
    languages: Languages = Languages()
    model_types: list[ModelType] = Field(["normal"], min_length=1)
    models: list[str | dict[str, Any]] = []
    checkpoints: Checkpoints | None = None
    settings: dict[str, Any] = {}
    seeds: list[int] = Field([0], min_length=1)
    metric: str | list[str] | None = None
    report: Literal["final", "best"] = "final"

    @field_validator("model_types", "models", "seeds", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return listed(value)


@dataclass(frozen=True)
class Model:
    """A model of the matrix: what tables call it, and its settings."""

    name: str
    settings: Mapping[str, Any]


def read_transfer(path: Path) -> TransferFile:
    """Reads the file. Raises ConfigError with all of its problems."""
    values = read_settings_file(path)
    known = tuple(TransferFile.model_fields)
    problems = [
        f'unknown key "{key}"{did_you_mean(key, known)} (known are {", ".join(known)})'
        for key in values
        if key not in known
    ]
    try:
        found = TransferFile.model_validate({key: value for key, value in values.items() if key in known})
    except ValidationError as error:
        told = ((".".join(map(str, problem["loc"])), problem["msg"]) for problem in error.errors())
        problems += dict.fromkeys(f'"{where}": {message.removeprefix("Value error, ")}' for where, message in told)
    else:
        problems += _problems(found)
    if problems:
        raise ConfigError(*(f"{path}: {problem}" for problem in problems))
    return found


def _problems(given: TransferFile) -> list[str]:
    """What pydantic cannot see."""
    found = [
        f'"settings" holds "{name}", which the matrix gives its runs itself ("models", "seeds", "registry")'
        for name in OF_THE_MATRIX
        if name in given.settings
    ]
    if not given.models and given.checkpoints is None:
        found.append('no model: "models" lists paths or hub names, "checkpoints" nanoGPT checkpoints')
    for model in given.models:
        if isinstance(model, dict) and not any(model.get(name) for name in MODEL_SETTINGS):
            found.append(f'"models": {model} names no model; it needs one of {", ".join(MODEL_SETTINGS)}')
    for key, values in (("seeds", given.seeds), ("model_types", given.model_types)):
        if len(set(values)) < len(values):
            found.append(f'"{key}" names one twice: {", ".join(map(str, values))}')
    if given.checkpoints is not None:
        found += _checkpoint_problems(given.checkpoints, given.model_types)
    return found


def _checkpoint_problems(given: Checkpoints, model_types: Sequence[str]) -> list[str]:
    found = []
    for model_type in model_types:
        model = getattr(given, model_type)
        if model is None:
            found.append(f'"checkpoints" has no "{model_type}", which "model_types" asks for')
        elif not (file := Path(given.prefix, model, CHECKPOINT_FILE)).is_file():
            found.append(f'"checkpoints": no file {file} ("prefix"/"{model_type}"/{CHECKPOINT_FILE})')
    return found


def models_of(given: TransferFile, model_type: str) -> list[Model]:
    """The models of a type, those of `models` for every type alike."""
    found = [_model(model) for model in given.models]
    if given.checkpoints is not None:
        chosen = given.checkpoints
        path = Path(chosen.prefix, getattr(chosen, model_type), CHECKPOINT_FILE)
        tokenizer = chosen.tokenizer.get(model_type) if isinstance(chosen.tokenizer, dict) else chosen.tokenizer  # type: ignore[call-overload]
        settings = {"model_init_path": str(path)} | ({"tokenizer": tokenizer} if tokenizer else {})
        found.append(Model(PurePath(chosen.prefix).name or "nanogpt", settings))
    return found


def _model(given: str | Mapping[str, Any]) -> Model:
    if isinstance(given, str):
        return Model(PurePath(given).name if Path(given).exists() else given, {"model_init_path": given})
    settings = {key: value for key, value in given.items() if key != "name"}
    named = next(str(settings[key]) for key in MODEL_SETTINGS if settings.get(key))
    return Model(str(given.get("name") or PurePath(named).name), settings)
