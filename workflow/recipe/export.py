"""`workflow export`: a run's model for other programs, kept only if it computes the same probabilities there.

Knows nothing of run folders but where their models are. Texts would hide a head that is scaled wrongly, so what is
compared is probabilities.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence

from workflow import paths as names
from workflow.console import make_console
from workflow.data.scoring import Scoring, read_scoring
from workflow.errors import ConfigError, ModelError, install_command
from workflow.files import read_json, whole_folder
from workflow.models.classifier import LoadedClassifier, load_classifier
from workflow.models.load import FAMILIES, LoadedModel, load_seq2seq, model_family, quiet_transformers
from workflow.models.older import write_for_older, write_settings_for_older
from workflow.models.onnx_graphs import Graphs, missing_packages, write_classifier, write_seq2seq
from workflow.recipe.place import model_to_use

PROMPTS = (
    "Normalise the date: March 3rd, 2021",
    "Classify whether the article is sports related. Output yes or no.\n\narticle: Rain stopped play.\noutput:",
    "no",
)
NUM_STEPS = 4
"""Decoder positions that are compared of each prompt."""
TOLERANCE = 1e-4
"""Of probabilities; rounding of other kernels stays below, a wrong scale does not."""
EXTRAS = (names.SCORING_NAME, names.CALIBRATION_NAME)

NO_ONNX = f"--to onnx: not installed: {{}}; {install_command('onnx')}"
NO_CTRANSLATE2 = "--to ctranslate2: the package ctranslate2 is not installed; pip install ctranslate2"


def export(given: Namespace) -> int:
    """Writes, compares, and gives the folder its name. Raises ConfigError, ModelError."""
    if given.to == "onnx" and (missing := missing_packages()):
        raise ConfigError(NO_ONNX.format(", ".join(missing)))
    if given.to == "ctranslate2" and importlib.util.find_spec("ctranslate2") is None:
        raise ConfigError(NO_CTRANSLATE2)
    quiet_transformers()
    source = model_to_use(given.model, names.find_mount(given.mount))
    out = given.out or Path("export") / f"{Path(given.model).name}-{given.to}"
    if out.exists():
        raise ConfigError(f"--out {out}: exists; name a folder to make")
    out.parent.mkdir(parents=True, exist_ok=True)
    loaded = _load(source)
    prompts = given.prompt or PROMPTS
    if empty := [prompt for prompt in prompts if not _has_words(loaded, prompt)]:
        raise ConfigError(f"--prompt {empty[0]!r}: has no tokens to compare with; write some words, or leave it out")
    with whole_folder(out) as folder:  # without its name, and deleted, where anything below raises
        difference = WRITERS[given.to](folder, source, loaded, prompts)
        if not difference <= TOLERANCE:
            raise ModelError(
                f"{given.model}: {given.to} computes other probabilities (by up to {difference:.2g}) from what was written; it was deleted"
            )
    make_console().print(f"{out}: probabilities differ by at most {difference:.1e}", soft_wrap=True)
    return 0


def _load(source: str) -> LoadedModel:
    """A T5, to score or not, with its whole head; else a model with a trained classification head."""
    if model_family(source) in FAMILIES:
        return load_seq2seq(source)
    own = read_scoring(Path(source) / names.SCORING_NAME) or Scoring()
    loaded = load_classifier(source, problem=own.problem, labels=own.labels)
    if loaded.has_new_head:
        raise ModelError(f"{source}: has no trained head, so there is nothing to export")
    return loaded


def _to_hf(folder: Path, source: str, loaded: LoadedModel, prompts: Sequence[str]) -> float:
    write_for_older(folder, loaded.model, loaded.tokenizer)
    _copy_extras(folder, source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    is_t5 = hasattr(loaded.model, "lm_head")
    kind = transformers.AutoModelForSeq2SeqLM if is_t5 else transformers.AutoModelForSequenceClassification
    again = kind.from_pretrained(folder, dtype=torch.float32)
    differences = []
    for prompt in prompts:
        if tokenizer(prompt).input_ids != loaded.tokenizer(prompt).input_ids:
            raise ModelError(
                f"{folder.name}: the written tokenizer reads {prompt[:40]!r} otherwise; nothing was exported"
            )
        ids = _ids(loaded, prompt)
        expected = probabilities(loaded.model, ids)
        differences.append(float((probabilities(again, ids) - expected).abs().max()))
    return max(differences)


def _has_words(loaded: LoadedModel | LoadedClassifier, prompt: str) -> bool:
    """Whether it has more than an end, or other tokens that every text gets."""
    return bool(loaded.tokenizer(prompt, add_special_tokens=False).input_ids)


def _ids(loaded: LoadedModel, prompt: str) -> list[int]:
    """A prompt's, cut to the positions that a model with a classification head has."""
    limit = loaded.max_positions if isinstance(loaded, LoadedClassifier) else None
    return list(loaded.tokenizer(prompt).input_ids)[:limit]


def _copy_extras(folder: Path, source: str) -> None:
    for extra in EXTRAS:
        if (Path(source) / extra).is_file():
            shutil.copy(Path(source) / extra, folder)


@torch.no_grad()
def probabilities(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """fp32 [positions, vocabulary] of a T5's first positions, over made-up targets; [1, labels] of a classifier."""
    given: dict[str, Any] = {"input_ids": torch.tensor([list(ids)]), "attention_mask": torch.ones(1, len(ids)).long()}
    if hasattr(model, "lm_head"):
        given["decoder_input_ids"] = torch.tensor([_forced(model.config, ids)[:-1]])
    logits: torch.Tensor = model.eval()(**given).logits
    return logits[0].float().softmax(dim=-1) if logits.dim() == 3 else logits.float().softmax(dim=-1)


def _forced(config: Any, ids: Sequence[int]) -> list[int]:
    """A decoder's start token and the prompt's first tokens: any targets serve to compare with."""
    targets = [token for token in ids if token not in (config.eos_token_id, config.pad_token_id)]
    return [config.decoder_start_token_id, *targets[:NUM_STEPS]]


def _to_onnx(folder: Path, source: str, loaded: LoadedModel, prompts: Sequence[str]) -> float:
    """Compared by onnxruntime, each prompt alone and all in one padded batch: sizes and masks must not be the traced ones."""
    write_settings_for_older(folder, loaded.model, loaded.tokenizer)
    _copy_extras(folder, source)
    if isinstance(loaded, LoadedClassifier):
        write_classifier(folder, loaded.model, takes_types=loaded.takes_types)
    else:
        write_seq2seq(folder, loaded.model)
    graphs = Graphs(folder)
    rows = [_ids(loaded, prompt) for prompt in prompts]
    return max(_graph_difference(graphs, loaded, batch) for batch in [*([row] for row in rows), rows])


def _graph_difference(graphs: Graphs, loaded: LoadedModel, rows: Sequence[Sequence[int]]) -> float:
    """The largest over a padded batch, of the model's own probabilities of each row alone."""
    texts, targets = [torch.tensor(list(row)) for row in rows], None
    if not isinstance(loaded, LoadedClassifier):
        starts = [torch.tensor(_forced(loaded.model.config, row)[:-1]) for row in rows]
        targets = pad_sequence(starts, batch_first=True)
    ids = pad_sequence(texts, batch_first=True, padding_value=loaded.tokenizer.pad_token_id)
    mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    found = graphs.logits(ids, mask, targets).softmax(dim=-1)
    differences = []
    for row, of_row in zip(rows, found, strict=True):
        expected = probabilities(loaded.model, row)
        mine = of_row[None] if targets is None else of_row[: len(expected)]
        differences.append(float((mine - expected).abs().max()))
    return max(differences)


def _to_ctranslate2(folder: Path, _: str, loaded: LoadedModel, prompts: Sequence[str]) -> float:
    """By way of a folder by the older rules, which its converter reads."""
    import ctranslate2

    if not hasattr(loaded.model, "lm_head"):
        raise ConfigError(
            "--to ctranslate2: of models with a classification head, CTranslate2 has no form; --to hf has"
        )
    with tempfile.TemporaryDirectory() as place:
        write_for_older(Path(place), loaded.model, loaded.tokenizer)
        try:
            _converter(place).convert(str(folder), force=True)
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise ModelError(
                f"CTranslate2's converter does not take this {loaded.model.config.model_type}: {error}"
            ) from error
        shutil.copy(Path(place) / "tokenizer.json", folder)
    translator = ctranslate2.Translator(str(folder), device="cpu", compute_type="float32")
    return max(_difference(translator, loaded, prompt) for prompt in prompts)


def _converter(place: str) -> Any:
    """CTranslate2's, for which the configuration says again what its file says.

    It takes `tie_word_embeddings` for whether logits are scaled; transformers 5 sets that key for every T5 it loads.
    """
    import ctranslate2

    class Converter(ctranslate2.converters.TransformersConverter):  # type: ignore[misc]
        def load_model(self, model_class: Any, model_name_or_path: str, **more: Any) -> Any:
            model = super().load_model(model_class, model_name_or_path, **more)
            said = read_json(Path(place) / "config.json")
            model.config.tie_word_embeddings = said["tie_word_embeddings"]
            return model

    return Converter(place)


def _difference(translator: Any, loaded: LoadedModel, prompt: str) -> float:
    """The largest, of the probabilities of forced targets and the end of the sequence."""
    tokenizer, config = loaded.tokenizer, loaded.model.config
    ids = tokenizer(prompt).input_ids
    forced = _forced(config, ids)
    found = translator.score_batch(
        [tokenizer.convert_ids_to_tokens(ids)], [tokenizer.convert_ids_to_tokens(forced[1:])]
    )[0].log_probs
    given = {"input_ids": torch.tensor([ids]), "decoder_input_ids": torch.tensor([forced])}
    with torch.no_grad():
        expected = loaded.model.eval()(**given).logits[0].float().log_softmax(dim=-1)
    targets = torch.tensor([*forced[1:], config.eos_token_id])
    mine = expected.gather(1, targets[:, None])[:, 0].exp()
    return float((torch.tensor(found).exp() - mine).abs().max())


WRITERS = {"hf": _to_hf, "ctranslate2": _to_ctranslate2, "onnx": _to_onnx}
"""Each writes into a folder and gives the largest difference of probabilities."""
