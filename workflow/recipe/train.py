"""One training run: claim the folder, build, train with evaluations and checkpoints, report.

Reads top to bottom. Knows nothing of how a step, an evaluation or a checkpoint is made.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from workflow import paths as names
from workflow.config.cascade import Resolved
from workflow.config.settings import Seq2SeqSettings
from workflow.data.plan import DataPlan, steps_for_epochs
from workflow.data.sources import Source, find_source
from workflow.errors import ConfigError, DataError
from workflow.evaluation.report import read_report, result_table
from workflow.models.load import LoadedModel, quiet_transformers
from workflow.recipe.predict import evaluate_only
from workflow.recipe.prepare import (
    Place,
    check_slice_key,
    load_data,
    load_model,
    model_name,
    run_name,
    say_data,
)
from workflow.recipe.run import Run
from workflow.run_folder import Claim, claim
from workflow.runtime import on_first, torch_device
from workflow.training.backend import Backend
from workflow.training.checkpoint import (
    CheckpointReader,
    TrainState,
    newest_to_continue,
    read_state,
    recover,
)
from workflow.training.ds_config import BackendPlan, pick_precision, plan_backend
from workflow.training.optim import make_optimizer, parameter_groups
from workflow.training.schedule import Steps, plan_steps
from workflow.training.trainer import LoopSettings, Trainer


def run_seq2seq(resolved: Resolved[Seq2SeqSettings], place: Place) -> None:
    """Fine-tunes and evaluates, or only evaluates with `no_train`. A finished run is shown, not repeated."""
    settings = resolved.settings
    quiet_transformers()
    data_name = settings.data.data_name
    assert data_name is not None
    source = on_first(lambda: find_source(data_name, place.mount), place.ranks)
    if settings.run.no_train:
        evaluate_only(settings, place, source)
        return
    plan = _backend_plan(settings, place)
    root = place.mount / "models" / run_name(settings)
    held = on_first(
        lambda: claim(root, resolved, data_hash=source.data_hash, overwrite=settings.run.overwrite_output_dir),
        place.ranks,
    )
    if held.finished:
        _show_finished(held, place.console)
        return
    _train(resolved, place, source, held, plan)


def _show_finished(held: Claim, console: Console) -> None:
    console.print(
        f"{held.paths.root} is finished; its result (pass --overwrite_output_dir to move it aside and train anew):"
    )
    console.print(result_table(read_report(held.paths.report)))


def _train(resolved: Resolved[Seq2SeqSettings], place: Place, source: Source, held: Claim, plan: BackendPlan) -> None:
    settings, paths, console = resolved.settings, held.paths, place.console
    on_first(lambda: recover(paths.root), place.ranks)
    start_from = on_first(lambda: _checkpoint_to_continue(settings, held), place.ranks)
    state = _state_to_continue(start_from, held)
    loaded = load_model(str(start_from) if start_from else model_name(settings, place.mount), settings, place)
    data = load_data(source, settings, loaded.tokenizer, place)
    check_slice_key(settings.evaluation.slice_by, data)
    if not len(data.train):
        raise DataError(f'{source.label}: no training rows ("train" is empty or missing); --no_train only evaluates')
    update_size = settings.training.train_batch_size * settings.training.gradient_accumulation_steps
    steps = _steps(settings, len(data.train), update_size)
    if start_from and start_from.parent != paths.root and state.step >= steps.max_steps:
        raise ConfigError(f"--resume {start_from}: already at step {state.step}; --max_steps must be above it")
    _say_run(settings, place, paths.root, loaded, plan, steps, update_size, state)
    say_data(data, loaded.tokenizer, console, place.ranks)

    backend = _start_backend(settings, place, loaded, plan)
    try:
        loop = LoopSettings(
            steps.max_steps,
            steps.warmup_steps,
            settings.optim.lr_scheduler,
            plan.config["train_micro_batch_size_per_gpu"],
            settings.run.seed,
        )
        order = DataPlan(len(data.train), update_size, settings.run.seed)
        trainer = Trainer(backend, data.train, order, loop, ranks=place.ranks, pad_id=loaded.tokenizer.pad_token_id)
        if start_from:
            backend.load_optimizer_state(
                CheckpointReader(start_from), num_steps=state.step, empty_loss=trainer.empty_loss
            )
        run = Run(settings, place, held, loaded, data, backend, steps)
        run.train(trainer, state)
    finally:
        backend.destroy()


def _checkpoint_to_continue(settings: Seq2SeqSettings, held: Claim) -> Path | None:
    """The checkpoint this run goes on from: its own newest, else the one that --resume names."""
    own = newest_to_continue(held.paths)
    if own is not None or settings.run.resume == "auto":
        return own
    given = Path(settings.run.resume)
    if given.is_dir() and not (given / "config.json").is_file():
        given = newest_to_continue(names.RunPaths(given)) or given
    if not (given / "config.json").is_file():
        raise ConfigError(
            f"--resume {settings.run.resume}: no checkpoint there; pass auto, a checkpoint-N folder, or a run folder that holds one"
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


def _steps(settings: Seq2SeqSettings, num_rows: int, update_size: int) -> Steps:
    training = settings.training
    return plan_steps(
        max_steps=training.max_steps or steps_for_epochs(training.num_epochs, num_rows, update_size),
        num_epochs=training.num_epochs,
        eval_steps=settings.evaluation.eval_steps,
        save_steps=training.save_steps,
        warmup_steps=settings.optim.warmup_steps,
        warmup_ratio=settings.optim.warmup_ratio,
    )


def _backend_plan(settings: Seq2SeqSettings, place: Place) -> BackendPlan:
    training = settings.training
    return plan_backend(
        deepspeed=training.deepspeed,
        precision=pick_precision(settings.model.precision, place.device),
        optimizer=settings.optim.optimizer,
        world_size=place.ranks.world_size,
        max_grad_norm=settings.optim.max_grad_norm,
        micro_batch_size=training.micro_batch_size or -(-training.train_batch_size // place.ranks.world_size),
    )


def _start_backend(settings: Seq2SeqSettings, place: Place, loaded: LoadedModel, plan: BackendPlan) -> Backend:
    model = loaded.model
    if settings.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = make_optimizer(
        settings.optim.optimizer,
        parameter_groups(model, lr=settings.optim.lr, weight_decay=settings.optim.weight_decay),
    )
    return Backend(
        model,
        optimizer,
        plan,
        max_grad_norm=settings.optim.max_grad_norm,
        device=torch_device(place.device, place.ranks),
    )


def _say_run(
    settings: Seq2SeqSettings,
    place: Place,
    root: Path,
    loaded: LoadedModel,
    plan: BackendPlan,
    steps: Steps,
    update_size: int,
    state: TrainState,
) -> None:
    """The run's header: every decision that was made for the user."""
    console, training = place.console, settings.training
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    head = "own output head" if loaded.has_own_head else "output head tied to the embeddings"
    precision = "bf16 with fp32 master weights" if plan.precision == "bf16" else "fp32"
    console.print(f"run       {root}" + (f", continued after step {state.step}" if state.step else ""))
    console.print(f"model     {count / 1e6:,.1f} M parameters, {head}, dropout {loaded.model.config.dropout_rate}")
    console.print(f"backend   DeepSpeed {plan.name}, {precision}, {place.ranks.world_size} rank(s) on {place.device}")
    console.print(
        f"batch     {training.train_batch_size} x {training.gradient_accumulation_steps} = {update_size} examples an update over all ranks; "
        f"{steps.max_steps} updates, {steps.warmup_steps} of warmup, evaluation every {steps.eval_steps}, checkpoint every {steps.save_steps}"
    )
    for note in (*loaded.notes, *steps.notes):
        console.print(f"  [yellow]note[/]  {escape(note)}")
