"""Models made from scratch, in the published shapes, with a vocabulary trained on the user's own texts.

Knows nothing of data formats: it is given texts. For trying things out, tests, benchmarks and teaching; a model from
scratch knows nothing before it is trained.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workflow.errors import ModelError
from workflow.files import whole_folder, write_json
from workflow.models.save import write_model
from workflow.models.shapes import Shape

LABEL_PIECES = ("\u2581yes", "\u2581no")
MAX_TRAINING_TEXTS = 1_000_000
RECIPE_FILE = "init_model.json"


def train_vocabulary(texts: Iterator[str], *, vocab_size: int) -> Any:
    """A T5 tokenizer over a sentencepiece unigram vocabulary of up to `vocab_size` pieces; digits stand alone.

    Holds `▁yes` and `▁no` as ordinary pieces whatever the texts, so that scores can be read off.
    Raises ModelError when the texts are too few.
    """
    import sentencepiece
    from transformers import T5Tokenizer

    proto = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts,
            model_writer=proto,
            vocab_size=vocab_size,
            model_type="unigram",
            hard_vocab_limit=False,
            split_digits=True,
            character_coverage=1.0,
            input_sentence_size=MAX_TRAINING_TEXTS,
            shuffle_input_sentence=False,
            max_sentence_length=1 << 16,
            num_threads=1,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ModelError(f"cannot train a vocabulary on these texts: {' '.join(str(error).split())[-200:]}") from None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "spiece.model").write_bytes(_with_label_pieces(proto.getvalue()))
        return T5Tokenizer.from_pretrained(folder, extra_ids=0)


def _with_label_pieces(proto: bytes) -> bytes:
    """Adds the label words as ordinary pieces of average probability where training did not find them."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(proto)
    known = {piece.piece for piece in model.pieces}
    scores = [piece.score for piece in model.pieces if piece.score < 0]
    for label in LABEL_PIECES:
        if label not in known:
            model.pieces.add(piece=label, score=sum(scores) / len(scores) if scores else -1.0)
    return bytes(model.SerializeToString())


def byte_vocabulary() -> Any:
    """ByT5's tokenizer: one token a byte, no training."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


def make_model(shape: Shape, tokenizer: Any, *, seed: int) -> Any:
    """A T5 of this shape with random weights that depend on the seed alone."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        d_model=shape.d_model,
        d_kv=shape.d_kv,
        d_ff=shape.d_ff,
        num_heads=shape.num_heads,
        num_layers=shape.num_layers,
        num_decoder_layers=shape.num_layers,
        feed_forward_proj="relu" if shape.first_version else "gated-gelu",
        tie_word_embeddings=shape.first_version,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
        if not shape.first_version:
            # An own head starts at fan-in scale, as in T5X; transformers ties it, and would start it at scale 1.
            head = torch.empty_like(model.lm_head.weight).normal_(std=shape.d_model**-0.5)
            model.lm_head.weight = torch.nn.Parameter(head)
            model.config.tie_word_embeddings = False
    return model


def write_scratch_model(out: Path, model: Any, tokenizer: Any, recipe: dict[str, Any]) -> None:
    """Writes the checkpoint folder whole or not at all; `recipe` is kept in it as `init_model.json`."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with whole_folder(out) as folder:
        write_model(folder, model, tokenizer, weights, max_new_tokens=128)
        write_json(folder / RECIPE_FILE, recipe)


def existing_recipe(out: Path) -> dict[str, Any] | None:
    """The recipe of a model that stands at `out`; None where nothing does. ModelError where something else does."""
    if not out.exists():
        return None
    try:
        recipe = json.loads((out / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(f"{out} exists and was not made by init-model; choose another --out") from None
    assert isinstance(recipe, dict)
    return recipe
