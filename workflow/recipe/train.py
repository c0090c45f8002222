"""One training run: claim the folder, build, train with evaluations and checkpoints, report.

Reads top to bottom. Knows nothing of how a step, an evaluation or a checkpoint is made, nor which task it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from workflow.config.sections import OptimSection
from workflow.data.division import MicroBatchLimits
from workflow.data.plan import DataPlan, steps_for_epochs
from workflow.data.sources import Source, find_source
from workflow.errors import ConfigError, DataError
from workflow.evaluation.report import read_report, result_table
from workflow.files import write_json
from workflow.models.attention_backends import choose, head_width
from workflow.models.load import head_names, quiet_transformers
from workflow.models.ragged import why_masks_vary
from workflow.paths import RunPaths
from workflow.recipe.averages import restore
from workflow.recipe.backend_choice import fitted_backend, planned_backend
from workflow.recipe.micro_batches import MicroBatchSizes, circumstances_of
from workflow.recipe.resume import Start, find_start
from workflow.recipe.run import Run
from workflow.recipe.task import Task
from workflow.recipe.tracking import exporting
from workflow.recipe.trained import check_base, load_to_train, trained_text
from workflow.run_folder import Claim, claim
from workflow.runtime import keep_freed_memory, on_first
from workflow.strategies.base import Group
from workflow.training.backend import Backend
from workflow.training.budget import CudaMeter, find_tokens
from workflow.training.checkpoint import KEEP_STATES, TrainState
from workflow.training.checkpoint_reader import CheckpointReader
from workflow.training.ds_config import BackendPlan, torch_dtype
from workflow.training.exporter import Exporter
from workflow.training.objectives import Objective
from workflow.training.optim import groups_record, make_optimizer, optimizer_groups, planned_groups, rates_text
from workflow.training.room import check_before_run, checkpoint_size
from workflow.training.schedule import CYCLE_WARMUP, Steps, plan_steps
from workflow.training.trainer import LoopSettings, MicroBatchMemoryError, Trainer
from workflow.watch.signals import wait_for_a_boundary

DEFAULT_STEPS = 3000
"""Updates of a run, and between evaluations, where neither steps nor epochs are set (clf.py alone allows that)."""


def run_task(task: Task[Any]) -> None:
    """Fine-tunes and evaluates, or only evaluates with `no_train`. A finished run is shown, not repeated."""
    settings, place = task.settings, task.place
    quiet_transformers()
    task.check_settings()
    source = on_first(lambda: find_source(settings.data.data_name, place.mount), place.ranks)
    if settings.run.no_train:
        task.evaluate_only(source)
        return
    plan = planned_backend(task)
    check_base(settings.trained)
    root = place.mount / "models" / task.run_name
    held = on_first(
        lambda: claim(
            root,
            task.resolved,
            data_hash=source.data_hash,
            overwrite=settings.run.overwrite_output_dir,
            settings_name=task.settings_file,
            inputs=task.inputs,
            allow_changed_data=settings.run.allow_changed_data,
        ),
        place.ranks,
    )
    if held.finished:
        _show_finished(held, place.console)
        return
    with exporting(task) as exporter:
        _train(task, source, held, plan, exporter)


def _show_finished(held: Claim, console: Console) -> None:
    console.print(
        f"{held.paths.root} is finished; its result (pass --overwrite_output_dir to move it aside and train anew):"
    )
    console.print(result_table(read_report(held.paths.report)))


def _train(task: Task[Any], source: Source, held: Claim, plan: BackendPlan, exporter: Exporter | None) -> None:
    settings, place, paths = task.settings, task.place, held.paths
    if place.device == "cpu":
        keep_freed_memory()
    start = on_first(lambda: _start(task, source, held), place.ranks)
    start_from, state = start.checkpoint, start.state
    load_to_train(task, start_from)
    task.load_data(source)
    if not len(task.data.train):
        raise DataError(f'{source.label}: no training rows ("train" is empty or missing); --no_train only evaluates')
    update_size = settings.training.train_batch_size * settings.training.gradient_accumulation_steps
    steps = _steps(task, update_size)
    task.strategies.plan(steps.max_steps)
    if start_from and start_from.parent != paths.root and state.step >= steps.max_steps:
        raise ConfigError(f"--resume {start_from}: already at step {state.step}; --max_steps must be above it")
    objective = task.objective()
    plan = fitted_backend(task, plan, objective)
    groups = groups_of(task)
    task.initial_rates = tuple(sorted({group.initial_lr for group in groups}))
    if place.ranks.is_first:
        _say_run(task, paths.root, plan, steps, groups, state, (*held.notes, *start.notes))
    on_first(lambda: _check_room(task, paths, steps, state), place.ranks)
    on_first(lambda: write_json(paths.param_groups, groups_record(groups)), place.ranks)

    backend = start_backend(task, plan, groups)
    checkpointing = settings.model.gradient_checkpointing
    sizes = MicroBatchSizes(
        paths, circumstances_of(task.device, place.ranks, plan, checkpointing=checkpointing), place.ranks
    )
    try:
        if start_from:
            backend.load_optimizer_state(
                CheckpointReader(start_from),
                num_steps=state.step - state.skipped,
                empty_loss=lambda: objective.loss_sum(backend.wrapped, ()),
            )
        trial = partial(micro_batch_trial, task, backend, objective) if task.device.type == "cuda" else None
        padded = task.why_padded is not None
        micro_batches = sizes.plan(settings.training, padded=padded, passes=objective.passes, trial=trial)
        place.console.print(f"memory    {micro_batches}")
        loop = LoopSettings(
            steps.max_steps,
            steps.warmup_steps,
            settings.optim.lr_scheduler,
            micro_batches.limits,
            settings.run.seed,
            head_steps=task.head_steps(steps.max_steps),
            skip_nonfinite=settings.training.skip_nonfinite,
        )
        order = DataPlan(len(task.data.train), update_size, settings.run.seed)
        trainer = Trainer(backend, objective, order, loop, ranks=place.ranks, strategies=task.strategies)
        if start_from:
            is_own = start_from.parent == paths.root
            for note in restore(task.strategies, trainer.masters, start_from, step=state.step, is_own=is_own):
                place.console.print(f"  [yellow]note[/]  {escape(note)}", soft_wrap=True)
        wait_for_a_boundary()
        Run(task, paths, backend, steps, trainer.masters, exporter).train(trainer, state)
    except MicroBatchMemoryError as error:
        raise sizes.after_out_of_memory(error) from error
    finally:
        backend.destroy()


def micro_batch_trial(task: Task[Any], backend: Backend, objective: Objective, limits: MicroBatchLimits) -> int:
    """The tokens of a micro-batch that a GPU has room for; a collective call."""
    to_come = backend.bytes_to_come(num_averages=len(task.settings.strategies.averages))
    return find_tokens(backend, objective, CudaMeter(backend.device, to_come), limits)


def _start(task: Task[Any], source: Source, held: Claim) -> Start:
    run, say = task.settings.run, task.write_note
    return find_start(
        held, resume=run.resume, data_hash=source.data_hash, allow_changed_data=run.allow_changed_data, say=say
    )


def _check_room(task: Task[Any], paths: RunPaths, steps: Steps, state: TrainState) -> None:
    """Says where the disk is too small for what will be kept. Raises CheckpointError where it is for any checkpoint."""
    if state.step >= steps.max_steps:  # only the report is missing
        return
    num_averages = len(task.settings.strategies.averages)
    size = checkpoint_size(task.loaded.model, task.settings.optim.optimizer, num_averages=num_averages)
    num_saves = -(-steps.max_steps // steps.save_steps) - state.step // steps.save_steps
    limit = task.settings.training.save_total_limit
    note = check_before_run(
        paths, size, num_saves=num_saves, limit=limit, num_states=KEEP_STATES, num_averages=num_averages
    )
    if note is not None:
        task.place.console.print(f"  [yellow]note[/]  {escape(note)}")


def _steps(task: Task[Any], update_size: int) -> Steps:
    training, optim = task.settings.training, task.settings.optim
    num_epochs, max_steps = task.default_epochs, training.max_steps
    if max_steps is None and num_epochs is not None:
        max_steps = steps_for_epochs(num_epochs, len(task.data.train), update_size)
    eval_steps = task.settings.evaluation.eval_steps
    if num_epochs is None:
        max_steps, eval_steps = max_steps or DEFAULT_STEPS, eval_steps or DEFAULT_STEPS
    assert max_steps is not None
    return plan_steps(
        max_steps=max_steps,
        num_epochs=num_epochs or 1,
        eval_steps=min(eval_steps, max_steps) if eval_steps else None,
        save_steps=training.save_steps,
        warmup_steps=optim.warmup_steps,
        warmup_ratio=_warmup_ratio(task),
    )


def _warmup_ratio(task: Task[Any]) -> float | None:
    """As set; of one cycle its own share, unless something is said of warmup."""
    optim: OptimSection = task.settings.optim
    if (
        optim.warmup_ratio is None
        and optim.lr_scheduler == "one_cycle"
        and task.resolved.origin("warmup_steps") == "default"
    ):
        return CYCLE_WARMUP
    return optim.warmup_ratio


def groups_of(task: Task[Any]) -> list[Group]:
    """What trains, with its rates as strategies set them. Raises ConfigError."""
    model, optim, strategies = task.loaded.model, task.settings.optim, task.strategies
    plain = planned_groups(
        model,
        lr=task.learning_rate,
        weight_decay=optim.weight_decay,
        head=frozenset(head_names(model)),
        by_layer=strategies.by_layer,
    )
    return strategies.param_groups(plain, lr=task.learning_rate)


def start_backend(task: Task[Any], plan: BackendPlan, groups: Sequence[Group]) -> Backend:
    """The loaded model with its optimizer, on all ranks; a collective call."""
    model, optim = task.loaded.model, task.settings.optim
    if task.settings.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Backend(
        model,
        make_optimizer(optim.optimizer, optimizer_groups(model, groups)),
        plan,
        max_grad_norm=optim.max_grad_norm,
        device=task.device,
        form=task.form,
    )


def _batch_lines(task: Task[Any], plan: BackendPlan) -> list[str]:
    """Which batches and which attention training takes, and whether the numbers follow how updates are divided."""
    choice, model = None, task.loaded.model
    if task.why_padded is None:
        dtype = torch_dtype(plan.precision, task.device.type)
        choice = choose(task.device, dtype, width=head_width(model.config))
    form = f"ragged: no padding is computed; attention: {choice}" if choice else f"padded: {task.why_padded}"
    why = why_masks_vary(model, attention=choice.name if choice else None)
    if why is None:
        return [form]
    return [form, f"dropout's masks change with the number of ranks and the size of micro-batches: {why}"]


def _say_run(
    task: Task[Any],
    root: Path,
    plan: BackendPlan,
    steps: Steps,
    groups: Sequence[Group],
    state: TrainState,
    continuing: Sequence[str],
) -> None:
    """The run's header: every decision that was made for the user, and what is odd about the data."""
    place, training = task.place, task.settings.training
    console = place.console
    precision = "bf16 with fp32 master weights" if plan.precision == "bf16" else "fp32"
    console.print(f"run       {root}" + (f", continued after step {state.step}" if state.step else ""))
    for note in continuing:
        console.print(f"  [yellow]note[/]  {escape(note)}", soft_wrap=True)
    for number, line in enumerate(task.header()):
        console.print(f"{'' if number else 'model':<10}{escape(line)}")
    if text := trained_text(task):
        console.print(f"trains    {escape(text)}")
    for number, line in enumerate(_batch_lines(task, plan)):
        console.print(f"{'' if number else 'batches':<10}{escape(line)}", soft_wrap=True)
    console.print(
        f"backend   DeepSpeed {escape(str(plan))}, {precision}, {place.ranks.world_size} rank(s) on {place.device}"
        + (f": {plan.why}" if plan.why else "")
    )
    update_size = training.train_batch_size * training.gradient_accumulation_steps
    console.print(
        f"batch     {training.train_batch_size} x {training.gradient_accumulation_steps} = {update_size} examples an update over all ranks; "
        f"{steps.max_steps} updates, {steps.warmup_steps} of warmup, evaluation every {steps.eval_steps}, checkpoint every {steps.save_steps}"
    )
    unset = [f"{name} {gone}" for name, gone in task.resolved.unset.items()]
    for note in (*unset, *task.loaded.notes, *steps.notes):
        console.print(f"  [yellow]note[/]  {escape(note)}")
    rows, warnings = task.data_warnings()
    console.print(f"data      {escape(rows)}")
    for warning in warnings:
        console.print(f"  [yellow]note[/]  {escape(warning)}")
    if task.strategies.by_layer:
        console.print(f"rates     {rates_text(groups)}", soft_wrap=True)
