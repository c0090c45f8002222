"""The training forward of BERT-like models with a classification head over packed tokens, by transformers' own modules.

Knows nothing of optimizers, ranks or losses. Every weight is reached by calling the module that owns it, so that
ZeRO-3 gathers it there; dropout stands wherever transformers has it. Only a sequence's first token is scored, so the
last layer computes keys and values of all tokens, and everything else of the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

from workflow.models.attention_backends import choose
from workflow.models.checkpointing import checkpointed
from workflow.models.dropout import SECOND_USE, Keys, Thinning, dropped, number_places
from workflow.models.linear import use_onednn
from workflow.models.pairing import Pairing, pairing_of
from workflow.models.ragged_attention import attend
from workflow.models.ragged_training import Packed

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "data2vec-text", "electra", "distilbert")
EMBEDDING_PARTS = ("word_embeddings", "position_embeddings", "LayerNorm", "dropout")
HEAD_PARTS = ("dense", "dropout", "out_proj")


class Typed(Packed, Protocol):
    """Sequences one after another, maybe with token types."""

    @property
    def token_types(self) -> torch.Tensor | None:
        """int64 [tokens]; None: all 0."""


class Parts(NamedTuple):
    """The modules of an encoder layer, in the order of their use."""

    query: Any
    key: Any
    value: Any
    weights_dropout: Any
    attention_out: Any
    attention_dropout: Any
    attention_norm: Any
    inner: Any
    act: Any
    out: Any
    dropout: Any
    norm: Any


class RaggedBert(torch.nn.Module):
    """What training calls in the place of a sequence-classification model. It holds no weight of its own."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.num_heads = model.config.num_attention_heads
        self.layers = [(layer, _parts(layer)) for layer in _layers(model)]
        self.width = self.layers[0][1].query.out_features // self.num_heads
        self.scale = self.width**-0.5
        use_onednn(model)
        number_places(model)

    def forward(self, source: Typed) -> torch.Tensor:
        """fp32 logits [sequences, labels]. Raises ValueError for a sequence longer than the model's positions."""
        keys = Keys.of(source)
        x = self._embedded(source, keys)
        device = x.device
        backend = choose(device, x.dtype, width=self.width).name
        own = pairing_of(source.lengths, num_heads=self.num_heads, device=device, backend=backend)
        for layer, parts in self.layers[:-1]:
            x = checkpointed(layer, self._layer, parts, x, x, own, keys)
        lengths = torch.tensor(source.lengths)
        firsts = (lengths.cumsum(0) - lengths).to(device)
        ones = [1] * len(lengths)
        one_each = pairing_of(ones, source.lengths, num_heads=self.num_heads, device=device, backend=backend)
        layer, parts = self.layers[-1]
        keys = keys.select(firsts)
        x = checkpointed(layer, self._layer, parts, x.index_select(0, firsts), x, one_each, keys)
        return self._scored(x, keys).float()

    def _embedded(self, source: Typed, keys: Keys) -> torch.Tensor:
        """[tokens, hidden]."""
        body = self.model.base_model
        module = body.embeddings
        x = module.word_embeddings(source.ids)
        if hasattr(module, "token_type_embeddings"):  # DistilBERT has none
            types = source.token_types if source.token_types is not None else torch.zeros_like(source.ids)
            x = x + module.token_type_embeddings(types)
        x = x + module.position_embeddings(_positions(module.position_embeddings, source))
        x = dropped(module.LayerNorm(x), module.dropout, keys)
        return body.embeddings_project(x) if hasattr(body, "embeddings_project") else x  # ELECTRA's

    def _layer(self, parts: Parts, x: torch.Tensor, states: torch.Tensor, pairing: Pairing, keys: Keys) -> torch.Tensor:
        """x [queries, hidden], which `keys` are of, looks at states [tokens, hidden], which hold it."""
        q, k, v = parts.query(x) * self.scale, parts.key(states), parts.value(states)
        thinning = Thinning.of(parts.weights_dropout, parts.weights_dropout.p, keys)
        seen = attend(q, k, v, pairing, None, num_heads=self.num_heads, thinning=thinning)
        x = parts.attention_norm(x + dropped(parts.attention_out(seen), parts.attention_dropout, keys))
        return parts.norm(x + dropped(parts.out(parts.act(parts.inner(x))), parts.dropout, keys))  # type: ignore[no-any-return]

    def _scored(self, first: torch.Tensor, keys: Keys) -> torch.Tensor:
        """[sequences, hidden] -> [sequences, labels]."""
        model = self.model
        head = model.classifier
        if hasattr(model, "pre_classifier"):  # DistilBERT's
            return head(dropped(torch.relu(model.pre_classifier(first)), model.dropout, keys))  # type: ignore[no-any-return]
        if isinstance(head, torch.nn.Linear):
            # The pooler takes the first of a row's tokens itself.
            return head(dropped(model.base_model.pooler(first[:, None]), model.dropout, keys))  # type: ignore[no-any-return]
        x = head.dense(dropped(first, head.dropout, keys))
        x = head.activation(x) if hasattr(head, "activation") else torch.tanh(x)  # ELECTRA's is another than RoBERTa's
        return head.out_proj(dropped(x, head.dropout, keys, place=head.dropout.dropout_place + SECOND_USE))  # type: ignore[no-any-return]


def _positions(table: Any, source: Typed) -> torch.Tensor:
    """int64 [tokens]: from 0 in each sequence; of a RoBERTa, from the one after padding's, which any padding token has."""
    padding = table.padding_idx
    limit = table.num_embeddings - (0 if padding is None else padding + 1)
    if max(source.lengths) > limit:
        raise ValueError(f"a sequence of {max(source.lengths)} tokens, but the model has {limit} positions")
    lengths = torch.tensor(source.lengths)
    starts, device = lengths.cumsum(0) - lengths, source.ids.device
    real = torch.ones_like(source.ids) if padding is None else source.ids.ne(padding).long()
    counted = real.cumsum(0)
    before = (counted - real)[torch.repeat_interleave(starts, lengths).to(device)]
    return counted - before - 1 if padding is None else (counted - before) * real + padding


def _layers(model: Any) -> Sequence[Any]:
    """The encoder's layers, which transformers keeps in `encoder.layer` or, in DistilBERT, `transformer.layer`."""
    body = model.base_model
    found: Sequence[Any] = (body.transformer if hasattr(body, "transformer") else body.encoder).layer
    return found


def _parts(layer: Any) -> Parts:
    """Raises AttributeError for a layer that is built otherwise."""
    attention = layer.attention
    if hasattr(layer, "ffn"):  # DistilBERT's names; what attention gives is not thinned out there
        return Parts(
            *(attention.q_lin, attention.k_lin, attention.v_lin, attention.dropout),
            *(attention.out_lin, torch.nn.Dropout(0.0), layer.sa_layer_norm),
            *(layer.ffn.lin1, layer.ffn.activation, layer.ffn.lin2, layer.ffn.dropout, layer.output_layer_norm),
        )
    looking, mixing, inner, last = attention.self, attention.output, layer.intermediate, layer.output
    return Parts(
        *(looking.query, looking.key, looking.value, looking.dropout),
        *(mixing.dense, mixing.dropout, mixing.LayerNorm),
        *(inner.dense, inner.intermediate_act_fn, last.dense, last.dropout, last.LayerNorm),
    )


def why_not_ragged(model: Any) -> str | None:
    """What of a model of these families this forward does not know; None where it knows all."""
    if not hasattr(model, "classifier"):
        return "it has no classification head"
    if getattr(model.config, "is_decoder", False):
        return "its tokens look back only"
    if not all(hasattr(model.base_model.embeddings, name) for name in EMBEDDING_PARTS):
        return "its embeddings are not built as BERT's"
    is_known = hasattr(model, "pre_classifier") or isinstance(model.classifier, torch.nn.Linear)
    if not is_known and not all(hasattr(model.classifier, name) for name in HEAD_PARTS):
        return "its head is not built as RoBERTa's"
    try:
        layers = [_parts(layer) for layer in _layers(model)]
    except AttributeError:
        return "its layers are not built as BERT's"
    return None if layers else "it has no layers"
