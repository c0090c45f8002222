"""A plan for people, as a table and sentences, and for programs, as one JSON object.

Knows nothing of how it was made.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from workflow.training.model_states import NF4_BYTES

if TYPE_CHECKING:
    from workflow.recipe.plan import Option, Plan
    from workflow.training.memory_plan import Estimate, Job

YES, NO = Text("fits", "green"), Text("no", "red")


def show(plan: Plan, console: Console) -> None:
    """On a terminal or into a log file."""
    job = plan.job
    console.print(
        f"model     {plan.model.name}: {job.num_parameters / 1e6:,.1f} M parameters; {_precision(plan)}, {job.optimizer}{_quantised(job)}"
    )
    passes = f", and passes {job.passes} times" if job.passes > 1 else ""
    console.print(f"rows      {plan.lengths.note}; the longest has {job.longest[0]} + {job.longest[1]} tokens{passes}")
    first = plan.options[0].estimates[0][0]
    console.print(
        f"memory    {plan.machine.memory / 1e9:.1f} GB ({plan.machine.label}), of which {first.room / 1e9:.1f} are planned with"
    )
    console.print(_table(plan))
    console.print(
        f"GB (10^9 bytes) of one {'GPU' if plan.machine.device == 'cuda' else 'rank'}, estimated; 'sum' is the larger of states, buffers and activations of "
        f"{_copies(job.copies)}, and of the update; 'again' is with --gradient_checkpointing"
        + ("; offload (ds_configs/) is slow, and untested" if plan.machine.device == "cuda" else "")
    )
    for option in plan.options:
        console.print(sentence(plan, option))
    for line in time_lines(plan):
        console.print(line)


def _copies(count: int) -> str:
    return "one row of the longest" if count == 1 else f"{count} rows of the longest"


def _precision(plan: Plan) -> str:
    return "bf16 with fp32 masters" if plan.job.precision == "bf16" else "fp32"


def _quantised(job: Job) -> str:
    """What of the model is held in 4 bits, if anything."""
    if not job.num_quantised:
        return ""
    size = NF4_BYTES * job.num_quantised / 1e9
    return f"; {job.num_quantised / 1e6:,.1f} M of them frozen in NF4 ({size:,.2f} GB), without what evaluations take"


def _table(plan: Plan) -> Table:
    what = "GPUs" if plan.machine.device == "cuda" else "ranks"
    left = ("weights", "gradients", "optimizer", "buffers", "activations", "sum", "", "again", "sum", "")
    table = Table(what, "--deepspeed", *left, "host/node")
    for column in table.columns[2:]:
        column.justify = "right"
    for option in plan.options:
        for number, (plain, again) in enumerate(option.estimates):
            states = plain.states
            parts = (states.weights, states.gradients, states.optimizer, states.buffers, plain.row, plain.needed)
            table.add_row(
                str(option.world_size) if number == 0 else "",
                Path(plain.zero.name).stem,
                *map(_gb, parts),
                YES if plain.fits else NO,
                _gb(again.row),
                _gb(again.needed),
                YES if again.fits else NO,
                _gb(plain.host),
            )
        table.add_section()
    return table


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f}"


def sentence(plan: Plan, option: Option) -> str:
    """What to do on so many GPUs."""
    unit = "GPU" if plan.machine.device == "cuda" else "CPU rank"
    where = f"{option.world_size} {unit}{'s' if option.world_size > 1 else ''}"
    if option.pick is None:
        advice = " What would: " + ", or ".join(option.would_fit) + "." if option.would_fit else ""
        return f"{where}: nothing fits.{advice}"
    best = option.pick
    return f"{where}: pass {best.flags} ({_gb(best.needed)} of {_gb(best.room)} GB for {_copies(plan.job.copies)})."


def time_lines(plan: Plan) -> list[str]:
    """Steps, tokens, FLOPs and hours, with what they assume."""
    work = plan.work
    if work is None:
        return ["time      not known: pass --max_steps, or data whose rows can be counted"]
    lines = [
        f"work      {work.steps:,} updates of {work.tokens_per_update:,.0f} tokens: {work.tokens / 1e6:,.1f} M tokens, {work.flops / 1e15:,.1f} PFLOP"
    ]
    times = [(option.world_size, hours(plan, option)) for option in plan.options]
    told = ", ".join(f"{count} x: {_time(found)}" for count, found in times if found is not None)
    if told:
        assert plan.machine.peak is not None
        lines.append(
            f"time      {told}; an estimate that assumes {plan.mfu:.0%} of the {plan.machine.peak / 1e12:.0f} TFLOP/s (bf16) of "
            f"GPU {plan.machine.gpu} (--mfu, --gpu), without evaluations and checkpoints"
        )
    else:
        lines.append("time      not estimated: peaks are known for some GPUs, in bf16 alone")
    return lines


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min"


def hours(plan: Plan, option: Option) -> float | None:
    """Of training; None where nothing fits, or no peak is known."""
    best, peak = option.pick, plan.machine.peak
    if best is None or plan.work is None or peak is None or plan.job.precision != "bf16":
        return None
    return plan.work.hours(num_gpus=option.world_size, peak=peak, mfu=plan.mfu, checkpointing=best.checkpointing)


def as_json(plan: Plan) -> dict[str, Any]:
    """Bytes and counts, nothing rounded."""
    job, work = plan.job, plan.work
    return {
        "model": plan.model.name,
        "parameters": job.num_parameters,
        "precision": job.precision,
        "optimizer": job.optimizer,
        "quantised_parameters": job.num_quantised,
        "longest_row": {"source_tokens": job.longest[0], "target_tokens": job.longest[1]},
        "rows_at_once": job.copies,
        "passes": job.passes,
        "averages": job.num_averages,
        "lengths": plan.lengths.note,
        "device": plan.machine.device,
        "memory_bytes": plan.machine.memory,
        "fits": plan.fits,
        "plans": [
            {
                "world_size": option.world_size,
                "pick": None if option.pick is None else _estimate(option.pick),
                "would_fit": list(option.would_fit),
                "hours": hours(plan, option),
                "estimates": [_estimate(one) for pair in option.estimates for one in pair],
            }
            for option in plan.options
        ],
        "work": None
        if work is None
        else {
            "steps": work.steps,
            "tokens_per_update": work.tokens_per_update,
            "tokens": work.tokens,
            "flops": work.flops,
        },
        "assumed": {"mfu": plan.mfu, "gpu": plan.machine.gpu, "peak_flops": plan.machine.peak},
    }


def _estimate(one: Estimate) -> dict[str, Any]:
    states = one.states
    return {
        "deepspeed": one.zero.name,
        "gradient_checkpointing": one.checkpointing,
        "micro_batch_tokens": one.tokens,
        "flags": one.flags,
        "fits": one.fits,
        "weights_bytes": states.weights,
        "gradients_bytes": states.gradients,
        "optimizer_bytes": states.optimizer,
        "buffers_bytes": states.buffers,
        "activations_bytes": one.row,
        "needed_bytes": one.needed,
        "usable_bytes": one.room,
        "host_bytes_per_node": one.host,
    }
