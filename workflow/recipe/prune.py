"""`workflow prune`: a model whose linear maps have lost the weights nearest to zero.

Knows nothing of training; `--static_sparsity` keeps there what is written here.
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import transformers

from workflow import paths as names
from workflow.console import make_console
from workflow.errors import ConfigError, ModelError
from workflow.files import whole_folder
from workflow.models.load import (
    FAMILIES,
    WEIGHT_FILES,
    Explained,
    check_folder,
    load_seq2seq,
    model_family,
    quiet_transformers,
    tokenizer_of_files,
)
from workflow.models.load_report import check_report, check_unquantised
from workflow.models.manifest import MANIFEST_FILE
from workflow.models.nanogpt import is_nanogpt
from workflow.models.pruning import prune as set_zeros
from workflow.models.pruning import share_of_zeros
from workflow.models.save import write_model
from workflow.models.stored import check_numbers, stored_tensors
from workflow.recipe.place import model_to_use


def prune(given: Namespace) -> int:
    """Reads, prunes, writes a folder that loads as the model did. Raises ConfigError, ModelError."""
    if not 0 < given.sparsity < 1:
        raise ConfigError(f"--sparsity {given.sparsity:g}: give a share between 0 and 1, e.g. 0.5")
    if given.out.exists():
        raise ConfigError(f"--out {given.out}: exists; name a folder to make")
    quiet_transformers()
    source = model_to_use(given.model, names.find_mount(given.mount))
    if is_nanogpt(Path(source)):
        raise ModelError(f"{source}: a nanoGPT checkpoint; fine-tune it first, which writes a GPT-2 folder")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(given.out) as folder:
        share = _write(source, folder, given.sparsity)
    make_console().print(
        f"{given.out}: {share:.1%} of the weights of its linear maps are zero; fine-tune it with --static_sparsity",
        soft_wrap=True,
    )
    return 0


def _write(source: str, folder: Path, sparsity: float) -> float:
    if model_family(source) in FAMILIES:
        loaded = load_seq2seq(source)
        set_zeros(loaded.model, sparsity)
        weights = dict(loaded.model.named_parameters())
        write_model(folder, loaded.model, loaded.tokenizer, weights, answers=loaded.answers)
        if (scoring := Path(source) / names.SCORING_NAME).is_file():
            shutil.copy(scoring, folder)
        return share_of_zeros(loaded.model)
    check_folder(source)
    model = _load(source)
    set_zeros(model, sparsity)
    model.save_pretrained(folder)
    if not Path(source).is_dir():
        tokenizer_of_files(source)[0].save_pretrained(folder)
    for file in Path(source).iterdir() if Path(source).is_dir() else ():  # tokenizer, how it scores
        is_weights = file.name in (*WEIGHT_FILES, MANIFEST_FILE) or file.name.startswith(("model-", "pytorch_model-"))
        if file.is_file() and not is_weights and not (folder / file.name).exists():
            shutil.copy(file, folder)
    return share_of_zeros(model)


def _load(source: str) -> Any:
    """By the class that wrote it. Raises ModelError."""
    with Explained(source, "weights"):
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        kind = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
        stored = stored_tensors(source)
        model, report = kind.from_pretrained(
            source, ignore_mismatched_sizes=True, output_loading_info=True, trust_remote_code=False
        )
    check_unquantised(source, config)
    check_numbers(source, stored, (weight for weight, _ in model.named_parameters()))
    check_report(source, model, report)
    return model
