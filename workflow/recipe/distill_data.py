"""The data set that `workflow distill` makes: whose folder it is, rows with a teacher's scores, eval rows with true targets.

    mount/data/NEW/distill.json          what it is made of: a second start must mean the same
    mount/data/NEW/teacher/scores.jsonl  the teacher's scores
    mount/data/NEW/teacher/template.txt  the teacher's template, where it has one
    mount/data/NEW/train.jsonl           rows with these as targets
    mount/data/NEW/eval.jsonl            rows with true targets

Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from workflow.data.class_names import KEY, NAME_KEY, class_names
from workflow.data.examples import ScoredRows, encode_row, row_problem, without_nan
from workflow.data.scoring import Scoring
from workflow.data.sources import SUFFIXES, Row, Source
from workflow.data.targets import Targets
from workflow.errors import ConfigError, DataError
from workflow.evaluation.score_files import ROW, SCORE
from workflow.files import read_json, whole_file, write_json
from workflow.recipe.score_job import differences

MARKER = "distill.json"


def check_free(folder: Path) -> None:
    """Refuses a name that data has which distilling did not make. Raises ConfigError."""
    files = [path for suffix in SUFFIXES if (path := folder.with_name(f"{folder.name}{suffix}")).exists()]
    foreign = folder.exists() and not (folder / MARKER).is_file() and (folder.is_file() or any(folder.iterdir()))
    taken = [*files, *([folder] if foreign else [])]
    if taken:
        raise ConfigError(
            f"--data_name {folder.name}: {taken[0]} is there already, and was not made by distilling; choose another name"
        )


def claim(folder: Path, made_of: dict[str, Any]) -> None:
    """Notes what the data set is made of. Raises ConfigError where it is made of something else."""
    before = read_json(folder / MARKER)
    is_made = any(path.is_file() and path.name != MARKER for path in folder.rglob("*"))
    if not isinstance(before, dict) or not is_made:
        write_json(folder / MARKER, made_of)
    elif changed := differences(before, made_of):
        raise ConfigError(
            f"{folder} is distilled from something else ({', '.join(changed)} differ); choose another --data_name, or remove it"
        )


def check_eval_rows(labelled: Source, scoring: Scoring) -> None:
    """Refuses eval rows that cannot be scored, measured or written, and data without any. Raises DataError."""
    targets, count = _targets(labelled, scoring), 0
    row_format = ScoredRows(scoring.texts, targets)
    for index, row in _eval_rows(labelled, targets):
        count += 1
        if problem := row_format.problem(row) or row_problem(row):
            raise DataError(f"{labelled.label}: eval[{index}]: {problem}")
    if not count:
        raise DataError(
            f"{labelled.label}: no eval rows to measure teacher and student on; --eval_data NAME names a data set that has some"
        )


def write_template(path: Path, template: str) -> None:
    """A template's text, so that `--template PATH` reads it back as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(template + "\n")


def write_train_rows(folder: Path, scores: Path, scoring: Scoring) -> None:
    """train.jsonl: each scored row with the teacher's score as its target."""
    _write_rows(folder / "train.jsonl", _soft_rows(scores, scoring.targets()))


def write_eval_rows(folder: Path, labelled: Source, scoring: Scoring) -> None:
    """eval.jsonl: eval rows with the teacher's labels, and as numbers what a table holds as texts."""
    targets = _targets(labelled, scoring)
    _write_rows(folder / "eval.jsonl", (targets.typed(row) for _, row in _eval_rows(labelled, targets)))


def _targets(labelled: Source, scoring: Scoring) -> Targets:
    return scoring.targets(from_text=labelled.is_untyped, names=class_names(row for _, _, row in labelled.rows()))


def _eval_rows(labelled: Source, targets: Targets) -> Iterator[tuple[int, Row]]:
    """Those with a label."""
    rows = ((index, row) for split, index, row in labelled.rows() if split == "eval")
    return ((index, without_nan(row)) for index, row in rows if not targets.leaves_out(row))


def _soft_rows(scores: Path, targets: Targets) -> Iterator[Row]:
    left_out = ("split", NAME_KEY)
    with scores.open(encoding="utf-8") as file:
        for line in file:
            record: dict[str, Any] = json.loads(line)
            yield {
                **{key: value for key, value in record[ROW].items() if key not in left_out},
                KEY: targets.target(record[SCORE]),
            }


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    with whole_file(path) as file:
        for row in rows:
            file.write(encode_row(row).decode() + "\n")
