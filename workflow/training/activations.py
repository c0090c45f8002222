"""What a forward pass keeps for its backward pass, in bytes, from a model's shape and the lengths of its rows.

Pure functions of numbers: no tensors, no files. Counted after `models/ragged_training.py`, `ragged_attention.py` and
`head_loss.py`, tensor by tensor; docs/memory.md has the same as formulas. BERT and GPT-2 are counted after the padded
forwards of transformers, attention weights included.
"""

from __future__ import annotations

from dataclasses import dataclass

from workflow.models.model_shape import ModelShape, StackShape, T5Shape

LOGITS_AT_ONCE = 1 << 24
"""As in `models/head_loss.py`."""
FP32, INDEX = 4, 8
PRODUCTS_AT_WORK = 3
"""fp32 tensors as large as the attention weights while one layer's attention goes backward; beside two of the weights' type."""


@dataclass(frozen=True)
class Rows:
    """What of a micro-batch the activations depend on: rows, tokens, and pairs of tokens that look at each other.

    `places` counts the pairs that biases are written out for: of one row in each group of like lengths.
    """

    rows: int
    sources: int
    targets: int
    source_pairs: int
    target_pairs: int
    cross_pairs: int
    places: int

    @classmethod
    def alike(cls, count: int, source: int, target: int) -> Rows:
        """`count` rows of the same lengths."""
        squares = (source**2, target**2)
        return cls(
            rows=count,
            sources=count * source,
            targets=count * target,
            source_pairs=count * squares[0],
            target_pairs=count * squares[1],
            cross_pairs=count * source * target,
            places=sum(squares),
        )


@dataclass(frozen=True)
class Kinds:
    """Bytes an element: of weights and of what linear maps give, and of a dropout mask (0 where nothing is dropped).

    CPUs keep a mask in the type of what it thins out, GPUs as one byte. Attention keeps its weights in fp32, and a mask
    of them in fp32; `fused` attention (GPUs) keeps neither.
    """

    weight: int
    mask: int
    mask_of_fp32: int
    fused: bool = False

    @classmethod
    def of(cls, precision: str, device: str, *, dropout: float) -> Kinds:
        """Of a run in fp32 or bf16 on `cpu` or `cuda`."""
        weight = 2 if precision == "bf16" else 4
        fused = device == "cuda"
        if dropout == 0:
            return cls(weight, 0, 0, fused)
        return cls(weight, 1, 1, fused) if fused else cls(weight, weight, FP32)

    @property
    def score(self) -> int:
        """Of a pair of tokens in a head, where attention is explicit: the weight, and the mask's number."""
        return FP32 + (FP32 if self.mask else 0)

    @property
    def pair(self) -> int:
        """Of a pair of tokens in a head, as the device's attention keeps it for each layer."""
        return 0 if self.fused else self.score


@dataclass(frozen=True)
class Activations:
    """`kept` at the end of a forward pass, at most `working` more while it goes backward."""

    kept: int
    working: int

    @property
    def peak(self) -> int:
        """Together."""
        return self.kept + self.working


def activations(
    shape: ModelShape, rows: Rows, kinds: Kinds, *, checkpointing: bool, scores_only: bool = False
) -> Activations:
    """Of one micro-batch. `scores_only`: a T5 that reads labels at its first decoder position (clf.py)."""
    if isinstance(shape, StackShape):
        return _of_stack(shape, rows, kinds, checkpointing=checkpointing)
    targets = rows.rows if scores_only else rows.targets
    encoder = _encoder_layer(shape, rows, kinds)
    decoder = (_scoring_layer if scores_only else _decoder_layer)(shape, rows, kinds)
    if checkpointing:  # a layer's input, made to all of the layer when its turn comes
        of_encoder = FP32 * shape.d_model * rows.sources * shape.num_layers
        of_decoder = FP32 * shape.d_model * targets * shape.num_decoder_layers
        biases = FP32 * shape.num_heads * rows.places
        ends = _ends(shape, rows, kinds, scores_only=scores_only) + biases
        again = (encoder, decoder)
    else:
        of_encoder, of_decoder = encoder * shape.num_layers, decoder * shape.num_decoder_layers
        ends, again = _ends(shape, rows, kinds, scores_only=scores_only), (0, 0)
    kept = of_encoder + of_decoder + ends
    # Backward goes from the head down: a layer's feed-forward is done with before its attention is at work.
    feed_forward = _feed_forward(shape, kinds)
    pairs = 0 if scores_only else max(rows.target_pairs, rows.cross_pairs)
    moments = (
        0 if scores_only else kinds.weight * shape.vocab_size * shape.d_model,
        0 if scores_only else _logits_at_work(shape, rows.targets, kinds),
        again[1] + _feed_forward_at_work(shape, targets, kinds),
        again[1] - targets * feed_forward + _attention_at_work(shape, pairs, kinds),
        again[0] - of_decoder + _feed_forward_at_work(shape, rows.sources, kinds),
        again[0] - of_decoder - rows.sources * feed_forward + _attention_at_work(shape, rows.source_pairs, kinds),
    )
    return Activations(kept, max(moments))


def _attention_at_work(shape: T5Shape, pairs: int, kinds: Kinds) -> int:
    if kinds.fused:  # a bias written out for every row, and its gradient; the varlen kernel needs neither
        return shape.num_heads * pairs * 2 * kinds.weight
    return shape.num_heads * pairs * (PRODUCTS_AT_WORK * FP32 + 2 * kinds.weight)


def _feed_forward_at_work(shape: T5Shape, tokens: int, kinds: Kinds) -> int:
    return tokens * (3 * kinds.weight * shape.d_ff + 2 * FP32 * shape.d_model)


def _norm(shape: T5Shape, kinds: Kinds) -> int:
    """A token's: the fp32 stream that goes in, a scale, the normed, and what the next maps read."""
    return FP32 * shape.d_model + FP32 + 2 * kinds.weight * shape.d_model


def _feed_forward(shape: T5Shape, kinds: Kinds) -> int:
    """A token's, with its norm and the masks."""
    inner = (3 if shape.gated else 1) + (1 if shape.gated or kinds.mask else 0)
    return (
        _norm(shape, kinds) + inner * kinds.weight * shape.d_ff + kinds.mask * shape.d_ff + kinds.mask * shape.d_model
    )


def _self_attention(shape: T5Shape, kinds: Kinds) -> int:
    """A token's: norm, queries, keys, values, their mix, the mask of what is added."""
    return _norm(shape, kinds) + 4 * kinds.weight * shape.inner + kinds.mask * shape.d_model


def _encoder_layer(shape: T5Shape, rows: Rows, kinds: Kinds) -> int:
    token = _self_attention(shape, kinds) + _feed_forward(shape, kinds)
    return rows.sources * token + shape.num_heads * kinds.pair * rows.source_pairs


def _decoder_layer(shape: T5Shape, rows: Rows, kinds: Kinds) -> int:
    cross = _norm(shape, kinds) + 2 * kinds.weight * shape.inner + kinds.mask * shape.d_model
    token = _self_attention(shape, kinds) + cross + _feed_forward(shape, kinds)
    keys_and_values = 2 * kinds.weight * shape.inner * rows.sources
    pairs = rows.target_pairs + rows.cross_pairs
    return rows.targets * token + keys_and_values + shape.num_heads * kinds.pair * pairs


def _scoring_layer(shape: T5Shape, rows: Rows, kinds: Kinds) -> int:
    """One decoder position a row; cross-attention keeps the encoder's states in the order of its groups, and their weights."""
    b, d = kinds.weight, shape.d_model
    absorbed = _norm(shape, kinds) + b * (2 * shape.inner + 2 * shape.num_heads * d) + kinds.mask * d
    token = _self_attention(shape, kinds) + absorbed + _feed_forward(shape, kinds)
    seen = rows.sources * (b * d + shape.num_heads * (kinds.score + b))
    return rows.rows * (token + shape.num_heads * kinds.score) + seen


def _ends(shape: T5Shape, rows: Rows, kinds: Kinds, *, scores_only: bool) -> int:
    """Embeddings, last norms, the head's gradients, and the places of heads in groups (int64, there and back)."""
    b, d = kinds.weight, shape.d_model
    targets = rows.rows if scores_only else rows.targets
    places = 2 * INDEX * shape.num_heads
    last = FP32 * d + FP32 + b * d + kinds.mask * d
    encoder = kinds.mask_of_fp32 * d + INDEX + last + b * d + 2 * places
    decoder = kinds.mask_of_fp32 * d + INDEX + last + b * d + 2 * places
    return rows.sources * encoder + targets * decoder + (0 if scores_only else b * shape.vocab_size * d)


def _logits_at_work(shape: T5Shape, labels: int, kinds: Kinds) -> int:
    """Of the part of the labels whose logits are made at once: in fp32, and in the weights' type."""
    return min(labels * shape.vocab_size, LOGITS_AT_ONCE) * (FP32 + kinds.weight)


def _of_stack(shape: StackShape, rows: Rows, kinds: Kinds, *, checkpointing: bool) -> Activations:
    b, d = kinds.weight, shape.d_model
    # GPT-2's activation, written out in transformers, keeps three more tensors; its queries, keys and values are one.
    states, inner = (8, 5) if shape.family == "gpt2" else (9, 2)
    width = states * b * d + inner * b * shape.d_ff + 2 * kinds.mask * d
    pairs = shape.num_heads * rows.source_pairs
    layer = rows.sources * width + pairs * (b + kinds.mask + (b if kinds.mask else 0))
    ends = rows.sources * (2 * b * d + kinds.mask * d)
    working = max(pairs * 2 * b, rows.sources * 3 * b * shape.d_ff)
    if checkpointing:
        return Activations(shape.num_layers * rows.sources * b * d + ends, layer + working)
    return Activations(shape.num_layers * layer + ends, working)
