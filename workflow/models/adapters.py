"""Low-rank adapters of a model's linear maps, by `peft`: put in, merged into plain weights, written, read.

Knows nothing of optimizers, ranks or runs. A model with adapters keeps its class: targeted modules become peft's, whose
`base_layer` is the old one. Heads stay as they are, so that whoever shares a head's weight needs no other way. LoRA is
of Hu et al. 2021, rank-stabilised scaling of Kalajdzievski 2023, DoRA of Liu et al. 2024.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from workflow.errors import ConfigError, ModelError, did_you_mean
from workflow.files import write_json
from workflow.models.load import head_names
from workflow.models.load_report import some
from workflow.models.quantised import QuantisedLinear, quantise
from workflow.runtime import seeded

NAME = "default"
ADAPTER_FOLDER = "adapter"
ADAPTER_FILE = "adapter_model.safetensors"
BASE_FILE = "base.json"
MAGNITUDE = f".lora_magnitude_vector.{NAME}.weight"
SAMPLE_SIZE = 1024
LINEAR = ("Linear", "Conv1D")
"""Classes of linear maps; GPT-2's Conv1D keeps the transpose of its weight."""


@dataclass(frozen=True)
class AdapterPlan:
    """What adapters to put in; `targets` are `attention`, `all`, or glob patterns over names of modules."""

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ("attention",)
    kind: str = "lora"
    base: str = "full"
    """How the frozen linear maps are held: `full`, or `nf4`."""


@dataclass(frozen=True)
class AdaptedLayer:
    """A linear map with an adapter: its name in the model, and peft's module."""

    name: str
    module: Any

    @property
    def base(self) -> torch.Tensor:
        """The frozen weight; of a quantised one, what it stands for."""
        base = self.module.base_layer
        weight: torch.Tensor = base.dense() if isinstance(base, QuantisedLinear) else base.weight
        return weight

    def of(self, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The merged weight, fp32, in the shape of the frozen one; `weights` by their names in the model."""
        full = f"{self.name}."
        low, high = (weights[f"{full}{part}.{NAME}.weight"].float() for part in ("lora_A", "lora_B"))
        turned = bool(self.module.fan_in_fan_out)
        weight = weights[f"{full}base_layer.weight"].float()
        found = (weight.t() if turned else weight) + (high @ low) * self.module.scaling[NAME]
        if (magnitude := weights.get(self.name + MAGNITUDE)) is not None:
            found = found * (magnitude.float() / torch.linalg.vector_norm(found, dim=1))[:, None]
        shaped: torch.Tensor = (found.t() if turned else found).contiguous()
        return shaped

    def merged(self) -> torch.Tensor:
        """The same, of the module's parameters as they are now."""
        own = {f"{self.name}.{name}": weight for name, weight in self.module.named_parameters()}
        return self.of({**own, f"{self.name}.base_layer.weight": self.base})

    def count_merged(self, *, is_merged: bool) -> None:
        """Tells peft's module whether its frozen weight holds the adapter: if so, it computes with that alone."""
        self.module.merged_adapters[:] = [NAME] if is_merged else []


@dataclass(frozen=True)
class Adapters:
    """The adapters of a model. `trained` names all weights that train: theirs, and new heads'."""

    config: Any
    layers: tuple[AdaptedLayer, ...]
    trained: frozenset[str]
    base: str
    """A fingerprint of the frozen weights."""
    plan: AdapterPlan = field(repr=False)

    def merged(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights of the plain model from those of the adapted one, both by name."""
        layers = {f"{layer.name}.base_layer.weight": layer for layer in self.layers}
        found = {}
        for name, weight in weights.items():
            if name in layers:
                found[f"{layers[name].name}.weight"] = layers[name].of(weights)
            elif ".lora_" not in name:
                found[name.replace(".base_layer.", ".")] = weight
        return found

    def write(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """A folder that `peft.PeftModel.from_pretrained(base, folder)` reads; trained heads stand in it too."""
        folder.mkdir()
        save_file(
            {adapter_key(name): weights[name].contiguous() for name in sorted(self.trained)},
            folder / ADAPTER_FILE,
            metadata={"format": "pt"},
        )
        self.config.save_pretrained(folder)
        base = {"base": self.config.base_model_name_or_path, "fingerprint": self.base}
        write_json(folder / BASE_FILE, base | {"adapters": self._kind()})

    def _kind(self) -> dict[str, Any]:
        """What must not change while these adapters train."""
        plan = self.plan
        kind = {"rank": plan.rank, "alpha": plan.alpha, "kind": plan.kind}
        return kind if plan.base == "full" else kind | {"base": plan.base}

    def load(self, folder: Path, model: Any) -> None:
        """Puts written adapters and heads back. Raises ModelError for those of another base, or of other settings."""
        try:
            before = json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))
            if before["fingerprint"] != self.base:
                raise ModelError(
                    f"{folder}: these adapters belong to another model ({before['base']}) than the one this run starts from; "
                    "name that model, as it was"
                )
            if before["adapters"] != self._kind():
                raise ModelError(
                    f"{folder}: adapters of other settings: {before['adapters']}, asked for {self._kind()}"
                )
            with safe_open(folder / ADAPTER_FILE, framework="pt") as tensors, torch.no_grad():
                if others := {*tensors.keys()} ^ {*map(adapter_key, self.trained)}:
                    raise ModelError(f"{folder}: adapters of other linear maps than asked for: {some(sorted(others))}")
                parameters = dict(model.named_parameters())
                for name in sorted(self.trained):
                    parameters[name].copy_(tensors.get_tensor(adapter_key(name)))
        except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
            raise ModelError(f"{folder}: no adapters to continue from with these settings: {error}") from None


def adapter_key(name: str) -> str:
    """A weight's name in an adapter's file, by peft's rules."""
    if name.endswith(MAGNITUDE):
        name = name.removesuffix(f".{NAME}.weight")
    return f"base_model.model.{name.replace(f'.{NAME}.', '.')}"


def add_adapters(
    model: Any,
    plan: AdapterPlan,
    *,
    start: str,
    new_weights: Collection[str] = (),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Adapters:
    """Freezes a model but for adapters, made from `seed`, and heads: a classification head, and `new_weights`.

    `start` is what the model was loaded from; `dtype` and `device` are those of training, for a quantised base. Raises
    ConfigError for targets that match nothing, and for a model that cannot be quantised.
    """
    from peft import LoraConfig, inject_adapter_in_model

    heads = {*new_weights, *([] if hasattr(model, "lm_head") else head_names(model))}
    every, targets = target_names(model, ["all"]), target_names(model, plan.targets)
    config = LoraConfig(
        r=plan.rank,
        lora_alpha=plan.alpha,
        lora_dropout=plan.dropout,
        target_modules=targets,
        use_rslora=plan.kind == "rslora",
        use_dora=plan.kind == "dora",
        fan_in_fan_out=type(model.get_submodule(targets[0])).__name__ == "Conv1D",
    )
    with seeded(seed):
        inject_adapter_in_model(config, model, adapter_name=NAME)
    layers = tuple(AdaptedLayer(name, model.get_submodule(name)) for name in targets)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name or name in heads)
    for layer in layers if plan.kind == "dora" else ():
        _share_base(layer)
    written = copy.deepcopy(config)
    written.base_model_name_or_path = start
    written.task_type = (
        "SEQ_2_SEQ_LM" if hasattr(model, "lm_head") else "SEQ_CLS"
    )  # by which AutoPeftModel... choose a class
    written.inference_mode = True
    written.modules_to_save = sorted({_module_of(name, model) for name in heads}) or None
    trained = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    fingerprint = _fingerprint(model)  # of the weights as they were loaded, whatever they are rounded to
    if plan.base == "nf4":
        quantise(model, every, dtype=dtype, device=device)
    return Adapters(written, layers, trained, fingerprint, plan)


def _share_base(layer: AdaptedLayer) -> None:
    """DoRA's module reads weight and bias of another module: as its own too, ZeRO-3 gathers them for it."""
    magnitude = layer.module.lora_magnitude_vector[NAME]
    for name, parameter in layer.module.base_layer.named_parameters():
        magnitude.register_parameter(f"base_{name}", parameter)


def _module_of(name: str, model: Any) -> str:
    """The head or pooler that a weight belongs to."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] == model.base_model_prefix else 1])


def _fingerprint(model: Any) -> str:
    """Of names, shapes and evenly spread values of all frozen weights."""
    found = hashlib.sha256()
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            flat = weight.detach().flatten()
            found.update(f"{name.replace('.base_layer.', '.')} {tuple(weight.shape)}".encode())
            found.update(flat[:: max(1, flat.numel() // SAMPLE_SIZE)].float().contiguous().numpy().tobytes())
    return found.hexdigest()


def is_plain(module: Any) -> bool:
    """Whether a linear map computes with its `weight` alone, and holds that as it is."""
    return not hasattr(module, "base_layer") and not isinstance(module, QuantisedLinear)


def target_names(model: Any, targets: Collection[str]) -> list[str]:
    """Names of the linear maps that targets mean, in the model's order; never of a head or a pooler.

    Raises ConfigError for a target that matches nothing.
    """
    heads = {name.split(".")[0] for name in head_names(model)}
    linear = [
        name
        for name, module in model.named_modules()
        if any(kind.__name__ in LINEAR for kind in type(module).__mro__)
        and name.split(".")[0] not in heads
        and "pooler" not in name.split(".")
    ]
    found = {target: [name for name in linear if _is_target(name, target)] for target in targets}
    if empty := [target for target, names in found.items() if not names]:
        kinds = sorted({name.rpartition(".")[2] for name in linear})
        near = did_you_mean(empty[0], ["attention", "all", *kinds])
        raise ConfigError(
            f"--lora_targets {empty[0]}: matches no linear map of this {model.config.model_type}{near}; there are "
            f"{', '.join(kinds)}, for example {some(linear[:2])}; attention and all name them too"
        )
    return [name for name in linear if any(name in names for names in found.values())]


def _is_target(name: str, target: str) -> bool:
    if target == "all":
        return True
    if target == "attention":
        return any("attention" in part.lower() or part == "attn" for part in name.split("."))
    return fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")
