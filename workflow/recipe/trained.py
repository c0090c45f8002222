"""Chooses what of a run's model trains: everything, some of its own weights, or adapters beside them.

Knows nothing of how a step or a checkpoint is made.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from workflow.config.sections import TrainedSection
from workflow.errors import ConfigError
from workflow.models.adapters import ADAPTER_FOLDER, AdapterPlan, add_adapters
from workflow.models.load import head_names, load_answers, load_tokenizer
from workflow.models.load_report import some
from workflow.models.pruning import share_of_zeros
from workflow.models.quantised import INSTALL, is_installed, quantised_maps
from workflow.models.trainable import share_text, train_only
from workflow.recipe.task import Task
from workflow.runtime import collectively, derived_seed
from workflow.training.checkpoint_reader import CheckpointReader
from workflow.training.ds_config import torch_dtype

SPARSE = 0.2
"""The share of zeros from which on a model counts as pruned."""


def check_base(trained: TrainedSection) -> None:
    """Refuses a quantised base where bitsandbytes is missing, before anything is loaded. Raises ConfigError."""
    if trained.lora_base != "full" and not is_installed():
        raise ConfigError(f"--lora_base {trained.lora_base} needs bitsandbytes, which is not installed: {INSTALL}")


def load_to_train(task: Task[Any], start_from: Path | None) -> None:
    """Collective: the model as training goes on with it, what does not train frozen.

    A checkpoint of a run with adapters holds them merged; what continues is the model that the run started from, and
    its adapters.
    """
    trained = task.settings.trained
    if start_from is None or not trained.lora_r:
        name = str(start_from) if start_from else task.start_model()
        task.load_model_everywhere(name, trained=bool(start_from))
    else:
        task.load_model_everywhere(task.start_model(), trained=False)
    collectively(lambda: _prepare(task, start_from), task.place.ranks)


def _prepare(task: Task[Any], start_from: Path | None) -> None:
    """What strategies change of a model that a new run starts from, then what trains. Raises ConfigError.

    A checkpoint may be another run's, and as sparse as any model to start from.
    """
    trained, model = task.settings.trained, task.loaded.model
    if start_from is not None and trained.lora_r:
        keep_ids(task, str(start_from))
    before = {id(parameter): parameter.data_ptr() for parameter in model.parameters()}
    _refuse_sparse(task)
    if start_from is None:
        notes = task.strategies.prepare_model(model, seed=task.settings.run.seed)
        task.loaded = replace(task.loaded, notes=(*task.loaded.notes, *notes))
    changed = {id(parameter) for parameter in model.parameters() if parameter.data_ptr() != before[id(parameter)]}
    _choose(task, trained, start_from)
    for name, parameter in model.named_parameters():
        if id(parameter) in changed and not parameter.requires_grad:
            raise ConfigError(
                f"--reinit: {name} would start anew and never learn; leave it out, or what freezes the others (--train_only, --lora_r)"
            )


def keep_ids(task: Task[Any], checkpoint: str) -> None:
    """Takes the tokenizer of the checkpoint, whose ids the adapters were trained on, and how it writes answers."""
    if task.loaded.answers is not None:
        answers, _ = load_answers(checkpoint)
        task.loaded = replace(task.loaded, tokenizer=answers.tokenizer, answers=answers)
    else:
        tokenizer = load_tokenizer(checkpoint, for_scores=not hasattr(task.loaded.model, "lm_head"))
        task.loaded = replace(task.loaded, tokenizer=tokenizer)


def _refuse_sparse(task: Task[Any]) -> None:
    if task.settings.strategies.static_sparsity is not None:
        if task.settings.trained.lora_r:
            raise ConfigError(
                "--static_sparsity: adapters are merged into whole matrices without zeros; leave one of them out"
            )
        return
    share = share_of_zeros(task.loaded.model)
    if share > SPARSE and not task.settings.trained.lora_r:
        raise ConfigError(
            f"{share:.0%} of the weights of this model's linear maps are zero, and the first update would lose them; pass --static_sparsity "
            "to keep them zero, or --static_sparsity.keep false to let them train"
        )


def _choose(task: Task[Any], trained: TrainedSection, start_from: Path | None) -> None:
    loaded = task.loaded
    if trained.only:
        train_only(loaded.model, trained.only, always=_heads_to_train(task, start_from))
    elif trained.lora_r:
        plan = AdapterPlan(
            trained.lora_r,
            trained.lora_alpha or 2.0 * trained.lora_r,
            trained.lora_dropout,
            trained.targets,
            trained.lora_kind,
            trained.lora_base,
        )
        seed = derived_seed(task.settings.run.seed, "adapters")
        adapters = add_adapters(
            loaded.model,
            plan,
            start=task.start_model(),
            new_weights=loaded.new_weights,
            seed=seed,
            dtype=torch_dtype(task.settings.model.precision, task.device.type),
            device=task.device,
        )
        task.loaded = replace(loaded, adapters=adapters)
        if start_from is not None:
            _refuse_without_adapters(start_from)
            adapters.load(start_from / ADAPTER_FOLDER, loaded.model)
    heads = {*head_names(loaded.model)}
    head_trains = any(parameter.requires_grad for name, parameter in loaded.model.named_parameters() if name in heads)
    if task.head_steps(1) and not head_trains:
        raise ConfigError("--ft_head_first: the head does not train with these settings; leave the flag out")


def _refuse_without_adapters(start_from: Path) -> None:
    if not (start_from / ADAPTER_FOLDER).is_dir():
        raise ConfigError(
            f"--lora_r: {start_from} is of a run without adapters, so there are none to go on with; leave --lora_r out, or {_anew(start_from)}"
        )


def refuse_other_state(task: Task[Any], start_from: Path) -> None:
    """Refuses another run's checkpoint that lacks the moments training goes on with, for which no step would be right. Raises ConfigError."""
    before = CheckpointReader(start_from)
    optimizer, kept = task.settings.optim.optimizer, before.optimizer()
    if kept is not None and kept != optimizer:
        raise ConfigError(
            f"--optimizer {optimizer}: {start_from} holds the optimizer state of {kept}; pass --optimizer {kept} to go on, or {_anew(start_from)}"
        )
    have = before.names_with_state()
    trains = [name for name, parameter in task.loaded.model.named_parameters() if parameter.requires_grad]
    if lacking := [name for name in trains if name not in have]:
        raise ConfigError(
            f"{start_from}: no optimizer state of {len(lacking)} of the {len(trains)} weights that train now ({some(lacking)}), because its run "
            f"trained others; pass the --lora_r or --train_only of that run to go on, or {_anew(start_from)}"
        )


def _anew(start_from: Path) -> str:
    return f"start a new run from its weights, with a fresh optimizer: --model_init_path {start_from} in the place of --resume"


def _heads_to_train(task: Task[Any], start_from: Path | None) -> set[str]:
    """A classification head, and what was new when the run started: a pooler, of which a checkpoint knows no more."""
    model = task.loaded.model
    found = {*task.loaded.new_weights, *([] if hasattr(model, "lm_head") else head_names(model))}
    if start_from is not None:
        before = CheckpointReader(start_from)
        found |= {name for name, _ in model.named_parameters() if ".pooler." in name and before.keys_of(name)}
    return found


def trained_text(task: Task[Any]) -> str | None:
    """What trains, for the run's header; None where everything does."""
    trained = task.settings.trained
    share = share_text(task.loaded.model)
    if trained.only:
        head = "" if hasattr(task.loaded.model, "lm_head") else ", and the head"
        return f"{share}: {', '.join(trained.only)}{head}"
    if (adapters := task.loaded.adapters) is None:
        return None
    plan = adapters.plan
    heads = f"; whole: {', '.join(adapters.config.modules_to_save)}" if adapters.config.modules_to_save else ""
    return (
        f"{share}: {plan.kind} adapters of rank {plan.rank}, alpha {plan.alpha:g}, dropout {plan.dropout:g}, "
        f"on {len(adapters.layers)} linear maps ({', '.join(plan.targets)}){heads}{_base_text(task)}"
    )


def _base_text(task: Task[Any]) -> str:
    """What is quantised, if anything."""
    maps = [module for _, module in quantised_maps(task.loaded.model)]
    if not maps:
        return ""
    before = sum(module.numel * module.dtype.itemsize for module in maps)
    after = sum(module.held_bytes for module in maps)
    return f"; {len(maps)} frozen linear maps in NF4: {after / 1e6:,.2f} MB in the place of {before / 1e6:,.2f}"
