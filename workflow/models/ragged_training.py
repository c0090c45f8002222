"""T5's training forward over packed tokens: transformers' own modules, none of its padding.

Knows nothing of optimizers or ranks. Every weight is reached by calling a module that owns it, so that ZeRO-3
gathers it there; dropout stands wherever transformers has it. Takes T5 (1.0, v1.1, Flan, ByT5), mT5 and UMT5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from workflow.models.absorbed import GPU_SLACK, AbsorbedCross
from workflow.models.adapters import is_plain
from workflow.models.attention_backends import Choice, choose, head_width
from workflow.models.checkpointing import checkpointed
from workflow.models.dropout import SECOND_USE, Keyed, Keys, Thinning, dropped, number_places
from workflow.models.head_loss import HeadLoss
from workflow.models.linear import use_onednn
from workflow.models.norms import use_fused_norms
from workflow.models.pairing import Pairing, pairing_of
from workflow.models.ragged_attention import Biases, attend, group_biases
from workflow.models.t5_weights import activation, output_scale

FAMILIES = ("t5", "mt5", "umt5")
ATTENTION_PARTS = ("q", "k", "v", "o", "dropout", "has_relative_attention_bias")


class Packed(Keyed, Protocol):
    """Sequences one after another."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each sequence."""


class RaggedT5(torch.nn.Module):
    """What training calls in the place of a T5. It holds no weight of its own.

    `attention` names a back end of `pairing`; None leaves the choice to `attention_backends`.
    """

    attention: str | None = None

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.head = HeadLoss(model.lm_head.weight)
        config = model.config
        self.start_token = config.decoder_start_token_id
        self.num_heads = config.num_heads
        self.act = activation(config.dense_act_fn)
        self.buckets = {
            "num_buckets": config.relative_attention_num_buckets,
            "max_distance": config.relative_attention_max_distance,
        }
        self.output_scale = output_scale(config)
        use_onednn(model)
        use_fused_norms(model)
        number_places(model)

    def forward(self, source: Packed, target: Packed) -> torch.Tensor:
        """The loss summed over the target's tokens; without gradients, the loss of each token. fp32."""
        return self.head(self.hidden(source, target), target.ids)  # type: ignore[no-any-return]

    def hidden(self, source: Packed, target: Packed) -> torch.Tensor:
        """The decoder's output before each of the target's tokens [tokens, d_model], ready for the head."""
        states = self.encode(source)
        own = self._pairing(target.lengths, None)
        return self._decode(
            self._shifted(target, own), Keys.of(target), states, own, self._plain(target.lengths, source)
        )

    def _plain(self, queries: Sequence[int], source: Packed) -> Callable[..., torch.Tensor]:
        """Cross-attention as transformers computes it."""
        cross = self._pairing(queries, source.lengths)

        def look_across(layer: Any, x: torch.Tensor, states: torch.Tensor, keys: Keys) -> torch.Tensor:
            return self._attention(layer.EncDecAttention, x, states, cross, None, keys)

        return look_across

    def encode(self, source: Packed) -> torch.Tensor:
        """The encoder's output [tokens, d_model] in the weights' type."""
        stack = self.model.encoder
        pairing, keys = self._pairing(source.lengths, None), Keys.of(source)
        x = dropped(stack.embed_tokens(source.ids).float(), stack.dropout, keys)
        biases: Biases | None = None
        for block in stack.block:
            biases = self._biases(block, pairing, biases, bidirectional=True)
            x = checkpointed(block, self._encoder_block, block, x, pairing, biases, keys)
        return self._dropped_again(stack.final_layer_norm(x), stack.dropout, keys)

    @staticmethod
    def _dropped_again(x: torch.Tensor, module: Any, keys: Keys) -> torch.Tensor:
        """What a stack's dropout, which has dropped embeddings before, leaves of the stack's output."""
        return dropped(x, module, keys, place=module.dropout_place + SECOND_USE)

    def _encoder_block(self, block: Any, x: torch.Tensor, pairing: Pairing, biases: Biases, keys: Keys) -> torch.Tensor:
        return self._feed_forward(block.layer[1], self._self_attention(block.layer[0], x, pairing, biases, keys), keys)

    def _decode(
        self,
        ids: torch.Tensor,
        keys: Keys,
        states: torch.Tensor,
        pairing: Pairing,
        look_across: Callable[..., torch.Tensor],
    ) -> torch.Tensor:
        """The decoder's output, ready for the head; `look_across(layer, x, states, keys)` is its cross-attention."""
        stack = self.model.decoder
        x = dropped(stack.embed_tokens(ids).float(), stack.dropout, keys)
        biases: Biases | None = None
        for block in stack.block:
            biases = self._biases(block, pairing, biases, bidirectional=False)
            x = checkpointed(block, self._decoder_block, block, x, states, pairing, biases, look_across, keys)
        return self._dropped_again(stack.final_layer_norm(x), stack.dropout, keys) * self.output_scale

    def _decoder_block(
        self,
        block: Any,
        x: torch.Tensor,
        states: torch.Tensor,
        pairing: Pairing,
        biases: Biases,
        look_across: Callable[..., torch.Tensor],
        keys: Keys,
    ) -> torch.Tensor:
        own, cross, last = block.layer
        x = self._self_attention(own, x, pairing, biases, keys)
        x = x + dropped(look_across(cross, cross.layer_norm(x), states, keys), cross.dropout, keys)
        return self._feed_forward(last, x, keys)

    def _self_attention(
        self, layer: Any, x: torch.Tensor, pairing: Pairing, biases: Biases, keys: Keys
    ) -> torch.Tensor:
        normed = layer.layer_norm(x)
        seen = self._attention(layer.SelfAttention, normed, normed, pairing, biases, keys)
        return x + dropped(seen, layer.dropout, keys)

    def _attention(
        self, module: Any, x: torch.Tensor, states: torch.Tensor, pairing: Pairing, biases: Biases | None, keys: Keys
    ) -> torch.Tensor:
        """x [queries, d_model], which `keys` are of, looks at states [tokens, d_model]."""
        q, k, v = module.q(x), module.k(states), module.v(states)
        thinning = Thinning.of(module, module.dropout, keys)
        return module.o(attend(q, k, v, pairing, biases, num_heads=self.num_heads, thinning=thinning))  # type: ignore[no-any-return]

    def _feed_forward(self, layer: Any, x: torch.Tensor, keys: Keys) -> torch.Tensor:
        dense, normed = layer.DenseReluDense, layer.layer_norm(x)
        inner = (
            self.act(dense.wi_0(normed)) * dense.wi_1(normed) if hasattr(dense, "wi_0") else self.act(dense.wi(normed))
        )
        return x + dropped(dense.wo(dropped(inner, dense.dropout, keys)), layer.dropout, keys)

    def _biases(self, block: Any, pairing: Pairing, before: Biases | None, *, bidirectional: bool) -> Biases:
        """Of the block's own table where it has one (UMT5: every block), else those of the blocks before."""
        attention = block.layer[0].SelfAttention
        if attention.has_relative_attention_bias:
            table = attention.relative_attention_bias
            return group_biases(table, pairing, bidirectional=bidirectional, **self.buckets)
        assert before is not None
        return before

    def _pairing(self, queries: Sequence[int], keys: Sequence[int] | None) -> Pairing:
        device = self.model.lm_head.weight.device
        backend = self.attention or self.choice().name
        return pairing_of(queries, keys, num_heads=self.num_heads, device=device, backend=backend)

    def choice(self) -> Choice:
        """Which attention suits the weights as they are now, and why."""
        weight = self.model.lm_head.weight
        return choose(weight.device, weight.dtype, width=head_width(self.model.config))

    def _shifted(self, target: Packed, own: Pairing) -> torch.Tensor:
        """The decoder's input: each sequence moved by one behind the start token."""
        return torch.roll(target.ids, 1).index_fill_(0, own.starts, self.start_token)


class RaggedScorer(RaggedT5):
    """A T5 that scores: one decoder position, the labels' rows of its head, no keys or values of the encoder's tokens
    (unless adapters stand there, or they are quantised)."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        del self.head
        crosses = [block.layer[1].EncDecAttention for block in model.decoder.block]
        # What is absorbed is a weight, which says nothing of an adapter: there, keys and values are computed.
        self.is_absorbed = all(is_plain(part) for cross in crosses for part in (cross.q, cross.k, cross.v))
        self.cross = torch.nn.ModuleList(AbsorbedCross(cross) for cross in crosses if self.is_absorbed)

    def forward(self, source: Packed) -> torch.Tensor:  # type: ignore[override]
        """fp32 logits [sequences, labels]."""
        states = self.encode(source)
        ones = [1] * len(source.lengths)
        look_across = self._absorbed(ones, source) if self.is_absorbed else self._plain(ones, source)
        start = source.ids.new_full((len(ones),), self.start_token)
        firsts = self._pairing(source.lengths, None).starts
        x = self._decode(start, Keys.of(source).select(firsts), states, self._pairing(ones, None), look_across)
        return self.model.lm_head(x).float()  # type: ignore[no-any-return]

    def _absorbed(self, ones: Sequence[int], source: Packed) -> Callable[..., torch.Tensor]:
        cross = pairing_of(ones, source.lengths, num_heads=1, device=source.ids.device, gpu_slack=GPU_SLACK)
        across = {
            id(block.layer[1]): module for block, module in zip(self.model.decoder.block, self.cross, strict=True)
        }

        def look_across(layer: Any, x: torch.Tensor, states: torch.Tensor, keys: Keys) -> torch.Tensor:
            attention = layer.EncDecAttention
            thinning = Thinning.of(attention, attention.dropout, keys)
            return attention.o(across[id(layer)](x, states, cross, thinning))  # type: ignore[no-any-return]

        return look_across


def why_not_ragged(model: Any) -> str | None:
    """What of a model of these families this forward does not know; None where it knows all."""
    blocks = [*model.encoder.block, *model.decoder.block]
    attentions = [part for block in blocks for part in _attentions(block)]
    if not all(hasattr(part, name) for part in attentions for name in ATTENTION_PARTS):
        return "its attention is not built as T5's"
    dense = [getattr(block.layer[-1], "DenseReluDense", None) for block in blocks]
    if not all(hasattr(part, "wo") and (hasattr(part, "wi") or hasattr(part, "wi_1")) for part in dense):
        return "its feed-forward layers are not built as T5's"
    return None


def _attentions(block: Any) -> list[Any]:
    names = ("SelfAttention", "EncDecAttention")
    return [getattr(layer, name, None) for layer, name in zip(block.layer[:-1], names, strict=False)]
