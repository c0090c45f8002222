"""`workflow plan` and `--dry_run`: what a run would need and how long it would take, before anything is loaded.

Reads top to bottom. Knows nothing of how bytes and FLOPs are estimated, nor of how a plan is shown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from workflow.config.clf_settings import ClfSettings
from workflow.config.sections import ZERO_STAGES
from workflow.console import make_console
from workflow.data.plan import steps_for_epochs
from workflow.errors import ConfigError, ModelError
from workflow.models.model_shape import T5_FAMILIES, T5Shape
from workflow.paths import find_mount
from workflow.recipe.plan_inputs import Lengths, Machine, Model, Settings, find_lengths, find_model, this_machine
from workflow.recipe.plan_tables import as_json, show
from workflow.training.ds_config import pick_precision, plan_backend
from workflow.training.memory_plan import (
    Estimate,
    Job,
    adapter_numbers,
    allowed_stages,
    estimate,
    linear_numbers,
    pick,
    stages_in_order,
    takes,
    what_would_fit,
)
from workflow.training.model_states import OFFLOADS, STAGES, Zero
from workflow.training.time_plan import Work, dimensions_of_shape, work_of

CLF_STEPS = 3000


@dataclass(frozen=True)
class Option:
    """What a number of GPUs could do: every stage without and with recomputing; the pick, or what would help."""

    world_size: int
    estimates: tuple[tuple[Estimate, Estimate], ...]
    pick: Estimate | None
    would_fit: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Everything there is to tell."""

    model: Model
    job: Job
    machine: Machine
    lengths: Lengths
    options: tuple[Option, ...]
    work: Work | None
    mfu: float

    @property
    def fits(self) -> bool:
        """Whether any number of GPUs will do."""
        return any(option.pick is not None for option in self.options)


def plan(settings: Settings, machine: Machine, *, mfu: float, in_json: bool, needs_data: bool = False) -> int:
    """Prints a plan. Raises ConfigError (exit 2) where nothing fits, after the table."""
    found = make_plan(settings, machine, mfu=mfu, needs_data=needs_data)
    if in_json:
        print(json.dumps(as_json(found)))
    else:
        show(found, make_console())
    if not found.fits:
        raise ConfigError(_refusal(found))
    return 0


def dry_run(settings: Settings) -> int:
    """The plan of this machine; no run's folder is looked at or made. Of several ranks, the first speaks."""
    from workflow.runtime import ranks_from_environment

    ranks = ranks_from_environment()
    if ranks is not None and not ranks.is_first:
        return 0
    return plan(settings, this_machine(settings.run.nproc), mfu=0.4, in_json=False, needs_data=True)


def make_plan(settings: Settings, machine: Machine, *, mfu: float, needs_data: bool) -> Plan:
    """Everything from settings and machine. Raises ConfigError, ModelError, DataError."""
    mount = find_mount(settings.run.mount)
    model = find_model(settings, mount)
    _check_model(settings, model)
    lengths = find_lengths(settings, model, mount, needs_data=needs_data)
    job = _job(settings, model, machine, lengths)
    options = tuple(_option(settings, job, machine, count) for count in machine.counts)
    return Plan(model, job, machine, lengths, options, _work(settings, model, lengths), mfu)


def _check_model(settings: Settings, model: Model) -> None:
    """Raises for a model that training would refuse as well."""
    if not isinstance(settings, ClfSettings) and not isinstance(model.shape, T5Shape):
        raise ModelError(
            f"{model.name}: a {model.shape.family} model; seq2seq fine-tunes {', '.join(T5_FAMILIES)}; of models that score, "
            "workflow plan clf makes plans"
        )
    if settings.trained.lora_base != "full" and model.shape.family == "gpt2":
        raise ConfigError(
            f"--lora_base {settings.trained.lora_base}: {model.name} keeps its weights transposed; leave --lora_base out"
        )


def _job(settings: Settings, model: Model, machine: Machine, lengths: Lengths) -> Job:
    training, trained, longest = settings.training, settings.trained, lengths.longest
    passes = settings.strategies.passes
    copies = [training.micro_batch_size or 0, (training.micro_batch_tokens or 0) // max(1, passes * sum(longest))]
    return Job(
        model.shape,
        longest,
        pick_precision(settings.model.precision, machine.device),
        machine.device,
        model.shape.dropout if settings.model.dropout is None else settings.model.dropout,
        settings.optim.optimizer,
        isinstance(settings, ClfSettings),
        max(1, min((number for number in copies if number), default=1)),
        adapter_numbers(model.shape, trained.lora_r, everywhere=trained.targets != ("attention",)),
        linear_numbers(model.shape) if trained.lora_base != "full" else 0,
        passes,
        len(settings.strategies.averages),
    )


def _option(settings: Settings, job: Job, machine: Machine, count: int) -> Option:
    zeros = _asked(settings, job, count)
    tried = (False, True)
    listed = zeros
    if settings.training.deepspeed == "auto":
        listed = takes(job, allowed_stages(job.precision, job.optimizer, offload=machine.device == "cuda"))

    def of(zero: Zero, again: bool) -> Estimate:
        return estimate(job, zero, world_size=count, memory=machine.memory, checkpointing=again)

    best = pick(
        job,
        world_size=count,
        memory=machine.memory,
        zeros=zeros,
        checkpointing=(True,) if settings.model.gradient_checkpointing else tried,
    )
    help_ = () if best is not None else tuple(what_would_fit(job, world_size=count, memory=machine.memory))
    return Option(count, tuple((of(zero, False), of(zero, True)) for zero in listed), best, help_)


def _asked(settings: Settings, job: Job, count: int) -> Sequence[Zero]:
    """The stage that --deepspeed names, else those worth trying. Raises ConfigError for what training would refuse."""
    name, usual = settings.training.deepspeed, takes(job, stages_in_order(job.precision, count, job.optimizer))
    planned = plan_backend(
        deepspeed=usual[0].name if name == "auto" else name,
        precision=job.precision,
        optimizer=job.optimizer,
        world_size=count,
        max_grad_norm=settings.optim.max_grad_norm,
        micro_batch_size=1,
        lora_base=settings.trained.lora_base,
    )
    if name == "auto":
        return usual
    if planned.name not in ZERO_STAGES:
        from workflow.training.zero_start import check_values

        check_values(planned)
    known = {zero.name: zero for zero in (*STAGES, *OFFLOADS)}
    zero = known.get(name) or Zero.of(name, planned.config)
    if count % zero.group:
        raise ConfigError(
            f"--deepspeed {name}: its zero_hpz_partition_size {zero.group} does not divide {count} GPUs; "
            "pass --gpus that it divides, or set it to the GPUs of a node"
        )
    return (zero,)


def _work(settings: Settings, model: Model, lengths: Lengths) -> Work | None:
    """None where neither steps nor rows are known."""
    training = settings.training
    update_size = training.train_batch_size * training.gradient_accumulation_steps
    steps, epochs = training.max_steps, training.num_epochs
    if steps is None and epochs is None:
        steps = CLF_STEPS
    if steps is None and lengths.num_rows and epochs is not None:
        steps = steps_for_epochs(epochs, lengths.num_rows, update_size)
    if steps is None:
        return None
    is_t5_scorer = isinstance(settings, ClfSettings) and isinstance(model.shape, T5Shape)
    outputs = len(settings.score.labels) if isinstance(settings, ClfSettings) and is_t5_scorer else None
    dimensions = dimensions_of_shape(model.shape, num_outputs=outputs)
    once = work_of(dimensions, lengths.sources, lengths.targets, steps=steps, update_size=update_size)
    return replace(once, flops_per_update=settings.strategies.passes * once.flops_per_update)


def _refusal(found: Plan) -> str:
    """Why, and what would help, for the largest number of GPUs that was asked about."""
    option = max(found.options, key=lambda one: one.world_size)
    every = [one for pair in option.estimates for one in pair]
    least = min([one for one in every if not one.zero.offloads] or every, key=lambda one: one.needed)
    tried = "with --gradient_checkpointing" if least.checkpointing else "without recomputing"
    help_ = "; what would fit: " + ", or ".join(option.would_fit) if option.would_fit else ""
    return (
        f"{found.model.name} does not fit {option.world_size} x {found.machine.memory / 1e9:.0f} GB: at the least "
        f"({least.zero.name}, {tried}) it needs {least.needed / 1e9:.1f} GB of each GPU's usable {least.room / 1e9:.1f}{help_}; "
        "shorter rows help where one row is the most of it" + _advice(found.job)
    )


def _advice(job: Job) -> str:
    """The smaller way to train, for a job that does not fit."""
    if not job.num_adapters:
        return "; adapters need far less: add --lora_r 16"
    can_be_quantised = not job.num_quantised and job.shape.family != "gpt2"
    return "; a base in 4 bits needs less: add --lora_base nf4" if can_be_quantised else ""
