"""What is odd about a data set, told before time is spent training on it.

Knows nothing of training. Errors (a malformed row) are raised by `examples`; here are findings that may be meant:
duplicates, leaks from train into eval, truncation, text that the tokenizer cannot give back.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from workflow.data.class_names import target_of
from workflow.data.encoders import SEQ2SEQ_FIELDS, TOKEN_TYPES, joined
from workflow.data.examples import SPLITS, Examples
from workflow.data.features import Features, FloatArray, Truncation, batched
from workflow.data.sources import Row
from workflow.data.texts import Texts
from workflow.label_names import listed

ROUND_TRIP_ROWS = 20_000
NUM_SHOWN = 5
MAX_LABELS = 20
PERCENTILES = (0, 50, 90, 99, 100)

Hashes = npt.NDArray[np.uint64]


class Answers(Protocol):
    """How the tokens of a completion are written, and what of a completion can be written."""

    def __call__(self, tokens: Sequence[int]) -> str:
        """The text of these tokens."""

    def reference(self, completion: str) -> str:
        """The completion without ends behind it."""


@dataclass(frozen=True)
class Reading:
    """What the checks look at in a row: its question and its answer, and the nouns for them."""

    question: Callable[[Row], str]
    answer: Callable[[Row], str]
    nouns: tuple[str, str]
    written: tuple[str, ...] = ()
    """Keys whose texts the model must be able to write."""


PROMPTS_AND_COMPLETIONS = Reading(
    itemgetter("prompt"), itemgetter("completion"), ("prompt", "completion"), written=SEQ2SEQ_FIELDS
)


def inputs_and_targets(texts: Texts) -> Reading:
    """How rows to be scored are looked at."""
    return Reading(
        lambda row: joined(*texts.of(row)), lambda row: json.dumps(target_of(row), default=str), ("input", "target")
    )


@dataclass
class SplitCheck:
    """Findings of one split. Texts shown are at most NUM_SHOWN, each with its row number."""

    rows: int
    empty_prompts: int = 0
    empty_completions: int = 0
    duplicate_prompts: int = 0
    contradictions: int = 0
    completions: dict[str, int] | None = None
    lengths: dict[str, dict[str, int]] = field(default_factory=dict)
    truncated: dict[str, dict[str, int]] = field(default_factory=dict)
    not_round_trip: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class DataCheck:
    """Findings of a data set."""

    label: str
    fingerprint: str
    splits: dict[str, SplitCheck]
    leaked_prompts: int
    leaked_rows: int
    nouns: tuple[str, str] = ("prompt", "completion")
    notes: tuple[str, ...] = ()
    """What was decided in reading the files."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows without a label, by split."""
    classes: list[str] = field(default_factory=list)
    """What is odd about the classes, in words."""
    findings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return asdict(self)

    def warnings(self) -> list[str]:
        """One line a finding, the worst first."""
        found: list[str] = []
        for name, split in self.splits.items():
            for key, what in split.not_round_trip.items():
                share = f"{what['rows']} of {what['checked']} checked rows"
                missing = f"; unknown to the vocabulary: {' '.join(what['unknown'])}" if what["unknown"] else ""
                loud = "THE MODEL CANNOT LEARN TO WRITE THIS: " if key == "completion" else ""
                found.append(
                    f"{loud}{name}: {key}: the tokenizer loses or changes text in {share}{missing}; e.g. {what['examples'][0]}"
                )
        found.sort(key=lambda text: not text.startswith("THE"))
        found += [f"{name}: {count} rows without a label (-1) left out" for name, count in self.left_out.items()]
        found += self.classes
        found += self.findings
        question, answer = self.nouns
        found += self.notes
        if not any(split.rows for split in self.splits.values()):
            found.append("there are no rows")
        if self.leaked_prompts:
            found.append(
                f"{self.leaked_prompts} eval {question}s also stand in train ({self.leaked_rows} with the same {answer}): scores will flatter"
            )
        for name, split in self.splits.items():
            found += [
                f"{name}: {cut['rows']} rows lose {cut['tokens']} tokens of their {key} to the length limit"
                for key, cut in split.truncated.items()
                if cut["rows"]
            ]
            counts = {
                f"duplicate {question}s": split.duplicate_prompts,
                f"{question}s with several different {answer}s": split.contradictions,
                f"empty {question}s": split.empty_prompts,
                f"empty {answer}s": split.empty_completions,
            }
            found += [f"{name}: {count} {what}" for what, count in counts.items() if count]
        return found


def check(
    examples: Examples,
    reading: Reading = PROMPTS_AND_COMPLETIONS,
    *,
    features: dict[str, Features] | None = None,
    tokenizer: Any = None,
    answers: Answers | None = None,
    findings: Sequence[str] = (),
) -> DataCheck:
    """Checks each split; lengths and round trips where features and tokenizer are given.

    `answers` writes completions as evaluation does; `findings` are told with the others.
    """
    splits: dict[str, SplitCheck] = {}
    hashes: dict[str, tuple[Hashes, Hashes]] = {}
    for name in SPLITS:
        rows = examples.split(name)
        if not len(rows) and name not in ("train", "eval"):
            continue
        splits[name], hashes[name] = _check_rows(rows, reading)
        if features and name in features:
            _add_lengths(splits[name], features[name])
        if tokenizer is not None:
            _add_round_trips(splits[name], rows, reading.written, tokenizer, answers)
    (train_prompts, train_rows), (eval_prompts, eval_rows) = hashes["train"], hashes["eval"]
    return DataCheck(
        label=examples.label,
        fingerprint=examples.fingerprint,
        splits=splits,
        leaked_prompts=int(np.isin(eval_prompts, train_prompts).sum()),
        leaked_rows=int(np.isin(eval_rows, train_rows).sum()),
        nouns=reading.nouns,
        notes=examples.notes,
        left_out=dict(examples.left_out),
        findings=tuple(findings),
    )


def odd_classes(labels: Sequence[str], train: FloatArray, held_out: FloatArray) -> list[str]:
    """Which labels no training row has, by targets [rows, labels] of classification."""
    if not len(train) or train.shape[1] != len(labels):
        return []
    learnt = np.asarray(train, dtype=np.float64).sum(axis=0)
    absent = [place for place in range(len(labels)) if learnt[place] == 0]
    if not absent:
        return []
    rows = int(np.asarray(held_out)[:, absent].any(axis=1).sum()) if len(held_out) else 0
    told = f"no training row is of {'class' if len(absent) == 1 else 'the classes'} {listed(labels[place] for place in absent)}"
    return [
        f"{told}, which {rows} eval rows have: nothing can be learnt of {'it' if len(absent) == 1 else 'them'}"
        if rows
        else told
    ]


def _hash(*texts: str) -> int:
    return int.from_bytes(
        hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


def _check_rows(rows: Iterable[Row], reading: Reading) -> tuple[SplitCheck, tuple[Hashes, Hashes]]:
    """One pass over the rows; 16 bytes a row are kept."""
    found = SplitCheck(rows=0)
    labels: Counter[str] = Counter()
    prompts: list[Hashes] = []
    pairs: list[Hashes] = []
    for batch in batched(iter(rows), 4096):
        found.rows += len(batch)
        asked = [reading.question(row) for row in batch]
        answered = [reading.answer(row) for row in batch]
        found.empty_prompts += sum(not text.strip() for text in asked)
        found.empty_completions += sum(not text.strip() for text in answered)
        prompts.append(np.array([_hash(text) for text in asked], dtype=np.uint64))
        pairs.append(np.array([_hash(*texts) for texts in zip(asked, answered, strict=True)], dtype=np.uint64))
        if len(labels) <= MAX_LABELS:
            labels.update(answered)
    all_prompts, all_pairs = (np.concatenate([np.zeros(0, np.uint64), *parts]) for parts in (prompts, pairs))
    found.duplicate_prompts = found.rows - len(np.unique(all_prompts))
    found.contradictions = len(np.unique(all_pairs)) - len(np.unique(all_prompts))
    found.completions = dict(labels.most_common()) if 0 < len(labels) <= MAX_LABELS else None
    return found, (all_prompts, all_pairs)


def truncations(features: Features) -> dict[str, Truncation]:
    """How much the limits cut off each field of texts."""
    return {key: features.truncation(key) for key in features.fields if key != TOKEN_TYPES}


def _add_lengths(found: SplitCheck, features: Features) -> None:
    for key, cut in truncations(features).items():
        full = np.asarray(features.full_lengths[key])
        if len(full):
            found.lengths[key] = {f"p{percent}": int(np.percentile(full, percent)) for percent in PERCENTILES}
        found.truncated[key] = asdict(cut)


def _add_round_trips(
    found: SplitCheck, rows: Sequence[Row], keys: Sequence[str], tokenizer: Any, answers: Answers | None
) -> None:
    """Encodes and decodes up to ROUND_TRIP_ROWS rows, evenly spread over the split."""
    stride = max(1, -(-len(rows) // ROUND_TRIP_ROWS))
    numbers = range(0, len(rows), stride)
    for key in keys:
        lost: list[tuple[int, str, str]] = []
        unknown: Counter[str] = Counter()
        for start in range(0, len(numbers), 1000):
            part = numbers[start : start + 1000]
            texts = [rows[number][key] for number in part]
            as_answers = answers if key == "completion" else None
            if as_answers is not None:
                texts = [as_answers.reference(text) for text in texts]
            for number, text, back in zip(part, texts, round_trip(tokenizer, texts, as_answers), strict=True):
                if text != back:
                    lost.append((number, text, back))
                    unknown.update(lost_characters(tokenizer, text))
        if lost:
            found.not_round_trip[key] = {
                "rows": len(lost),
                "checked": len(numbers),
                "unknown": [repr(character) for character, _ in unknown.most_common(12)],
                "examples": [f"[{number}] {_around_change(text, back)}" for number, text, back in lost[:NUM_SHOWN]],
            }


def round_trip(tokenizer: Any, texts: list[str], answers: Answers | None = None) -> list[str]:
    """Each text encoded and decoded again, as answers are where that is given."""
    if not texts:
        return []
    ids = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    if answers is not None:
        return [answers(row) for row in ids]
    decoded: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return decoded


def lost_characters(tokenizer: Any, text: str) -> set[str]:
    """The characters of a text that the vocabulary has no piece for (newline and tab count: T5 makes them spaces)."""
    ids = tokenizer([text], add_special_tokens=False, truncation=False, verbose=False)["input_ids"][0]
    # Decoded unknowns read "<unk>", whose characters are none of the text's.
    known = [token for token in ids if token != tokenizer.unk_token_id]
    kept = set(tokenizer.decode(known, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return {character for character in set(text) if character not in kept}


def _around_change(text: str, back: str) -> str:
    """The two texts near their first difference."""
    same = next(
        (at for at, (left, right) in enumerate(zip(text, back, strict=False)) if left != right),
        min(len(text), len(back)),
    )
    start = max(0, same - 15)
    return f"{text[start : same + 25]!r} -> {back[start : same + 25]!r}"
