"""Which ZeRO stage, how many tokens a pass and whether to recompute activations: decided from numbers alone.

Pure functions, so that all ranks decide alike; knows nothing of settings, files or devices. An estimate: what the run
measures (`budget`) has the last word on tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from workflow.models.model_shape import ModelShape, T5Shape, num_factored, num_parameters
from workflow.training.activations import Activations, Kinds, Rows, activations
from workflow.training.model_states import OFFLOADS, STAGES, States, Zero, host_bytes, model_states, with_averages

USABLE = 0.88
"""What a pass may fill of the memory that is left; the rest goes to fragments and to what was not counted."""

RUNTIME_BYTES = 10**9
"""Of a GPU's memory, for CUDA's context, kernels and the workspaces of its libraries."""

CPU_TOKENS = 8192
"""On CPUs memory is the machine's, shared and swapped, and larger passes are not faster."""

STEP, MOST_TOKENS = 256, 1 << 17
GPUS_A_NODE = 8
MOST_GPUS = 64


@dataclass(frozen=True)
class Job:
    """What is trained: the model's shape, the longest row [source, target], precision, device, optimizer."""

    shape: ModelShape
    longest: tuple[int, int]
    precision: str
    device: str
    dropout: float
    optimizer: str = "adamw"
    scores_only: bool = False
    copies: int = 1
    """Rows of that length that a pass must have room for."""
    num_adapters: int = 0
    """Numbers of adapters, beside which all of the model's are frozen."""
    num_quantised: int = 0
    """Numbers of the frozen that are held in 4 bits."""
    passes: int = 1
    """How often each row stands in a batch."""
    num_averages: int = 0
    """Averages of what trains, kept in fp32."""

    @property
    def num_parameters(self) -> int:
        """All of the model's."""
        return num_parameters(self.shape)

    @property
    def row_tokens(self) -> int:
        """Of the longest row, as often as it stands in a batch."""
        return max(1, self.passes * sum(self.longest))

    def activations(self, count: int, *, checkpointing: bool) -> Activations:
        """Of a pass over `count` copies of the longest row, the worst there is: attention takes most there."""
        rows = Rows.alike(count * self.passes, *self.longest)
        kinds = Kinds.of(self.precision, self.device, dropout=self.dropout)
        return activations(self.shape, rows, kinds, checkpointing=checkpointing, scores_only=self.scores_only)


@dataclass(frozen=True)
class Estimate:
    """One way to train on `world_size` GPUs. `row` is the activations of the longest row alone (or the copies asked for); bytes of one GPU."""

    zero: Zero
    world_size: int
    checkpointing: bool
    states: States
    row: int
    room: int
    tokens: int
    host: int

    @property
    def needed(self) -> int:
        """At least: for one row at a time, or for the update."""
        return max(self.states.held + self.row, self.states.at_update)

    @property
    def fits(self) -> bool:
        """Whether the least that is needed has room."""
        return self.needed <= self.room

    @property
    def flags(self) -> str:
        """What to pass to get it."""
        parts = [f"--deepspeed {self.zero.name}", f"--micro_batch_tokens {self.tokens}"]
        return " ".join([*parts, *(["--gradient_checkpointing"] if self.checkpointing else [])])


def adapter_numbers(shape: ModelShape, rank: int, *, everywhere: bool) -> int:
    """Of adapters on attention's linear maps, or `everywhere`: two matrices of `rank` beside each map (Hu et al. 2021)."""
    if isinstance(shape, T5Shape):
        attentions = shape.num_layers + 2 * shape.num_decoder_layers
        maps = 4 * attentions * (shape.d_model + shape.inner)
        layers, inner = shape.num_layers + shape.num_decoder_layers, shape.mlp_matrices
    else:
        maps, layers, inner = 4 * shape.num_layers * 2 * shape.d_model, shape.num_layers, 2
    return rank * (maps + (layers * inner * (shape.d_model + shape.d_ff) if everywhere else 0))


def linear_numbers(shape: ModelShape) -> int:
    """Of the linear maps that adapters may stand beside: all but embeddings, norms, biases and heads."""
    if isinstance(shape, T5Shape):
        attentions, layers = (
            shape.num_layers + 2 * shape.num_decoder_layers,
            shape.num_layers + shape.num_decoder_layers,
        )
        return shape.d_model * (4 * attentions * shape.inner + layers * shape.mlp_matrices * shape.d_ff)
    return shape.num_layers * shape.d_model * (4 * shape.d_model + 2 * shape.d_ff)


def room_of(memory: int, device: str) -> int:
    """Bytes that may be planned for, of a device's whole memory."""
    return int((memory - (RUNTIME_BYTES if device == "cuda" else 0)) * USABLE)


def estimate(job: Job, zero: Zero, *, world_size: int, memory: int, checkpointing: bool) -> Estimate:
    """One way to train, on GPUs of `memory` bytes each."""
    numbers = num_factored(job.shape) if job.optimizer == "adafactor" else None
    num_trained = job.num_adapters or job.num_parameters
    states = model_states(
        num_trained,
        zero,
        precision=job.precision,
        world_size=world_size,
        adafactor_numbers=numbers,
        num_frozen=job.num_parameters if job.num_adapters else 0,
        num_quantised=job.num_quantised,
    )
    states = with_averages(states, job.num_averages * num_trained, zero, world_size=world_size)
    room = room_of(memory, job.device)
    row = job.activations(job.copies, checkpointing=checkpointing).peak
    return Estimate(
        zero,
        world_size,
        checkpointing,
        states,
        row,
        room,
        _tokens(job, room - states.held, checkpointing=checkpointing),
        host_bytes(job.num_parameters, states, ranks_here=min(world_size, GPUS_A_NODE)),
    )


def _tokens(job: Job, room: int, *, checkpointing: bool) -> int:
    """Tokens of copies of the longest row that fill the room, a multiple of STEP; at least that row's."""
    most = MOST_TOKENS if job.device == "cuda" else CPU_TOKENS
    low, high = job.copies, max(job.copies, most // job.row_tokens)
    while low < high:
        middle = (low + high + 1) // 2
        if job.activations(middle, checkpointing=checkpointing).peak <= room:
            low = middle
        else:
            high = middle - 1
    return max(job.row_tokens, low * job.row_tokens // STEP * STEP)


def stages_in_order(precision: str, world_size: int, optimizer: str = "adamw") -> tuple[Zero, ...]:
    """The stages worth trying, the quickest first. On one rank sharding saves buffers of gradients at the most.

    fp32 on one rank is ZeRO-0: the others copy all weights once more. bf16 begins at ZeRO-1 there, and several ranks at
    ZeRO-2, whose gradients are shared out for the price of ZeRO-1's. Adafactor is for ZeRO-0 alone.
    """
    if optimizer == "adafactor" or (world_size == 1 and precision == "fp32"):
        return STAGES[:1]
    return STAGES[1:] if world_size == 1 else STAGES[2:]


def allowed_stages(precision: str, optimizer: str = "adamw", *, offload: bool) -> tuple[Zero, ...]:
    """Every stage that training does not refuse, with `offload` those that wait in the machine's memory last."""
    if optimizer == "adafactor":
        return STAGES[:1] if precision == "fp32" else ()
    return (*(STAGES if precision == "fp32" else STAGES[1:]), *(OFFLOADS if offload else ()))


def takes(job: Job, zeros: Sequence[Zero]) -> tuple[Zero, ...]:
    """Those that a job can have: quantised weights cannot be sharded."""
    return tuple(zero for zero in zeros if zero.stage < 3 or not job.num_quantised)


def _in_order(job: Job, world_size: int) -> tuple[Zero, ...]:
    return takes(job, stages_in_order(job.precision, world_size, job.optimizer))


def pick(
    job: Job, *, world_size: int, memory: int, zeros: Sequence[Zero], checkpointing: Sequence[bool] = (False, True)
) -> Estimate | None:
    """The first that fits: without recomputing by falling speed of the stages, then with it; None where nothing does."""
    for again in checkpointing:
        for zero in zeros:
            found = estimate(job, zero, world_size=world_size, memory=memory, checkpointing=again)
            if found.fits:
                return found
    return None


def auto_stage(job: Job, *, world_size: int, memory: int, checkpointing: bool) -> tuple[Zero, str]:
    """(what `--deepspeed auto` means on GPUs of `memory` bytes, why): the least sharded stage that fits.

    Where none does, the one that needs least, with the advice that may help: recomputing is never switched on unasked.
    """
    zeros = _in_order(job, world_size)
    found = pick(job, world_size=world_size, memory=memory, zeros=zeros, checkpointing=(checkpointing,))
    if found is not None:
        size = f"{found.needed / 1e9:.1f} of {found.room / 1e9:.1f} GB"
        skipped = "" if found.zero == zeros[0] else f"; {zeros[0].name} would not fit"
        return found.zero, f"by estimate its longest row takes {size}{skipped}"
    tried = [estimate(job, zero, world_size=world_size, memory=memory, checkpointing=checkpointing) for zero in zeros]
    least = min(tried, key=lambda one: one.needed)
    again = estimate(job, least.zero, world_size=world_size, memory=memory, checkpointing=True)
    advice = "pass --gradient_checkpointing" if again.fits and not checkpointing else "workflow plan says what would"
    return least.zero, (
        f"by estimate its longest row takes {least.needed / 1e9:.1f} of {least.room / 1e9:.1f} GB and will not fit; {advice}"
    )


def what_would_fit(job: Job, *, world_size: int, memory: int) -> list[str]:
    """For people whose job fits nowhere: the smallest changes that would help, each by itself."""
    found = []
    for smaller in (job, replace(job, copies=1)):
        zeros = _in_order(job, world_size)
        if (fitting := pick(smaller, world_size=world_size, memory=memory, zeros=zeros)) is not None:
            found.append(fitting.flags)
            break
    if job.precision == "fp32" and job.optimizer == "adamw":
        half = replace(job, precision="bf16")
        zeros = _in_order(half, world_size)
        if pick(half, world_size=world_size, memory=memory, zeros=zeros) is not None:
            found.append("--precision bf16")
    more = world_size + 1
    while more <= MOST_GPUS:
        zeros = _in_order(job, more)
        if (fitting := pick(job, world_size=more, memory=memory, zeros=zeros)) is not None:
            again = " and --gradient_checkpointing" if fitting.checkpointing else ""
            found.append(f"{more} such GPUs ({fitting.zero.name}{again})")
            break
        more += 1
    zeros = takes(job, OFFLOADS)
    if job.optimizer == "adamw" and (waiting := pick(job, world_size=world_size, memory=memory, zeros=zeros)):
        found.append(
            f"{waiting.flags} ({waiting.needed / 1e9:.1f} GB a GPU, {waiting.host / 1e9:.0f} GB of the machine's memory; slow, and untested)"
        )
    return found
