"""Models that score: a T5 whose answer's first token is read, or a BERT-like or GPT-2 model with a classification head.

Knows nothing of rows or losses. Whatever the model, `LoadedClassifier.logits` gives fp32 [rows, width]; its softmax
(or sigmoid, or the number itself) is the prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers

from workflow.errors import ModelError
from workflow.label_names import places_of
from workflow.models.head_config import OwnHead, in_order, label_notes, own_head, set_up
from workflow.models.head_rows import put_rows
from workflow.models.input_lengths import most_tokens
from workflow.models.load import (
    FAMILIES,
    Explained,
    LoadedModel,
    check_folder,
    head_names,
    is_path,
    load_seq2seq,
    load_tokenizer,
    model_family,
    read_tokenizer,
)
from workflow.models.load_report import check_report, check_unquantised
from workflow.models.nanogpt import is_nanogpt, read_nanogpt
from workflow.models.padding import padding_counts
from workflow.models.ragged import why_padded
from workflow.models.stored import check_numbers, stored_tensors
from workflow.models.verbalizers import single_token
from workflow.runtime import seeded

NANOGPT_TOKENIZER = "gpt2"


@dataclass(frozen=True)
class LoadedClassifier(LoadedModel):
    """A model in fp32 that scores, and its tokenizer.

    `start_token` is the decoder's first token (T5 only); `has_new_head` says that the head was not in the checkpoint.
    """

    problem: str = "binary"
    labels: tuple[str, ...] = ("no", "yes")
    start_token: int | None = None
    takes_types: bool = False
    max_positions: int | None = None
    has_new_head: bool = False
    of_one_length: bool = False
    """Whether inputs of one length alone may share a batch, because padding changes this model's scores."""
    own_head: OwnHead | None = None
    """What the checkpoint says of the head that it holds."""

    @property
    def width(self) -> int:
        """Logits of an input: one a label, or the number itself."""
        return 1 if self.problem == "regression" else len(self.labels)

    def logits(
        self,
        call: Any,
        *,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_types: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """fp32 [rows, width]; `call` is the model, maybe wrapped. T5 decodes one position and computes the labels' rows of its head alone."""
        more: dict[str, Any] = {}
        if self.start_token is not None:
            more = {"decoder_input_ids": input_ids.new_full((len(input_ids), 1), self.start_token), "use_cache": False}
        elif token_types is not None:
            more = {"token_type_ids": token_types}
        logits: torch.Tensor = call(input_ids=input_ids, attention_mask=attention_mask, **more).logits.float()
        return logits[:, 0] if self.start_token is not None else logits


class LabelRows(torch.nn.Module):
    """An output head that computes some rows of its weight only: [..., d_model] -> [..., labels].

    A module of its own (not `F.linear` on a slice from outside), so that ZeRO-3 gathers the weight for it.
    """

    def __init__(self, weight: torch.nn.Parameter, rows: Sequence[int]) -> None:
        super().__init__()
        self.weight = weight
        self.rows: torch.Tensor
        self.register_buffer("rows", torch.tensor(list(rows)), persistent=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The labels' logits."""
        return F.linear(hidden, self.weight[self.rows])


class GPT2ForSequenceClassification(transformers.GPT2ForSequenceClassification):  # type: ignore[misc]
    """GPT-2 with a head on the last real token.

    transformers takes the last token that is not padding, which is a wrong one where padding is the end-of-text token
    and a text ends in it; here the attention mask says. The class keeps transformers' name, which checkpoints hold.
    """

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> Any:
        """Logits [rows, labels]; padding stands at the right."""
        hidden = self.transformer(input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        last = attention_mask.sum(dim=1) - 1
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), last]
        return transformers.modeling_outputs.SequenceClassifierOutputWithPast(logits=self.score(pooled))


def load_classifier(
    name: str,
    *,
    problem: str,
    labels: Sequence[str],
    tokenizer: str | None = None,
    dropout: float | None = None,
    seed: int = 0,
    as_stored: bool = False,
    mapped: bool = True,
) -> LoadedClassifier:
    """Loads a model that scores, from a folder, a nanoGPT ckpt.pt or the hub; a head that is missing is made from `seed`.

    `as_stored` and `mapped` are `load_seq2seq`'s; models with a head of their own, which is made in fp32, are fp32.
    Raises ModelError with the reason and what to do.
    """
    if is_path(name) and is_nanogpt(Path(name)):
        return _load_nanogpt(name, problem, labels, tokenizer or NANOGPT_TOKENIZER, dropout, seed)
    edited = check_folder(name, needs_tokenizer=tokenizer is None)
    if model_family(name) in FAMILIES:
        return _load_t5(name, problem, labels, tokenizer, dropout, as_stored=as_stored, mapped=mapped)
    loaded = _load_with_head(name, problem, labels, tokenizer, dropout, seed, mapped=mapped)
    return replace(loaded, notes=(*edited, *loaded.notes))


def read_own_head(name: str) -> OwnHead | None:
    """What a checkpoint says of its classification head; None for those without one of their own. Raises ModelError."""
    if (is_path(name) and is_nanogpt(Path(name))) or model_family(name) in FAMILIES:
        return None
    with Explained(name, "configuration"):
        return own_head(transformers.AutoConfig.from_pretrained(name, trust_remote_code=False))


def _load_t5(
    name: str,
    problem: str,
    labels: Sequence[str],
    tokenizer: str | None,
    dropout: float | None,
    *,
    as_stored: bool,
    mapped: bool,
) -> LoadedClassifier:
    if problem not in ("binary", "multiclass"):
        raise ModelError(
            f"{name}: a T5 scores {problem} targets in no way of its own; use --problem binary (--target_range LOW HIGH maps "
            "bounded numbers) or multiclass, or a BERT-like model"
        )
    loaded = load_seq2seq(name, dropout=dropout, tokenizer=tokenizer, as_stored=as_stored, mapped=mapped)
    tokens = label_tokens(loaded.tokenizer, labels)
    loaded.model.lm_head = LabelRows(loaded.model.lm_head.weight, tokens)
    return LoadedClassifier(
        loaded.model,
        loaded.tokenizer,
        loaded.notes,
        problem=problem,
        labels=tuple(labels),
        start_token=loaded.model.config.decoder_start_token_id,
    )


def label_tokens(tokenizer: Any, labels: Sequence[str]) -> list[int]:
    """One token a label word. Raises ModelError for words that are not one token, or the same one."""
    tokens = [single_token(tokenizer, word) for word in labels]
    if len(set(tokens)) < len(tokens):
        raise ModelError(
            f"two of the label words {', '.join(labels)} are the same token of this vocabulary; choose others"
        )
    return tokens


def _load_with_head(
    name: str,
    problem: str,
    labels: Sequence[str],
    tokenizer: str | None,
    dropout: float | None,
    seed: int,
    *,
    mapped: bool,
) -> LoadedClassifier:
    with Explained(name, "configuration"):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        known = type(config) in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if not known:
        raise ModelError(
            f"{name}: a {config.model_type} model has no classification head in transformers; use a T5, BERT-like or GPT-2 one"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name}: a {config.model_type} model; of encoder-decoders, this program scores with {', '.join(FAMILIES)}"
        )
    if config.model_type not in ("gpt2",) and not _is_encoder(config):
        raise ModelError(f"{name}: a {config.model_type} model; of decoder-only models, this program scores with gpt2")
    check_unquantised(name, config)
    loaded_tokenizer, tokenizer_notes = read_tokenizer(tokenizer or name, for_scores=True)
    own = own_head(config)
    set_up(config, "regression" if own.is_sigmoid(problem) else problem, labels, loaded_tokenizer, dropout)
    kind = (
        GPT2ForSequenceClassification
        if config.model_type == "gpt2"
        else transformers.AutoModelForSequenceClassification
    )
    with Explained(name, "weights"), seeded(seed):
        stored = stored_tensors(name)
        model, report = kind.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # allowed for the head alone, below
            output_loading_info=True,
            trust_remote_code=False,
            disable_mmap=not mapped,
        )
    check_numbers(name, stored, (weight for weight, _ in model.named_parameters(remove_duplicate=False)))
    mismatched = {found[0] for found in report["mismatched_keys"]}
    new = sorted({*report["missing_keys"], *mismatched})
    may_be_new = {key for key in new if key in head_names(model) or ".pooler." in key}
    notes = check_report(name, model, report, may_be_new=may_be_new)
    is_new_head = bool({*head_names(model)} & {*report["missing_keys"]})
    _order_outputs(name, model, own, problem, labels)
    set_up(config, problem, labels, loaded_tokenizer, dropout)
    loaded = _checked(name, model, loaded_tokenizer, problem, labels, new)
    loaded = replace(loaded, notes=(*loaded.notes, *notes, *tokenizer_notes), own_head=None if is_new_head else own)
    return loaded if loaded.has_new_head else replace(loaded, notes=(*loaded.notes, *label_notes(own, problem, labels)))


def _order_outputs(name: str, model: Any, own: OwnHead, problem: str, labels: Sequence[str]) -> None:
    """Puts the outputs of a head in the order of the labels, by name; one output becomes the second of two."""
    if own.is_sigmoid(problem):  # softmax([0, x]) is sigmoid(x)
        put_rows(name, model, [None, 0] if own.sigmoid_place(labels) else [0, None])
        return
    places = places_of(labels, own.labels) if problem != "regression" and len(labels) == own.outputs else None
    if places is not None and places != in_order(labels):
        put_rows(name, model, places)


def _load_nanogpt(
    name: str, problem: str, labels: Sequence[str], tokenizer: str, dropout: float | None, seed: int
) -> LoadedClassifier:
    config, weights, assumed = read_nanogpt(Path(name))
    loaded_tokenizer = load_tokenizer(tokenizer, for_scores=True)
    set_up(config, problem, labels, loaded_tokenizer, dropout)
    with seeded(seed):
        model = GPT2ForSequenceClassification(config)
    model.load_state_dict(weights, strict=False)  # read_nanogpt has matched every key of the body
    loaded = _checked(name, model, loaded_tokenizer, problem, labels, ["score.weight"])
    return replace(loaded, notes=(*loaded.notes, *assumed))


def _is_encoder(config: Any) -> bool:
    """Whether transformers also makes a masked-language model of this family: BERT and its like."""
    return type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING


def _checked(
    name: str, model: Any, tokenizer: Any, problem: str, labels: Sequence[str], new: Sequence[str]
) -> LoadedClassifier:
    config = model.config
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the model only {config.vocab_size}; they do not belong together"
        )
    notes = (f"new in this model, to be trained: {', '.join(new)}",) if new else ()
    head = {*head_names(model)}
    loaded = LoadedClassifier(
        model,
        tokenizer,
        notes,
        tuple(new),
        problem=problem,
        labels=tuple(labels),
        takes_types="token_type_ids" in tokenizer.model_input_names and getattr(config, "type_vocab_size", 2) > 1,
        max_positions=most_tokens(model, tokenizer),
        # What a head reads is part of it: without its trained pooler, a trained head reads noise.
        has_new_head=any(key in head or ".pooler." in key for key in new),
    )
    return loaded if why_padded(model) is None else _padding_tried(name, loaded)


def _padding_tried(name: str, loaded: LoadedClassifier) -> LoadedClassifier:
    """The same, with what padding does to its scores found out."""
    model, tokenizer, notes = loaded.model, loaded.tokenizer, list(loaded.notes)
    if getattr(model.config, "attention_type", None) == "block_sparse":
        # transformers would do it at the first short batch, and never undo it: scores would depend on what came before.
        model.base_model.set_attention_type("original_full")
        notes.append(
            f"this {model.config.model_type} attends in full (attention_type original_full), whatever its inputs' lengths"
        )

    def logits(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        types = torch.zeros_like(ids) if loaded.takes_types else None
        return loaded.logits(model, input_ids=ids, attention_mask=mask, token_types=types)

    special = {*tokenizer.all_special_ids}
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    was_training = model.training
    model.eval()
    try:
        counts = padding_counts(name, logits, ordinary, pad_id=tokenizer.pad_token_id, most=loaded.max_positions)
    finally:
        model.train(was_training)
    if counts:
        notes.append(
            f"padding changes the scores of this {model.config.model_type} (tried on texts beside longer ones), so only inputs of "
            "equal length share a batch, in training and scoring; plain batches of transformers give other numbers"
        )
    return replace(loaded, notes=tuple(notes), of_one_length=counts)
