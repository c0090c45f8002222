"""`workflow data check`: the findings of `data.checks`, for people or as JSON.

Knows nothing of models but their tokenizers.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from workflow import paths as names
from workflow.config.clf_settings import checked_score
from workflow.console import make_console, styled
from workflow.data.checks import DataCheck, check, inputs_and_targets, odd_classes
from workflow.data.class_names import class_names
from workflow.data.encoders import LengthLimits, ScoreEncoder, Seq2SeqEncoder
from workflow.data.examples import SEQ2SEQ, SPLITS, Examples, ScoredRows, load_examples
from workflow.data.features import Features, RowEncoder, load_features
from workflow.data.scoring import Scoring
from workflow.data.sources import Source, find_source
from workflow.data.texts import TEXT_KEYS, read_template
from workflow.models.answers import AnswerTexts
from workflow.models.input_lengths import most_tokens_of
from workflow.models.load import FAMILIES, load_answers, load_tokenizer, model_family, quiet_transformers
from workflow.recipe.answers import answers_of
from workflow.recipe.place import init_model_folder, inside_run
from workflow.recipe.settling import settled


def check_data(given: Namespace) -> int:
    """Prints the findings; malformed data raises DataError (exit 2)."""
    mount, cache = names.find_mount(given.mount), names.cache_dir()
    source = find_source(given.data_name, mount, given.quoting)
    folder = _model_folder(given, mount)
    if _is_for_scores(given, source):
        found = _check_scores(given, source, folder, cache)
    else:
        answers, notes = _answers(folder)
        tokenizer = answers.tokenizer if answers is not None else None
        examples = load_examples(source, SEQ2SEQ, cache)
        limits = LengthLimits(given.max_source_length, given.max_target_length)
        features = _features(examples, Seq2SeqEncoder(tokenizer, limits) if tokenizer else None, cache)
        more: dict[str, Any] = {}
        if answers is not None and features is not None:
            more["answers"], findings = answers_of(answers, examples, features)
            more["findings"] = [*notes, *findings]
        found = check(examples, features=features, tokenizer=tokenizer, **more)
    if given.json:
        print(json.dumps({**found.as_json(), "warnings": found.warnings()}, ensure_ascii=False))
        return 0
    _print(found, make_console(), with_tokens=folder is not None)
    return 0


def _is_for_scores(given: Namespace, source: Source) -> bool:
    """Whether the data is for clf.py: as asked, else by its first row."""
    if given.task is not None:
        return bool(given.task == "clf")
    if given.template is not None or given.problem is not None or given.labels is not None:
        return True
    first = next((row for _, _, row in source.rows()), {})
    return "prompt" not in first and any(key in first for key in TEXT_KEYS)


def _check_scores(given: Namespace, source: Source, folder: str | None, cache: Path) -> DataCheck:
    score = checked_score(
        problem=given.problem, labels=given.labels, target_range=given.target_range, max_length=given.max_length
    )
    low, high = score.target_range or (0.0, 1.0)
    template = read_template(given.template) if given.template is not None else None
    classes = class_names(row for _, _, row in source.rows())
    scoring = settled(score, Scoring(score.kind, score.labels, low, high, template), folder, classes, trained=False)
    targets = scoring.targets(from_text=source.is_untyped, names=classes)
    examples = load_examples(source, ScoredRows(scoring.texts, targets), cache)
    encoder = None
    if folder is not None:
        is_t5 = model_family(folder) in FAMILIES
        tokenizer = _tokenizer(folder, for_scores=not is_t5)
        limit = None if is_t5 else most_tokens_of(folder, tokenizer)
        encoder = ScoreEncoder(
            tokenizer,
            scoring.texts,
            min(given.max_length, limit) if limit is not None else given.max_length,  # as training cuts
            scoring.keep_source,
            ends_in_eos=is_t5,
        )
    found = check(examples, inputs_and_targets(scoring.texts), features=_features(examples, encoder, cache))
    if scoring.problem != "regression":
        train, held_out = ([targets.of(row) for row in rows] for rows in (examples.train, examples.eval))
        found.classes = odd_classes(scoring.labels, *(np.array(part, dtype=np.float32) for part in (train, held_out)))
    return found


def _features(examples: Examples, encoder: RowEncoder | None, cache: Path) -> dict[str, Features] | None:
    return {split: load_features(examples, split, encoder, cache) for split in SPLITS} if encoder is not None else None


def _model_folder(given: Namespace, mount: Path) -> str | None:
    if given.model_init_path is not None:
        return inside_run(given.model_init_path)
    return init_model_folder(given.model_init_name, mount) if given.model_init_name is not None else None


def _answers(folder: str | None) -> tuple[AnswerTexts | None, tuple[str, ...]]:
    """How the model would write completions, and notes about its tokens."""
    if folder is None:
        return None, ()
    quiet_transformers()
    return load_answers(folder)


def _tokenizer(name: str | None, *, for_scores: bool) -> Any:
    if name is None:
        return None
    quiet_transformers()
    return load_tokenizer(name, for_scores=for_scores)


def _print(found: DataCheck, console: Console, *, with_tokens: bool) -> None:
    console.print(f"{found.label}  (content hash {found.fingerprint})")
    table = Table("", *found.splits)
    table.add_row("rows", *(f"{split.rows:,}" for split in found.splits.values()))
    table.add_row(
        f"distinct {found.nouns[0]}s", *(f"{split.rows - split.duplicate_prompts:,}" for split in found.splits.values())
    )
    keys = dict.fromkeys(key for split in found.splits.values() for key in split.lengths) if with_tokens else {}
    for key in keys:
        spans = [split.lengths.get(key) for split in found.splits.values()]
        table.add_row(
            f"{key} tokens (min, median, p90, p99, max)",
            *(", ".join(map(str, span.values())) if span else "-" for span in spans),
        )
    console.print(table)
    for name, split in found.splits.items():
        if split.completions is not None:
            shares = ", ".join(f"{text!r} {count / split.rows:.1%}" for text, count in split.completions.items())
            console.print(f"{name}: {found.nouns[1]}s: {shares}")
    for warning in found.warnings():
        console.print(styled("warning", "yellow", f"  {warning}"))
    if not with_tokens:
        console.print(
            "no tokenizer given (--model_init_path PATH): lengths, truncation and round trips were not checked"
        )
    if not found.warnings():
        console.print("nothing odd found")
