"""Decode steps of one shape, recorded once and replayed: a CUDA graph takes a step's hundreds of launches in one.

Knows nothing of layers: the step is a function of tensors. Shapes are few, because rows come in powers of two and
lengths are the whole room of a pool; what is behind the real rows and lengths is masked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from workflow.inference.slots import Pool, Step

Forward = Callable[[torch.Tensor, Sequence[Pool], Sequence[Step]], torch.Tensor]
Capture = Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]]
"""Records a function of fixed tensors; what comes back runs it again on their contents of that moment."""

WARM_UPS = 2
RECORDING = threading.Lock()


def cuda_capture(work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """A CUDA graph of the work. Libraries choose and allocate in the first runs, which must not be recorded."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Another thread may load a model or record a step of its own meanwhile; only this thread's calls are watched.
    with RECORDING, torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = work()

    def replay() -> torch.Tensor:
        graph.replay()
        return found

    return replay


@dataclass(frozen=True)
class _Recorded:
    """The tensors that a recorded step reads, and the step."""

    pool: Pool
    room: tuple[int, int]
    ids: torch.Tensor
    step: Step
    run: Callable[[], torch.Tensor]


class DecodeGraphs:
    """The recorded steps of all pools."""

    def __init__(self, forward: Forward, capture: Capture) -> None:
        self.forward = forward
        self.capture = capture
        self._recorded: dict[tuple[int, int], _Recorded] = {}

    def clear(self) -> None:
        """Forgets all recordings."""
        self._recorded.clear()

    def decode(self, pool: Pool, tokens: Sequence[int], tables: torch.Tensor) -> torch.Tensor:
        """fp32 logits [answers, vocabulary] of a pool's answers, whose last tokens are given."""
        rows = 1 << (len(tokens) - 1).bit_length()
        step = pool.step(tables, rows=rows, whole=True)
        ids = torch.tensor([*tokens, *[0] * (rows - len(tokens))], device=tables.device)
        recorded = self._recorded.get((pool.source, rows))
        if recorded is None or recorded.pool is not pool or recorded.room != pool.room:
            recorded = self._record(pool, ids, step)
        recorded.ids.copy_(ids)
        for mine, now in zip(_tensors(recorded.step), _tensors(step), strict=True):
            mine.copy_(now)
        return recorded.run()[: len(tokens)].clone()

    def _record(self, pool: Pool, ids: torch.Tensor, step: Step) -> _Recorded:
        """The tensors of this first step become those that later ones are copied into.

        Warming up writes this step's keys and values to the places where the step itself will write them again.
        """
        # Recordings of a smaller room hold on to tensors that the pool has left.
        gone = [
            key
            for key, old in self._recorded.items()
            if key[0] == pool.source and (old.pool is not pool or old.room != pool.room)
        ]
        for key in gone:
            del self._recorded[key]
        recorded = _Recorded(pool, pool.room, ids, step, self.capture(lambda: self.forward(ids, [pool], [step])))
        self._recorded[pool.source, step.rows] = recorded
        return recorded


def _tensors(step: Step) -> tuple[torch.Tensor, ...]:
    return step.positions, step.self_bias, step.cross_mask
