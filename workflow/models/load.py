"""Loads a T5-family checkpoint and its own tokenizer from a folder or the hub, whole and untouched, or says why not.

Knows nothing of DeepSpeed: models are loaded while no ZeRO-3 initialisation is active, because under it transformers
takes Flan's separate output head for tied and drops it (both look like equal empty shards).
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow.errors import ModelError
from workflow.files import LFS_ADVICE, is_lfs_pointer
from workflow.models.answers import AnswerTexts, read_answers
from workflow.models.ends import settle_ends
from workflow.models.load_report import check_report, check_unquantised
from workflow.models.manifest import check_written
from workflow.models.tokenizer_file import as_its_files_say, check_ids
from workflow.paths import ANSWER_TOKENS_NAME, TOKEN_IDS_NAME

if TYPE_CHECKING:
    import torch

    from workflow.models.adapters import Adapters

FAMILIES = ("t5", "mt5", "umt5")
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.txt", "vocab.json")
GENERATION_FILE = "generation_config.json"
LEAST_TOKENS = 8


@dataclass(frozen=True)
class LoadedModel:
    """A model and its tokenizer, in fp32 if not asked otherwise; `notes` are worth a line in the run's header.

    `new_weights` names parameters that the checkpoint lacks; `adapters`, if any, have been put into the model.
    """

    model: Any
    tokenizer: Any
    notes: tuple[str, ...] = ()
    new_weights: tuple[str, ...] = ()
    adapters: Adapters | None = None
    answers: AnswerTexts | None = None
    """How the tokens of answers become texts; None for a model with a classification head."""

    @property
    def size_text(self) -> str:
        """`76.9 M parameters`."""
        from workflow.models.quantised import num_weights

        return f"{num_weights(self.model) / 1e6:,.1f} M parameters"

    @property
    def has_own_head(self) -> bool:
        """Whether the output head is separate from the embeddings (T5 v1.1, Flan, mT5), not tied to them (T5 1.0)."""
        return self.model.lm_head.weight is not self.model.get_input_embeddings().weight


def load_seq2seq(
    name: str,
    *,
    dropout: float | None = None,
    tokenizer: str | None = None,
    as_stored: bool = False,
    mapped: bool = True,
) -> LoadedModel:
    """Loads model and tokenizer (its own, unless another is named) from a folder, or from the hub by name.

    The weights are fp32 whatever the file holds: an update at a usual learning rate is too small for most bf16
    weights. With `as_stored` they have the files' own type, for a caller that converts them one by one: then they are
    pages of the files, which all processes of a machine share, and no copies. Without `mapped` they never are.
    `.bin` files are read with `weights_only` alone, and no code of a checkpoint is run.
    Raises ModelError with the reason and what to do.
    """
    from workflow.models.output_head import head_notes

    edited = check_folder(name, needs_tokenizer=tokenizer is None)
    config, raw_config = _load_config(name)
    if dropout is not None:
        config.dropout_rate = dropout
    loaded_tokenizer, tokenizer_notes = read_tokenizer(tokenizer or name)
    if len(loaded_tokenizer) > config.vocab_size:
        raise ModelError(
            f"{name}: the tokenizer has {len(loaded_tokenizer)} tokens, the model only {config.vocab_size}; they do not belong together"
        )
    ends, end_notes = settle_ends(name, config, _stored_json(name, GENERATION_FILE), loaded_tokenizer)
    model, notes = _load_weights(name, config, raw_config, as_stored=as_stored, mapped=mapped)
    if raw_config.get("tie_word_embeddings") is False:
        _untie(model)
    # transformers writes `true` for every T5; other readers then tie, or scale the logits by d_model**-0.5.
    model.config.tie_word_embeddings = model.lm_head.weight is model.get_input_embeddings().weight
    model.generation_config = generation_settings(
        config, max_new_tokens=model.generation_config.max_new_tokens, ends=ends
    )
    answers = _answers(None if tokenizer else name, config, ends, loaded_tokenizer)
    told = (*edited, *notes, *head_notes(name, raw_config, model), *tokenizer_notes, *end_notes)
    return LoadedModel(model, loaded_tokenizer, told, answers=answers)


def generation_settings(config: Any, *, max_new_tokens: int | None, ends: Sequence[int]) -> Any:
    """Plain settings: what a checkpoint adds (penalties, samplers) would else leak into every generation unseen."""
    from transformers import GenerationConfig

    return GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else list(ends),
        pad_token_id=config.pad_token_id,
        max_new_tokens=max_new_tokens,
    )


def is_path(name: str) -> bool:
    """Whether a name means a path and not a model on the hub (`t5-small`, `google/flan-t5-xl`)."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or Path(name).exists()


def has_tokenizer(folder: Path) -> bool:
    """Whether a checkpoint folder holds a tokenizer."""
    return any((folder / file).is_file() for file in TOKENIZER_FILES) or _is_bytes(folder)


def tokenizer_stands_in(name: str, other: str | None) -> str | None:
    """`other`, where the folder `name` has no tokenizer of its own."""
    return other if other is not None and is_path(name) and not has_tokenizer(Path(name)) else None


def check_folder(name: str, *, needs_tokenizer: bool = True) -> tuple[str, ...]:
    """Refuses a folder that cannot be a checkpoint, or was copied in part, with one clear sentence.

    Returns notes of what was changed since the checkpoint was written.
    """
    if not is_path(name):
        return ()
    folder = Path(name)
    if not folder.is_dir():
        raise ModelError(
            f"{name}: no such folder; pass the folder of a checkpoint, or a hub name such as google/flan-t5-small"
        )
    refuse_pointers(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name}: no config.json here, so this is no checkpoint folder")
    held = [file for file in WEIGHT_FILES if (folder / file).is_file()]
    if not held:
        raise ModelError(f"{name}: no weights here; expected one of {', '.join(WEIGHT_FILES)}")
    if needs_tokenizer and not has_tokenizer(folder):
        raise ModelError(
            f"{name}: no tokenizer here; copy the checkpoint's tokenizer.json, vocab.txt or spiece.model into the folder"
        )
    beside = [f"the weights are those of {held[0]}; {', '.join(held[1:])} beside it is not read"] if held[1:] else []
    return (*check_written(folder), *beside)


def refuse_pointers(path: Path) -> None:
    """Raises ModelError where Git LFS left pointers in the place of a checkpoint's files."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    if pointers := [file.name for file in files if file.is_file() and is_lfs_pointer(file)]:
        raise ModelError(f"{path}: {', '.join(pointers) + ' ' if path.is_dir() else ''}{LFS_ADVICE}")


def _is_bytes(folder: Path) -> bool:
    """Whether the tokenizer is ByT5's, which needs no vocabulary file."""
    try:
        return "ByT5Tokenizer" in (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    except OSError:
        return False


def model_family(name: str) -> str | None:
    """The `model_type` of a checkpoint. Raises ModelError."""
    from transformers import PreTrainedConfig

    with Explained(name, "configuration"):
        family: str | None = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
        return family


def _load_config(name: str) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoConfig, PreTrainedConfig

    with Explained(name, "configuration"):
        raw, _ = PreTrainedConfig.get_config_dict(name)
        family = raw.get("model_type")
        if family not in FAMILIES:
            raise ModelError(
                f"{name}: a {family or 'nameless'} model; this program fine-tunes {', '.join(FAMILIES)} (Flan-T5 and ByT5 are t5)"
            )
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    check_unquantised(name, config)
    return config, raw


def stored_file(name: str, file: str) -> Path | None:
    """A file of a checkpoint's folder, or of a hub model in the local cache; None where it has none."""
    from transformers.utils import cached_file

    if is_path(name):
        path = Path(name) / file
        return path if path.is_file() else None
    lenient = ("gated_repo", "missing_entries", "connection_errors")
    found = cached_file(name, file, **{f"_raise_exceptions_for_{what}": False for what in lenient})
    return Path(found) if found is not None else None


def _stored_json(name: str, file: str) -> dict[str, Any]:
    """What a JSON file of a checkpoint says; nothing where there is none."""
    path = stored_file(name, file)
    with Explained(name, file):
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    return found if isinstance(found, dict) else {}


def load_tokenizer(name: str, *, for_scores: bool = False) -> Any:
    """A checkpoint's tokenizer, as its files say. Raises ModelError.

    A model with a classification head (`for_scores`) needs no end-of-sequence token, but a fast tokenizer that can cut
    texts before it adds special tokens; where it has no padding token (GPT-2), its end-of-text token serves.
    """
    return read_tokenizer(name, for_scores=for_scores)[0]


def read_tokenizer(name: str, *, for_scores: bool = False) -> tuple[Any, tuple[str, ...]]:
    """`load_tokenizer`, with notes of what transformers' class for it would do otherwise. Raises ModelError."""
    tokenizer, notes = tokenizer_of_files(name)
    if len(tokenizer) < LEAST_TOKENS:  # transformers makes an empty one where the vocabulary is missing
        raise ModelError(f"{name}: the tokenizer has only {len(tokenizer)} tokens; is its vocabulary file missing?")
    if for_scores:
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise ModelError(
                f"{name}: its tokenizer has no fast version (tokenizer.json), which a classification head needs"
            )
        if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        # A tokenizer.json may hold a truncation and a padding, which would act before texts are cut here, and uncounted.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    if tokenizer.pad_token_id is None or (tokenizer.eos_token_id is None and not for_scores):
        raise ModelError(f"{name}: the tokenizer has no end-of-sequence or padding token")
    return tokenizer, notes


def tokenizer_of_files(name: str) -> tuple[Any, tuple[str, ...]]:
    """What the files of a folder or hub model say is its tokenizer, whatever that lacks, with notes. Raises ModelError."""
    from transformers import AutoTokenizer

    with Explained(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        has_file = stored_file(name, "tokenizer.json") is not None
        config = _stored_json(name, "tokenizer_config.json")
        tokenizer, notes = as_its_files_say(name, tokenizer, config, has_file=has_file)
    check_ids(name, tokenizer, _stored_json(name, TOKEN_IDS_NAME))
    return tokenizer, notes


def load_answers(name: str) -> tuple[AnswerTexts, tuple[str, ...]]:
    """How a checkpoint writes answers, without its weights, and notes; of what is no T5, by its tokenizer alone.

    Raises ModelError.
    """
    tokenizer, notes = read_tokenizer(name)
    try:
        config, _ = _load_config(name)
    except ModelError:
        return AnswerTexts(tokenizer, (tokenizer.eos_token_id,)), notes
    ends, more = settle_ends(name, config, _stored_json(name, GENERATION_FILE), tokenizer)
    return _answers(name, config, ends, tokenizer), (*notes, *more)


def _answers(name: str | None, config: Any, ends: Sequence[int], tokenizer: Any) -> AnswerTexts:
    """As a checkpoint's record says; `name` is None where the tokenizer is another's."""
    record = stored_file(name, ANSWER_TOKENS_NAME) if name is not None else None
    return read_answers(record, tokenizer, ends=ends, start=config.decoder_start_token_id)


def _load_weights(
    name: str, config: Any, raw_config: dict[str, Any], *, as_stored: bool, mapped: bool
) -> tuple[Any, list[str]]:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    from workflow.models.output_head import check_head, check_tables
    from workflow.models.stored import check_numbers, stored_dtype, stored_tensors

    with Explained(name, "weights"):
        stored = stored_tensors(name)
        check_head(name, raw_config, stored)
        check_tables(name, config, stored)
        model, report = AutoModelForSeq2SeqLM.from_pretrained(
            name,
            config=config,
            dtype=stored_dtype(stored) if as_stored else torch.float32,
            ignore_mismatched_sizes=True,  # reported below, with the names
            output_loading_info=True,
            trust_remote_code=False,
            disable_mmap=not mapped,
        )
    check_numbers(name, stored, (weight for weight, _ in model.named_parameters(remove_duplicate=False)))
    return model, check_report(name, model, report)


def _untie(model: Any) -> None:
    """Gives the model a head of its own where its configuration says so and loading had tied it."""
    import torch

    if model.lm_head.weight is model.get_input_embeddings().weight:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())


def _unreadable(folder: Path) -> Path | None:
    """A file of a checkpoint that is there and closed to this user; libraries then say that it is not there."""
    try:
        files = sorted(folder.iterdir())
    except OSError:
        return None
    return next((file for file in files if file.is_file() and not os.access(file, os.R_OK)), None)


class Explained:
    """Turns whatever transformers raises while reading `what` of a checkpoint into one ModelError."""

    def __init__(self, name: str, what: str) -> None:
        self.name = name
        self.what = what

    def __enter__(self) -> None:
        if is_path(self.name) and (path := Path(self.name)).exists():
            refuse_pointers(path)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, ModelError) or not isinstance(error, Exception):
            return
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            return
        reason = " ".join(str(error).split())[:400]
        if hidden := _unreadable(Path(self.name)):
            reason = f"{hidden} may not be read by this user: make it readable (chmod a+r)"
        advice = (
            "" if is_path(self.name) else "; is there a network, and is the name right? A folder can be given instead"
        )
        raise ModelError(f"{self.name}: cannot read its {self.what}: {reason}{advice}") from error


def quiet_transformers() -> None:
    """Turns off the bars and remarks of transformers; what matters is said in the run's header."""
    import torch

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"  # transformers imports DeepSpeed, which else warns that it found no other
    from transformers.utils import logging

    warnings.filterwarnings(
        "ignore", message="This sequence already has"
    )  # ByT5's, of an end that a text was written with
    getLogger("bitsandbytes").setLevel(ERROR)  # peft imports it; it misses kernels that nobody needs
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def head_names(model: Any) -> list[str]:
    """Names of the output head's parameters, tied ones included: T5's `lm_head`; all beside the body elsewhere."""
    tops = {name: name.split(".")[0] for name, _ in model.named_parameters(remove_duplicate=False)}
    if hasattr(model, "lm_head"):
        return [name for name, top in tops.items() if top == "lm_head"]
    return [name for name, top in tops.items() if top != model.base_model_prefix]


def guarded_weights(model: Any) -> dict[str, torch.nn.Parameter]:
    """The embeddings and an output head's weight, which nothing but training may change; one parameter where tied."""
    every = dict(model.named_parameters(remove_duplicate=False))
    return {"embeddings": model.get_input_embeddings().weight, "head": every[head_names(model)[0]]}
