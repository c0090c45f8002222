"""T5s made from scratch, in the published shapes, with a vocabulary trained on the user's own texts.

Knows nothing of data formats: it is given texts. For trying things out, tests, benchmarks and teaching; a model from
scratch knows nothing before it is trained.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from workflow.errors import ModelError
from workflow.files import whole_folder, write_json
from workflow.models.save import write_model
from workflow.models.shapes import Shape
from workflow.models.verbalizers import pieces, single_token
from workflow.runtime import seeded

LABEL_WORDS = ("yes", "no")
WORD_START = "\u2581"
MAX_TRAINING_TEXTS = 1_000_000
RECIPE_FILE = "init_model.json"


def train_vocabulary(texts: Iterator[str], *, vocab_size: int, labels: Sequence[str] = ()) -> Any:
    """A T5 tokenizer over a sentencepiece unigram vocabulary of up to `vocab_size` pieces; digits stand alone.

    *yes*, *no* and `labels` are single ordinary pieces whatever the texts, so that scores can be read off.
    Raises ModelError when the texts are too few, or a label cannot be one piece.
    """
    import sentencepiece

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
    return _with_label_words(proto.getvalue(), list(dict.fromkeys([*LABEL_WORDS, *labels])))


def _with_label_words(proto: bytes, words: list[str]) -> Any:
    """The tokenizer, each word a piece of it: of average probability where training did not find it."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(proto)
    known = {piece.piece for piece in model.pieces}
    scores = [piece.score for piece in model.pieces if piece.score < 0] or [-1.0]
    for word in words:
        if WORD_START + word not in known:
            model.pieces.add(piece=WORD_START + word, score=sum(scores) / len(scores))
    tokenizer = _t5_tokenizer(model.SerializeToString())
    split = {WORD_START + word: word for word in words if len(pieces(tokenizer, word)) != 1}
    if not split:
        return tokenizer
    for piece in model.pieces:
        if piece.piece in split:
            piece.score = max(scores)  # log probabilities: no two pieces together are as likely
    tokenizer = _t5_tokenizer(model.SerializeToString())
    for word in split.values():
        single_token(tokenizer, word)
    return tokenizer


def _t5_tokenizer(proto: bytes) -> Any:
    from transformers import T5Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "spiece.model").write_bytes(proto)
        return T5Tokenizer.from_pretrained(folder, extra_ids=0)


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
    with seeded(seed):
        model = T5ForConditionalGeneration(config)
        if not shape.first_version:
            # An own head starts at fan-in scale, as in T5X; transformers ties it, and would start it at scale 1.
            head = torch.empty_like(model.lm_head.weight).normal_(std=shape.d_model**-0.5)
            model.lm_head.weight = torch.nn.Parameter(head)
            model.config.tie_word_embeddings = False
    return model


def write_scratch_model(out: Path, model: Any, tokenizer: Any, recipe: dict[str, Any]) -> None:
    """Writes the checkpoint folder of a model of any architecture whole or not at all, with `recipe` in it."""
    with whole_folder(out) as folder:
        if model.config.is_encoder_decoder:
            weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
            write_model(folder, model, tokenizer, weights, max_new_tokens=128)
        else:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
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
