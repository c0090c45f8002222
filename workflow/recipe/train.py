"""One training run: claim the folder, build, train with evaluations and checkpoints, report.

Reads top to bottom. Knows nothing of how a step, an evaluation or a checkpoint is made, nor which task it is.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from workflow import paths as names
from workflow.data.division import MicroBatchLimits
from workflow.data.plan import DataPlan, steps_for_epochs
from workflow.data.sources import Source, find_source
from workflow.errors import ConfigError, DataError
from workflow.evaluation.report import read_report, result_table
from workflow.models.attention_backends import choose, head_width
from workflow.models.load import head_names, quiet_transformers
from workflow.recipe.micro_batches import MicroBatchSizes, circumstances_of
from workflow.recipe.run import Run
from workflow.recipe.task import Task
from workflow.recipe.trained import load_to_train, trained_text
from workflow.run_folder import Claim, claim
from workflow.runtime import on_first
from workflow.training.backend import Backend
from workflow.training.budget import CudaMeter, find_tokens
from workflow.training.checkpoint import (
    CheckpointReader,
    TrainState,
    newest_to_continue,
    read_state,
    recover,
)
from workflow.training.ds_config import BackendPlan, pick_precision, plan_backend, torch_dtype
from workflow.training.objectives import Objective
from workflow.training.optim import make_optimizer, parameter_groups
from workflow.training.schedule import Steps, plan_steps
from workflow.training.trainer import LoopSettings, MicroBatchMemoryError, Trainer

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
    plan = _backend_plan(task)
    root = place.mount / "models" / task.run_name
    held = on_first(
        lambda: claim(
            root,
            task.resolved,
            data_hash=source.data_hash,
            overwrite=settings.run.overwrite_output_dir,
            settings_name=task.settings_file,
            inputs=task.inputs,
        ),
        place.ranks,
    )
    if held.finished:
        _show_finished(held, place.console)
        return
    _train(task, source, held, plan)


def _show_finished(held: Claim, console: Console) -> None:
    console.print(
        f"{held.paths.root} is finished; its result (pass --overwrite_output_dir to move it aside and train anew):"
    )
    console.print(result_table(read_report(held.paths.report)))


def _train(task: Task[Any], source: Source, held: Claim, plan: BackendPlan) -> None:
    settings, place, paths = task.settings, task.place, held.paths
    on_first(lambda: recover(paths.root), place.ranks)
    start_from = on_first(lambda: _checkpoint_to_continue(settings.run.resume, held), place.ranks)
    state = _state_to_continue(start_from, held)
    load_to_train(task, start_from)
    task.load_data(source)
    if not len(task.data.train):
        raise DataError(f'{source.label}: no training rows ("train" is empty or missing); --no_train only evaluates')
    update_size = settings.training.train_batch_size * settings.training.gradient_accumulation_steps
    steps = _steps(task, update_size)
    if start_from and start_from.parent != paths.root and state.step >= steps.max_steps:
        raise ConfigError(f"--resume {start_from}: already at step {state.step}; --max_steps must be above it")
    if place.ranks.is_first:
        _say_run(task, paths.root, plan, steps, update_size, state)

    backend, objective = _start_backend(task, plan), task.objective()
    checkpointing = settings.model.gradient_checkpointing
    sizes = MicroBatchSizes(
        paths, circumstances_of(task.device, place.ranks, plan, checkpointing=checkpointing), place.ranks
    )
    try:
        if start_from:
            backend.load_optimizer_state(
                CheckpointReader(start_from),
                num_steps=state.step,
                empty_loss=lambda: objective.loss_sum(backend.wrapped, ()),
            )
        trial = partial(_trial, backend, objective) if task.device.type == "cuda" else None
        micro_batches = sizes.plan(settings.training, padded=task.why_padded is not None, trial=trial)
        place.console.print(f"memory    {micro_batches}")
        loop = LoopSettings(
            steps.max_steps,
            steps.warmup_steps,
            settings.optim.lr_scheduler,
            micro_batches.limits,
            settings.run.seed,
            head_steps=task.head_steps(steps.max_steps),
        )
        order = DataPlan(len(task.data.train), update_size, settings.run.seed)
        Run(task, paths, backend, steps).train(Trainer(backend, objective, order, loop, ranks=place.ranks), state)
    except MicroBatchMemoryError as error:
        raise sizes.after_out_of_memory(error) from error
    finally:
        backend.destroy()


def _trial(backend: Backend, objective: Objective, limits: MicroBatchLimits) -> int:
    return find_tokens(backend, objective, CudaMeter(backend.device, backend.bytes_to_come()), limits)


def _checkpoint_to_continue(resume: str, held: Claim) -> Path | None:
    """The checkpoint this run goes on from: its own newest, else the one that --resume names."""
    own = newest_to_continue(held.paths)
    if own is not None or resume == "auto":
        return own
    given = Path(resume)
    if given.is_dir() and not (given / "config.json").is_file():
        given = newest_to_continue(names.RunPaths(given)) or given
    if not (given / "config.json").is_file():
        raise ConfigError(
            f"--resume {resume}: no checkpoint there; pass auto, a checkpoint-N folder, or a run folder that holds one"
        )
    read_state(given)
    return given


def _state_to_continue(start_from: Path | None, held: Claim) -> TrainState:
    """How far the checkpoint is; what was measured in another run's folder does not count here."""
    if start_from is None:
        return TrainState()
    state = read_state(start_from)
    if start_from.resolve().parent != held.paths.root.resolve():
        state = replace(state, best_step=None, best_value=None, measured={})
    return state


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
        warmup_ratio=optim.warmup_ratio,
    )


def _backend_plan(task: Task[Any]) -> BackendPlan:
    training, place = task.settings.training, task.place
    return plan_backend(
        deepspeed=training.deepspeed,
        precision=pick_precision(task.settings.model.precision, place.device),
        optimizer=task.settings.optim.optimizer,
        world_size=place.ranks.world_size,
        max_grad_norm=task.settings.optim.max_grad_norm,
        micro_batch_size=training.micro_batch_size or -(-training.train_batch_size // place.ranks.world_size),
    )


def _start_backend(task: Task[Any], plan: BackendPlan) -> Backend:
    model, optim = task.loaded.model, task.settings.optim
    if task.settings.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    groups = parameter_groups(
        model, lr=task.learning_rate, weight_decay=optim.weight_decay, head=frozenset(head_names(model))
    )
    return Backend(
        model,
        make_optimizer(optim.optimizer, groups),
        plan,
        max_grad_norm=optim.max_grad_norm,
        device=task.device,
        form=task.form,
    )


def _ragged_text(task: Task[Any], plan: BackendPlan) -> str:
    dtype = torch_dtype(plan.precision, task.device.type)
    choice = choose(task.device, dtype, width=head_width(task.loaded.model.config))
    return f"ragged: no padding is computed; attention: {choice}"


def _say_run(task: Task[Any], root: Path, plan: BackendPlan, steps: Steps, update_size: int, state: TrainState) -> None:
    """The run's header: every decision that was made for the user, and what is odd about the data."""
    place, training = task.place, task.settings.training
    console = place.console
    precision = "bf16 with fp32 master weights" if plan.precision == "bf16" else "fp32"
    console.print(f"run       {root}" + (f", continued after step {state.step}" if state.step else ""))
    for number, line in enumerate(task.header()):
        console.print(f"{'' if number else 'model':<10}{escape(line)}")
    if text := trained_text(task):
        console.print(f"trains    {escape(text)}")
    why_padded = task.why_padded
    console.print(f"batches   {_ragged_text(task, plan) if why_padded is None else f'padded: {why_padded}'}")
    console.print(f"backend   DeepSpeed {plan.name}, {precision}, {place.ranks.world_size} rank(s) on {place.device}")
    console.print(
        f"batch     {training.train_batch_size} x {training.gradient_accumulation_steps} = {update_size} examples an update over all ranks; "
        f"{steps.max_steps} updates, {steps.warmup_steps} of warmup, evaluation every {steps.eval_steps}, checkpoint every {steps.save_steps}"
    )
    for note in (*task.loaded.notes, *steps.notes):
        console.print(f"  [yellow]note[/]  {escape(note)}")
    rows, warnings = task.data_warnings()
    console.print(f"data      {escape(rows)}")
    for warning in warnings:
        console.print(f"  [yellow]note[/]  {escape(warning)}")
