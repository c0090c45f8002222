"""The tensors of generation: encodes prompts, fills slots, and decodes one position of every running answer at a time.

Knows nothing of requests, texts or sampling.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from workflow.inference.graphs import Capture, DecodeGraphs
from workflow.inference.slots import FIRST_ROWS, Pool, Step, distance_tables, source_bucket
from workflow.models.linear import linear
from workflow.models.ragged_t5 import Encoded, encode, first_position, logits_of_rows
from workflow.models.t5_weights import T5Weights


class T5Runner:
    """Runs a T5's weights as they are at each call; with `capture`, decode steps are recorded once a shape and replayed."""

    def __init__(self, weights: T5Weights, *, capture: Capture | None = None) -> None:
        self.weights = weights
        self.graphs = DecodeGraphs(self.forward, capture) if capture is not None else None
        self.pools: dict[int, Pool] = {}
        self._tables: torch.Tensor | None = None

    @property
    def rows(self) -> list[tuple[Pool, Any]]:
        """The running answers in the order of a step's logits, each with its pool."""
        return [(pool, occupant) for pool in self.pools.values() for occupant in pool.occupants]

    @torch.no_grad()
    def encode(self, prompts: Sequence[Sequence[int]]) -> Encoded:
        """Encodes prompts of one admission, packed."""
        return encode(self.weights, prompts)

    @torch.no_grad()
    def first_logits(self, encoded: Encoded, wanted: Sequence[tuple[int, Sequence[int]]]) -> list[torch.Tensor]:
        """fp32 logits at the first position: for each (prompt number, vocabulary rows), those rows'."""
        hidden = first_position(self.weights, encoded)
        every = sorted({row for _, rows in wanted for row in rows})
        places = {row: place for place, row in enumerate(every)}
        rows_wanted = torch.tensor(every, dtype=torch.long, device=self.weights.device)
        logits = logits_of_rows(self.weights, hidden, rows_wanted).cpu()
        packed = {number: place for place, number in enumerate(encoded.layout.order)}
        return [logits[packed[number], [places[row] for row in rows]] for number, rows in wanted]

    @torch.no_grad()
    def start(self, encoded: Encoded, occupants: Sequence[tuple[int, Sequence[Any]]]) -> None:
        """Gives slots to the answers of prompts, (prompt number, its answers); a prompt's answers share its encoding.

        Without answers it only computes: under ZeRO-3 other ranks wait for it.
        """
        layout = encoded.layout
        packed = {number: place for place, number in enumerate(layout.order)}
        wanted = sorted(((packed[number], answers) for number, answers in occupants), key=lambda pair: pair[0])
        states = encoded.states
        if not wanted:
            self._cross_states(states[:1])
            return
        if len(wanted) < len(layout.order):
            states = torch.cat([states[layout.starts[place] :][: layout.lengths[place]] for place, _ in wanted])
        found = torch.split(self._cross_states(states), [layout.lengths[place] for place, _ in wanted], dim=2)
        for (_, answers), cross in zip(wanted, found, strict=True):
            pool = self._pool(cross.shape[2])
            for answer in answers:
                pool.add(answer, cross.transpose(2, 3))

    def _cross_states(self, states: torch.Tensor) -> torch.Tensor:
        """Keys and values of the encoder's states for all layers, [2, layers, tokens, heads, d_kv]."""
        weights = self.weights
        if weights.cross_kv.weight is not None:
            joined = linear(states, weights.cross_kv.weight)
            joined = joined.view(-1, len(weights.decoder), 2, weights.num_heads, weights.d_kv)
            return joined.permute(2, 1, 0, 3, 4)
        found = []
        for layer in weights.decoder:
            with weights.gather([layer.cross.k.weight, layer.cross.v.weight]):
                found.append(torch.stack([linear(states, part.weight) for part in (layer.cross.k, layer.cross.v)]))
        return weights.heads(torch.stack(found, dim=1))

    def _pool(self, length: int) -> Pool:
        bucket = source_bucket(length)
        if bucket not in self.pools:
            self.pools[bucket] = Pool(self.weights, bucket)
        return self.pools[bucket]

    def stop(self, answers: Sequence[Any]) -> None:
        """Frees the slots of answers; those that have none are no error."""
        gone = set(map(id, answers))
        for pool in self.pools.values():
            for row in range(len(pool) - 1, -1, -1):
                if id(pool.occupants[row]) in gone:
                    pool.remove(row)
        # A burst's pool is memory that quiet times do not need; a small one is kept, for it is cheap and soon used again.
        self.pools = {source: pool for source, pool in self.pools.items() if len(pool) or pool.room[0] <= FIRST_ROWS}

    def copy(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        """Gives the second answer of each pair what the first has decoded; both are of one prompt, none is on both sides."""
        if pairs:
            (pool,) = [pool for pool in self.pools.values() if any(pairs[0][0] is row for row in pool.occupants)]
            places = {id(row): place for place, row in enumerate(pool.occupants)}
            pool.copy([places[id(source)] for source, _ in pairs], [places[id(target)] for _, target in pairs])

    def clear(self) -> None:
        """Forgets all slots and biases, with their memory; the weights may have changed since."""
        self.pools.clear()
        if self.graphs is not None:
            self.graphs.clear()
        self._tables = None

    @torch.no_grad()
    def decode(self, tokens: Sequence[int]) -> torch.Tensor:
        """One step: the last token of each answer, in the order of `rows` -> fp32 logits [answers, vocabulary].

        Without answers it computes one meaningless row, whose logits are dropped: under ZeRO-3 other ranks wait for it.
        """
        pools = [pool for pool in self.pools.values() if len(pool)]
        tables = self._distances()
        for pool in pools:
            pool.reserve()
        if self.graphs is not None:
            starts = itertools.accumulate([len(pool) for pool in pools], initial=0)
            parts = [
                self.graphs.decode(pool, tokens[start : start + len(pool)], tables)
                for pool, start in zip(pools, starts, strict=False)
            ]
            logits = torch.cat(parts) if len(parts) > 1 else parts[0]
        else:
            ids = torch.tensor(list(tokens) or [self.weights.config.pad_token_id], device=self.weights.device)
            logits = self.forward(ids, pools, [pool.step(tables) for pool in pools])[: len(tokens)]
        for pool in pools:
            pool.advance()
        return logits

    def forward(self, ids: torch.Tensor, pools: Sequence[Pool], steps: Sequence[Step]) -> torch.Tensor:
        """The tensors of a step: token ids [rows] of the pools' steps -> fp32 logits [rows, vocabulary]."""
        weights = self.weights
        with weights.gather([weights.embeddings.weight]):
            x = weights.embed(ids)
        for number in range(len(weights.decoder)):
            x = self._layer(number, x, pools, steps)
        with weights.gather([weights.decoder_norm.module.weight]):
            hidden = weights.decoder_norm(x) * weights.output_scale
        return logits_of_rows(weights, hidden)

    def _layer(self, number: int, x: torch.Tensor, pools: Sequence[Pool], steps: Sequence[Step]) -> torch.Tensor:
        weights, layer = self.weights, self.weights.decoder[number]
        with weights.whole(layer.module):
            qkv = layer.qkv.side_by_side(layer.norm(x)).view(-1, 3, weights.num_heads, weights.d_kv)
            table = number if self._distances().shape[0] > 1 else 0
            own = [pool.attend_own(number, step, qkv[rows], table=table) for pool, step, rows in _shares(pools, steps)]
            x = x + linear(_joined(own, qkv[:, 0]), layer.attention.o.weight)
            q = weights.heads(linear(layer.cross_norm(x), layer.cross.q.weight))
            over = [pool.attend_cross(number, step, q[rows]) for pool, step, rows in _shares(pools, steps)]
            x = x + linear(_joined(over, q), layer.cross.o.weight)
            return layer.feed_forward(x)

    def _distances(self) -> torch.Tensor:
        """The bias by distance, made at the first step after `clear`."""
        if self._tables is None:
            self._tables = distance_tables(self.weights)
        return self._tables


def _shares(pools: Sequence[Pool], steps: Sequence[Step]) -> list[tuple[Pool, Step, slice]]:
    """Each pool with its rows of the step."""
    found, start = [], 0
    for pool, step in zip(pools, steps, strict=True):
        found.append((pool, step, slice(start, start + step.rows)))
        start += step.rows
    return found


def _joined(parts: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """[rows, heads * d_kv] of all pools; zeros where there is none."""
    context = torch.cat(list(parts)) if len(parts) > 1 else parts[0] if parts else torch.zeros_like(like)
    return context.flatten(1)
