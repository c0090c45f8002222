"""With `zero_start` and `masters` the only importer of deepspeed: a model and an optimizer under ZeRO, one update at a time.

Knows nothing of data, schedules or files. Gradients are scaled by the caller's own count, never by the number of
micro-batches or ranks; weights and optimizer state come out, and go back in, as whole fp32 tensors by name, so that
a checkpoint belongs to no ZeRO stage and no number of ranks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist

from workflow.errors import BackendError
from workflow.inference.interface import Together
from workflow.models.load import guarded_weights
from workflow.models.quantised import dense_weights
from workflow.training.ds_config import BackendPlan
from workflow.training.optim import Multiplier, set_lr
from workflow.training.zero_overflow import leaving_out
from workflow.training.zero_start import initialize, settle

ADAM_BYTES, AVERAGE_BYTES = 8, 4
ADAM_KEYS = ("exp_avg", "exp_avg_sq")
SAMPLE_SIZE = 4096


class SavedState(Protocol):
    """What a checkpoint gives back, by the model's parameter names."""

    def weight(self, name: str) -> torch.Tensor:
        """A whole fp32 weight."""

    def keys_of(self, name: str) -> list[str]:
        """The optimizer's keys for this weight."""

    def state(self, name: str, key: str) -> torch.Tensor:
        """A whole optimizer tensor."""


class Backend:
    """A model under DeepSpeed. `module` is the model itself, `wrapped` what training must call.

    `form` is a module that holds the model and trains it in its own way; names of weights are the model's all the same.
    """

    def __init__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        plan: BackendPlan,
        *,
        max_grad_norm: float,
        device: torch.device,
        form: torch.nn.Module | None = None,
    ) -> None:
        self.plan = plan
        self.module = model
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.device = device
        self.world_size = dist.get_world_size()
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        before = {name: _sample(weight) for name, weight in guarded_weights(model).items()}
        was_tied = _is_tied(model)
        settle(model, plan, device)
        self.wrapped = initialize(form if form is not None else model, optimizer, plan)
        if self.world_size == 1 and plan.stage == 0:
            self.wrapped.enable_backward_allreduce = False  # it would copy all gradients to and fro for nobody
        self._check_guarded(before, was_tied=was_tied)
        self.wrapped.train()  # from_pretrained leaves the model in eval mode, and DeepSpeed does not change it

    def _check_guarded(self, before: dict[str, torch.Tensor], *, was_tied: bool) -> None:
        """Sharding must not change or tie embeddings and head: transformers has lost Flan's head that way."""
        if _is_tied(self.module) != was_tied:
            raise BackendError(
                "the output head was tied to the embeddings, or untied, while the model was sharded; this is a bug, please report it"
            )
        for name, parameter in guarded_weights(self.module).items():
            with self.gathered([parameter]):
                same = torch.equal(_sample(parameter).to(parameter.dtype), before[name].to(parameter.dtype))
            if not same:
                raise BackendError(f"the model's {name} changed while it was sharded; this is a bug, please report it")

    @contextlib.contextmanager
    def gathered(self, parameters: Sequence[Any]) -> Iterator[None]:
        """Whole parameters on every rank inside the block (a collective call under ZeRO-3)."""
        if self.plan.stage == 3:
            import deepspeed

            with deepspeed.zero.GatheredParameters(list(parameters)):
                yield
        else:
            yield

    def together(self) -> Together | None:
        """How an engine gathers weights, in step with the ranks that hold the other shares; None where every rank has them whole.

        DeepSpeed shards under ZeRO-3 on one rank, too: what it holds between two uses of a weight is flat, or empty.
        """
        if self.plan.stage != 3:
            return None
        return Together(self.gathered, self._agree)

    def _agree(self, mine: Sequence[bool]) -> Sequence[bool]:
        flags = torch.tensor(mine, dtype=torch.int32, device=next(self.module.parameters()).device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in flags.tolist()]

    def bytes_to_come(self, *, num_averages: int = 0) -> int:
        """What steps will allocate for good on this rank, shared by ZeRO: Adam's two moments, averages of weights; fp32."""
        count: int = sum(getattr(weight, "ds_numel", weight.numel()) for _, weight in self.trainable())
        each = AVERAGE_BYTES * num_averages + (0 if self.optimizer.state else ADAM_BYTES)
        return each * count // (1 if self.plan.stage == 0 else self.world_size)

    # ---- one update

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Adds gradients of `loss`; the last call of an update also sums them over the ranks.

        `loss` must be this rank's share of the update's mean: DeepSpeed averages over ranks, which is undone here.
        """
        self.wrapped.set_gradient_accumulation_boundary(is_last)
        self.wrapped.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self, multiplier: float | Multiplier) -> tuple[float, float]:
        """Clips and updates. Returns (gradient norm before clipping, highest learning rate).

        `multiplier` is what each group's initial rate is multiplied by, or says so of a group.

        A norm that is not finite comes back as it is, and then nothing has been updated: ZeRO 1 to 3 leave such an update out
        by themselves (their handling of overflows, which looks at the norm for fp32 and bf16 too), here ZeRO 0 does.
        """
        lr = set_lr(self.optimizer, multiplier)
        if self.plan.stage == 0:
            norm = self._clip()
            if not math.isfinite(norm):
                self.wrapped.zero_grad()
                return norm, lr
            self.wrapped.step()
            return norm, lr
        self.wrapped.step()
        return float(self.wrapped.get_global_grad_norm()), lr

    def discard(self) -> None:
        """Drops the gradients of an update, of which every micro-batch has been through `backward`; nothing else changes."""
        if self.plan.stage == 0:
            self.wrapped.zero_grad()
            return
        with leaving_out(self.wrapped.optimizer, stage=self.plan.stage):
            self.wrapped.step()

    def _clip(self) -> float:
        limit = self.max_grad_norm if self.max_grad_norm > 0 else float("inf")
        return float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), limit))

    # ---- frozen weights, replaced for a while

    def exchange(self, parameter: Any, value: torch.Tensor) -> torch.Tensor:
        """Sets this rank's share of a frozen weight from a whole value; what was there comes back, on the CPU."""
        share = self._share(parameter)
        before = share.detach().to("cpu", copy=True)
        share.copy_(part_of(value, share.numel()) if self.plan.stage == 3 else value)
        return before

    def put_back(self, parameter: Any, before: torch.Tensor) -> None:
        """Undoes `exchange`, bit for bit; a collective call under ZeRO-3."""
        with self.gathered([parameter]):
            pass  # ZeRO-3 keeps small weights whole: leaving the block leaves each rank its share alone
        self._share(parameter).copy_(before)

    def _share(self, parameter: Any) -> torch.Tensor:
        return parameter.ds_tensor.data if self.plan.stage == 3 else parameter.data  # type: ignore[no-any-return]

    # ---- weights and optimizer state, whole

    def trainable(self) -> list[tuple[str, Any]]:
        """What trains, by name."""
        return [(name, parameter) for name, parameter in self.module.named_parameters() if parameter.requires_grad]

    def full_weight(self, parameter: Any) -> torch.Tensor:
        """The fp32 master of a parameter, whole, on every rank."""
        if self.plan.stage == 0:
            return parameter.detach()  # type: ignore[no-any-return]
        if not parameter.requires_grad:  # frozen: no optimizer has a master of it
            with self.gathered([parameter]):
                return parameter.detach().float().clone()  # type: ignore[no-any-return]
        from deepspeed.utils import safe_get_full_fp32_param

        weight = safe_get_full_fp32_param(parameter)
        assert weight is not None
        return weight.view(_full_shape(parameter))  # type: ignore[no-any-return]

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, whole fp32 weight) one after the other; a collective call: every rank must exhaust it."""
        for name, parameter in self.module.named_parameters():
            yield name, self.full_weight(parameter)
        yield from dense_weights(self.module)

    def optimizer_state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """("NAME/KEY", whole fp32 state) one after the other; a collective call like `weights`."""
        self._link_state()
        for name, parameter in self.trainable():
            if self.plan.stage == 0:
                for key, value in self._state_of(parameter).items():
                    yield f"{name}/{key}", torch.as_tensor(value)
                continue
            from deepspeed.utils import safe_get_full_optimizer_state

            for key in ADAM_KEYS:
                state = safe_get_full_optimizer_state(parameter, key)
                assert state is not None
                yield f"{name}/{key}", state.view(_full_shape(parameter))

    def _state_of(self, parameter: Any) -> dict[str, Any]:
        """As ZeRO has it: zeros, too, of a weight that no update has had a gradient of."""
        state: dict[str, Any] = self.optimizer.state[parameter]
        if not state and isinstance(self.optimizer, torch.optim.AdamW):
            return {key: torch.zeros_like(parameter) for key in ADAM_KEYS}
        return state

    def load_optimizer_state(
        self, saved: SavedState, *, num_steps: int, empty_loss: Callable[[], torch.Tensor]
    ) -> None:
        """Puts back the state after `num_steps` updates; the weights have been loaded with the model.

        ZeRO makes its optimizer state at the first update only, so one that changes nothing is made first:
        `empty_loss` is a forward pass whose loss is zero.
        """
        if self.plan.stage == 0:
            for name, parameter in self.trainable():
                values = {key: saved.state(name, key) for key in saved.keys_of(name)}
                if not values:
                    continue  # never a gradient: the optimizer makes the state where there is one
                # Fused AdamW keeps its step count beside the weights.
                step = torch.tensor(float(num_steps), device=parameter.device) if "exp_avg" in values else num_steps
                self.optimizer.state[parameter] = {
                    **{key: self._placed(value) for key, value in values.items()},
                    "step": step,
                }
            return
        self.backward(empty_loss(), is_last=True)
        self.step(0.0)
        self._link_state()
        for name, parameter in self.trainable():
            if self.plan.precision == "bf16":  # the masters began as the rounded weights
                self._put(parameter, saved.weight(name), None)
            for key in ADAM_KEYS:
                self._put(parameter, saved.state(name, key), key)
        for state in self.optimizer.state.values():
            state["step"] = torch.full_like(state["step"], float(num_steps))

    def _put(self, parameter: Any, value: torch.Tensor, key: str | None) -> None:
        """Sets this rank's part of an optimizer tensor, or (no key) of the fp32 master, from the whole one."""
        from deepspeed import utils

        if self.plan.stage < 3:
            value = value.to(self.device)
            if key is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        # DeepSpeed's setter of whole ZeRO-3 tensors fails where the ranks do not divide their size evenly.
        size = utils.safe_get_local_fp32_param(parameter).numel()
        part = part_of(value, size).to(self.device)
        if key is None:
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_local_optimizer_state(parameter, part, key)

    def _link_state(self) -> None:
        """ZeRO-1/2 link parameters to their optimizer state after the first *group's* first step: link the others too."""
        zero = self.wrapped.optimizer
        if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    def _placed(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, torch.Tensor) and value.ndim else value

    def destroy(self) -> None:
        """Frees DeepSpeed's hooks; without it ZeRO-3 can abort when the process ends."""
        self.wrapped.destroy()


def _is_tied(model: Any) -> bool:
    weights = guarded_weights(model)
    return weights["head"] is weights["embeddings"]


def part_of(value: torch.Tensor, size: int) -> torch.Tensor:
    """This rank's `size` elements of a whole tensor, as ZeRO-3 shares it out: flat, zeros behind the end."""
    part = value.flatten()[size * dist.get_rank() :][:size]
    return torch.nn.functional.pad(part, (0, size - part.numel()))


def _full_shape(parameter: Any) -> Any:
    return getattr(parameter, "ds_shape", parameter.shape)


def _sample(weight: Any) -> torch.Tensor:
    """Up to SAMPLE_SIZE evenly spread values of a weight, on the CPU."""
    flat = weight.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLE_SIZE)].cpu().clone()  # type: ignore[no-any-return]
