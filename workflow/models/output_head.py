"""What a T5's configuration and files say of its output head and embeddings; where they disagree, nothing is guessed.

transformers 5 ties whatever is missing to the embeddings, whatever the configuration says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workflow.errors import ModelError
from workflow.models.load_report import shapes
from workflow.models.stored import Stored
from workflow.models.t5_weights import output_scale

HEAD = "lm_head.weight"
TIE = "tie_word_embeddings"
SHARED = "shared.weight"
TABLES = (SHARED, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", HEAD)
UNTIED_FAMILIES = ("mt5",)
"""Have a head of their own where the configuration says nothing."""


def check_head(name: str, raw: Mapping[str, Any], stored: Stored) -> None:
    """Raises ModelError where `config.json` means a head of its own, and the files hold none.

    `raw` is `config.json` as it stands; transformers drops the key.
    """
    said = raw.get(TIE)
    if said is not None and type(said) is not bool:
        raise ModelError(f"{name}: config.json: {TIE} must be true or false, not {said!r}")
    if said is True or (said is None and raw.get("model_type") not in UNTIED_FAMILIES):
        return
    tables = [table for table in TABLES if table in stored]
    missing = [*([] if HEAD in tables else [HEAD]), *([] if {*tables} - {HEAD} else [SHARED])]
    if len(missing) == 1:  # where both are missing, loading says what else is
        why = f"{TIE} false" if said is False else f"no {TIE}, which means false for {raw['model_type']}"
        raise ModelError(
            f"{name}: the weights lack {missing[0]}, and config.json (with {why}) says that head and embeddings are two; copy "
            f"the whole checkpoint again, or write {TIE} true into config.json where they are one"
        )


def check_tables(name: str, config: Any, stored: Stored) -> None:
    """Raises ModelError where the embeddings or the head have other sizes than `config.json` says."""
    expected = (config.vocab_size, config.d_model)
    for key in TABLES:
        found = stored[key].shape if key in stored else expected
        if found[:1] != expected[:1]:
            raise ModelError(
                f"{name}: config.json says vocab_size {expected[0]}, {key} has {found[0] if found else 'no'} rows; "
                "make them agree (they are of two checkpoints, or one was resized without the other)"
            )
        if found != expected:
            raise ModelError(
                f"{name}: config.json and the weights disagree about shapes: {shapes(key, found, expected)}"
            )


def head_notes(name: str, raw: Mapping[str, Any], model: Any) -> list[str]:
    """What was assumed where `config.json` does not say what the files show. Raises ModelError for two sets of embeddings."""
    for stack in (model.encoder, model.decoder):
        if stack.embed_tokens.weight is not model.shared.weight:
            raise ModelError(
                f"{name}: {SHARED} and the embed_tokens.weight of a stack differ; T5's encoder and decoder share their "
                "embeddings; keep the ones that the model was trained with"
            )
    is_own = model.lm_head.weight is not model.shared.weight
    scaled = "are multiplied by d_model ** -0.5" if output_scale(model.config) != 1 else "are not scaled"
    explicit = raw.get("scale_decoder_outputs") is not None
    if is_own and raw.get(TIE) is not False and not explicit:
        said = f"says {TIE} true" if raw.get(TIE) else f"has no {TIE}"
        return [
            f"config.json {said} beside an {HEAD} that is not the embeddings: that head is used, and its logits {scaled}; "
            f"{TIE} false in config.json would mean that they are not"
        ]
    if not is_own and raw.get("scale_decoder_outputs") is False:
        return [
            "config.json says scale_decoder_outputs false, as of models with a head of their own, and the files hold no "
            f"{HEAD}: the embeddings are the head, unscaled"
        ]
    return []
