"""Settings from layers: defaults < configs/default.json < each --config file in order < flags; later wins, deeply.

Every value keeps the name of the layer it came from. All problems of all layers are collected and told at once.
Knows nothing of argv (`flags`).
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from workflow.config.rivals import Merged, Unset
from workflow.config.sections import CommandSettings, field_aliases, section_fields, settings_within
from workflow.errors import ConfigError, did_you_mean

DEFAULT_FILE = Path("configs/default.json")
DEFAULT = "default"
FLAGS = "flag"
NULL = "null"
"""A flag's text for no value."""

OF_OTHER_FILES = {
    **dict.fromkeys(("parameters", "search"), "a grid file: workflow sweep FILE"),
    "languages": "a grid or transfer file: workflow sweep FILE, workflow suite transfer FILE",
    **dict.fromkeys(
        ("registry", "checkpoints", "models", "model_types", "train_languages", "eval_languages", "eval_language"),
        "a transfer file: workflow suite transfer FILE (docs/datasets.md)",
    ),
    **dict.fromkeys(("tasks", "preset", "num_runs", "use_best"), "a suite file: workflow suite run FILE"),
    **dict.fromkeys(("variants", "baseline"), "an ablation file: workflow ablate FILE"),
    **dict.fromkeys(
        ("train_features", "eval_feature", "splits", "task_type", "classes"), "a dataset registry: workflow data list"
    ),
    "zero_optimization": "a DeepSpeed file: --deepspeed FILE",
    **dict.fromkeys(
        ("datasets", "task", "tokenizers"),
        'a transfer file, as "task", "languages", "name" and "checkpoints": workflow suite transfer FILE (docs/datasets.md)',
    ),
    "wandb": "here: trackers and tracker_project; the entity is WANDB_ENTITY in the environment",
    "hf_cache": "here: HF_HOME in the environment",
    "cpu_only": "here: CUDA_VISIBLE_DEVICES= in front of the command",
    **dict.fromkeys(
        ("job_name", "cpus", "gpus", "timeout", "template_file"), "jobs: workflow jobs render, docs/jobs.md"
    ),
}
"""Keys that say what a file is, where it is taken for one of settings."""
GROUP = "hyperparameters"
"""A key of other programs' files whose object holds settings of any section."""
OF_OTHER_PROGRAMS = {
    **dict.fromkeys(
        ("model", "model_name", "pretrained_model", "model_name_or_path", "checkpoint", "init_from"),
        ("model_init_path",),
    ),
    **dict.fromkeys(("dataset", "dataset_name", "train_file"), ("data_name",)),
    **dict.fromkeys(("num_train_epochs", "n_epochs", "max_epochs", "epoch"), ("num_epochs",)),
    **dict.fromkeys(("max_iters", "num_steps", "train_steps", "max_train_steps"), ("max_steps",)),
    **dict.fromkeys(("warmup_proportion", "warmup_fraction"), ("warmup_ratio",)),
    **dict.fromkeys(("warmup_iters", "num_warmup_steps"), ("warmup_steps",)),
    **dict.fromkeys(("eval_interval", "eval_iters", "evaluation_steps"), ("eval_steps",)),
    **dict.fromkeys(("per_device_train_batch_size", "per_gpu_train_batch_size"), ("train_batch_size",)),
    **dict.fromkeys(("per_device_eval_batch_size", "per_gpu_eval_batch_size"), ("eval_batch_size",)),
    **dict.fromkeys(("grad_clip", "gradient_clipping", "max_gradient_norm"), ("max_grad_norm",)),
    **dict.fromkeys(("lr_scheduler_type", "scheduler", "schedule", "lr_schedule"), ("lr_scheduler",)),
    **dict.fromkeys(("optim_name", "optimizer_type"), ("optimizer",)),
    **dict.fromkeys(
        ("max_seq_length", "max_seq_len", "block_size", "context_length"), ("max_length", "max_source_length")
    ),
    **dict.fromkeys(("metric", "metric_for_best_model", "eval_metric"), ("save_best_metric", "best_metric")),
    **dict.fromkeys(("output_dir", "out_dir", "run_name", "experiment_name"), ("training_run_name",)),
    **dict.fromkeys(("random_seed", "random_state"), ("seed",)),
    **dict.fromkeys(("fp16", "bf16", "dtype", "torch_dtype"), ("precision",)),
    "num_labels": ("labels",),
}
"""Names that settings have in other programs' files; with another meaning or form at times, so that they are told, not taken."""

S = TypeVar("S", bound=CommandSettings)


@dataclass(frozen=True)
class Layer:
    """Raw values of one source, flat or by section, and the source's name for messages."""

    name: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Resolved(Generic[S]):
    """Valid settings, where each value that is not a default came from (flat name -> layer name), and what was unset.

    `unset` is by flat name, or by the dotted name of a part.
    """

    settings: S
    origins: dict[str, str] = field(default_factory=dict)
    unset: Mapping[str, Unset] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """Flat name -> JSON-ready value."""
        return flatten(self.settings)

    def origin(self, name: str) -> str:
        """The layer that gave this setting."""
        return self.origins.get(name, DEFAULT)

    def origin_text(self, name: str) -> str:
        """The layer that gave this setting, and what a later one took out."""
        gone = [
            f"{key.removeprefix(name + '.')}: {unset}" if "." in key else str(unset)
            for key, unset in self.unset.items()
            if key.partition(".")[0] == name
        ]
        return f"{self.origin(name)} ({'; '.join(gone)})" if gone else self.origin(name)


def flatten(settings: BaseModel) -> dict[str, Any]:
    """Flat name -> JSON-ready value of each setting."""
    return {name: value for section in settings.model_dump(mode="json").values() for name, value in section.items()}


def with_defaults(values: Mapping[str, Any], settings: BaseModel) -> dict[str, Any]:
    """Flat values, in which settings with parts that say nothing of a part that `settings` have say its default."""
    parts = {
        name: type(value)().model_dump(mode="json")
        for section in (getattr(settings, of) for of in type(settings).model_fields)
        for name in type(section).model_fields
        if isinstance(value := getattr(section, name), BaseModel)
    }
    return {
        name: {**parts[name], **value} if name in parts and isinstance(value, dict) else value
        for name, value in values.items()
    }


def resolve(
    settings_type: type[S], layers: Sequence[Layer], *, problems: Sequence[str] = (), complete: bool = True
) -> Resolved[S]:
    """Merges the layers into valid settings.

    Raises ConfigError with every problem found, `problems` of an earlier stage first. Unless `complete`, required
    settings may be missing, and settings that say nothing are no problem.
    """
    found = list(problems)
    layered = layered_values(settings_type, layers, found)
    layered.add_implied()
    if complete:
        found += settings_type.missing(layered.values)
    settings = _validated(settings_type, layered, found)
    if complete and (idle := layered.idle(settings, _spelled_in, [layer.name for layer in layers])) is not None:
        found += idle
        settings = _validated(settings_type, layered, found)
    if found:
        raise ConfigError(*found)
    return Resolved(settings, layered.origins, layered.unset)


def _validated(settings_type: type[S], layered: Merged, found: list[str]) -> S:
    """The settings of merged values. Raises ConfigError with what was found before, too."""
    fields = section_fields(settings_type)
    nested: dict[str, dict[str, Any]] = {}
    for name, value in layered.values.items():
        nested.setdefault(fields[name][0], {})[name] = value
    try:
        return settings_type.model_validate(nested)
    except ValidationError as error:
        found += [told for problem in error.errors() if (told := _explain(problem, layered.origins))]
        raise ConfigError(*found) from None


def layered_values(settings_type: type[CommandSettings], layers: Sequence[Layer], problems: list[str]) -> Merged:
    """Merge layers into raw values by flat name, before presets and validation; what is wrong joins `problems`."""
    merged = Merged(settings_type)
    for layer in layers:
        values = _by_flat_name(layer, settings_type, problems)
        merged.add(layer.name, values, functools.partial(_spelled_in, layer.name))
    problems += merged.problems
    return merged


def _by_flat_name(layer: Layer, settings_type: type[BaseModel], problems: list[str]) -> dict[str, Any]:
    """The layer's values by flat setting name; sections are opened, aliases replaced, unknown keys noted."""
    fields = section_fields(settings_type)
    names = {alias: name for name, (_, info) in fields.items() for alias in (name, *field_aliases(info))}
    values: dict[str, Any] = {}
    parts = {name: within for name, (_, info) in fields.items() if (within := settings_within(info))}

    def take(key: str, value: Any, section: str | None) -> None:
        name = names.get(key)
        where = f"{section}.{key}" if section else key
        if name is None or (section and fields[name][0] != section):
            problems.append(f'{layer.name}: unknown key "{where}"{_hint(key, names)}')
        elif name in values:
            problems.append(f'{layer.name}: "{where}" is given twice ({name})')
        else:
            values[name] = _opened(value) if name in parts else value
            problems.extend(_unknown_parts(layer.name, name, values[name], parts.get(name)))

    for key, value in layer.values.items():
        if key == GROUP and isinstance(value, dict):
            for inner, inner_value in value.items():
                take(inner, inner_value, None)
        elif key in settings_type.model_fields and isinstance(value, dict):
            for inner, inner_value in value.items():
                take(inner, inner_value, key)
        elif key in settings_type.model_fields and key not in names:  # "data" is both a section and a name of data_name
            problems.append(
                f'{layer.name}: "{key}" is a section and needs an object, not {json.dumps(value, default=str)}'
            )
        else:
            take(key, value, None)
    return values


def _hint(key: str, names: Mapping[str, str]) -> str:
    """What a key of other programs' files is here, or what takes the file; else the nearest name."""
    if key in OF_OTHER_FILES:
        told = OF_OTHER_FILES[key]
        return f"; {told}" if told.startswith("here: ") else f"; it is of {told}"
    if found := [name for name in OF_OTHER_PROGRAMS.get(key, ()) if name in names]:
        return f'; here it is "{found[0]}"'
    return did_you_mean(key, names)


def _opened(value: Any) -> Any:
    """Of a setting made of settings: those by their defaults for `true`, None for `false`, however these are written."""
    if isinstance(value, bool | str):
        with contextlib.suppress(ValidationError):
            return {} if TypeAdapter(bool).validate_python(value) else None
    return None if value in (NULL, "") else value


def is_off(value: Any) -> bool:
    """Whether a raw value turns a setting made of settings off."""
    return value is not None and _opened(value) is None


def _unknown_parts(origin: str, name: str, value: Any, within: type[BaseModel] | None) -> list[str]:
    if within is None or not isinstance(value, dict):
        return []
    return [
        f'{origin}: unknown key "{name}.{key}"{did_you_mean(str(key), within.model_fields)}'
        for key in value
        if key not in within.model_fields
    ]


def _explain(problem: Any, origins: dict[str, str]) -> str:
    """One line of a pydantic error: the setting, its value, its origin, what is wrong."""
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("model_type", "model_attributes_type"):
        message = "turned on and off by true and false; what more it takes is said by --help"
    if len(problem["loc"]) < 2:
        return str(message)
    if problem["type"] == "extra_forbidden":  # told before, by its layer
        return ""
    name = ".".join(map(str, problem["loc"][1:3] if isinstance(problem["loc"][-1], str) else problem["loc"][1:2]))
    value = json.dumps(problem["input"], default=str, ensure_ascii=False)
    return f"{_spelled(name, origins)} = {value}: {message}"


def _spelled(name: str, origins: dict[str, str]) -> str:
    return _spelled_in(origins.get(name.partition(".")[0], "default"), name)


def _spelled_in(origin: str, name: str) -> str:
    return f"--{name}" if origin == FLAGS else f'{origin}: "{name}"'


def read_layers(files: Sequence[Path], flags: dict[str, Any]) -> list[Layer]:
    """The layers of a command line: `configs/default.json` if there is one, the files in order, the flags."""
    all_files = [*([DEFAULT_FILE] if DEFAULT_FILE.is_file() else []), *files]
    return [*(Layer(str(path), read_settings_file(path)) for path in all_files), Layer(FLAGS, flags)]


def read_settings_file(path: Path) -> dict[str, Any]:
    """The object in a YAML file, or in a JSON file that may hold comments. ConfigError says where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot read this settings file: {getattr(error, 'strerror', None) or error}"
        ) from None
    try:
        if path.suffix in (".yaml", ".yml"):
            from workflow.config.yaml_text import document

            values = document(text) or {}
        else:
            import json5

            values = json5.loads(text, allow_duplicate_keys=False)
    except Exception as error:  # each parser has its own family of errors
        raise ConfigError(f"{path}: not a valid settings file: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a settings file holds one object, not {type(values).__name__}")
    return {str(key): value for key, value in values.items()}
