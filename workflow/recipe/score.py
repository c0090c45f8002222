"""`workflow score`: every row of a file scored, in order, on all ranks, in shards that survive a kill.

    OUT.parts/scoring.json       what is being scored with what: a second start must mean the same
    OUT.parts/part-000007.jsonl  rows 7 * shard_rows onward, whole or not there
    OUT, OUT.scoring.json        the joined parts, and what they are

Knows nothing of training. Ranks share no tensors: each takes every n-th shard of the row stream.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from workflow import paths as names
from workflow.data.examples import ScoredRows
from workflow.data.sources import Row, Source, find_source
from workflow.errors import ConfigError, DataError
from workflow.evaluation.score_files import score_record, write_records
from workflow.files import read_json, remove_leftovers, whole_file, write_json
from workflow.inference.batch import predictions, score_all
from workflow.inference.engine import Engine, EngineLimits
from workflow.inference.head_engine import score_engine
from workflow.models.load import is_path, quiet_transformers
from workflow.recipe.place import Place, model_to_use
from workflow.recipe.scorers import LoadedScorer, load_scorer, score_requests
from workflow.runtime import collectively, on_first, torch_device
from workflow.training.ds_config import torch_dtype

SAMPLE_BYTES = 1 << 20
NUM_SAMPLES = 16
MAX_PROBLEMS = 10


def score(given: Namespace, place: Place) -> None:
    """Scores what is not scored yet; the last thing that appears is the whole file."""
    quiet_transformers()
    if given.out.suffix not in (".json", ".jsonl"):
        raise ConfigError(f"--out {given.out}: ends in neither .json (one list) nor .jsonl (one record a line)")
    name = model_to_use(given.model, place.mount)
    scorer = collectively(lambda: _load(given, name, place), place.ranks, first_alone=not is_path(name))
    source = on_first(lambda: find_source(given.data, place.mount), place.ranks)
    job = _Job(given, place, source, scorer, name)
    if on_first(job.begin, place.ranks):
        job.score_shards()
        collectively(lambda: None, place.ranks)
        on_first(job.join, place.ranks)


def _load(given: Namespace, name: str, place: Place) -> LoadedScorer:
    scorer = load_scorer(
        name, labels=given.labels, template=given.template, max_length=given.max_length, tokenizer=given.tokenizer
    )
    if given.calibrated and (scorer.calibration is None or scorer.scoring.problem != "binary"):
        raise ConfigError(f"--calibrated: {name} has no {names.CALIBRATION_NAME} for binary scores")
    scorer.loaded.model.to(torch_device(place.device, place.ranks), torch_dtype(given.precision, place.device)).eval()
    return scorer


class _Job:
    """One file to be scored."""

    def __init__(self, given: Namespace, place: Place, source: Source, scorer: LoadedScorer, name: str) -> None:
        self.given = given
        self.place = place
        self.source = source
        self.scorer = scorer
        self.name = name
        self.out: Path = given.out
        self.parts = self.out.with_name(f"{self.out.name}.parts")
        self.record = self.out.with_name(f"{self.out.name}.{names.SCORING_NAME}")
        self.num_rows = 0
        self.lock: int | None = None

    def rows(self) -> Iterator[tuple[str, int, Row]]:
        """The rows to be scored, each with its split and its number there."""
        wanted = self.given.split
        return (entry for entry in self.source.rows() if wanted is None or entry[0] == wanted)

    # ---- the first rank: before

    def begin(self) -> bool:
        """Claims the parts folder, checks every row, and says whether there is anything to do."""
        job = self._description()
        if self.out.exists() and not self.given.overwrite:
            if _read(self.record) == job:
                self.place.console.print(f"{self.out} is there already, of the same model and data")
                return False
            raise ConfigError(f"--out {self.out} exists, of another model or data; choose another, or pass --overwrite")
        self.parts.mkdir(parents=True, exist_ok=True)
        self._lock()
        remove_leftovers(self.parts)
        described = self.parts / names.SCORING_NAME
        before = _read(described)
        if before is not None and {**before, "num_rows": None} != {**job, "num_rows": None}:
            changed = [key for key in job if before.get(key) != job[key] and key != "num_rows"]
            raise ConfigError(
                f"{self.parts} holds the beginning of another scoring ({', '.join(changed)} differ); remove it, or choose another --out"
            )
        if before is None:
            write_json(described, {**job, "num_rows": self._count_good_rows()})
        done = len(list(self.parts.glob("part-*.jsonl")))
        if done:
            self.place.console.print(f"going on after {done} shards of {self.given.shard_rows} rows")
        return True

    def _lock(self) -> None:
        self.lock = os.open(self.parts / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{self.parts}: another process is scoring into it; wait for it, or choose another --out"
            ) from None

    def _description(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "weights": _fingerprint(self.name),
            "data": self.source.label,
            "data_hash": self.source.data_hash,
            "scoring": json.loads(json.dumps(self.scorer.scoring.as_json())),
            "split": self.given.split,
            "scores_only": self.given.scores_only,
            "calibrated": self.given.calibrated,
            "precision": self.given.precision,
            "shard_rows": self.given.shard_rows,
        }

    def _count_good_rows(self) -> int:
        """A pass over all rows before the model is put to work, so that a bad one is told at once."""
        row_format = ScoredRows(self.scorer.scoring.texts, None)
        problems: list[str] = []
        count = 0
        for split, index, row in self.rows():
            count += 1
            if problem := row_format.problem(row):
                problems.append(f"{split}[{index}]: {problem}")
                if len(problems) >= MAX_PROBLEMS:
                    break
        if problems:
            shutil.rmtree(self.parts, ignore_errors=True)
            raise DataError("\n  ".join([f"{self.source.label}: rows that cannot be scored:", *problems]))
        if not count:
            raise DataError(
                f"{self.source.label}: no rows" + (f" in split {self.given.split}" if self.given.split else "")
            )
        return count

    # ---- every rank

    def score_shards(self) -> None:
        """Writes this rank's missing shards."""
        ranks, size = self.place.ranks, self.given.shard_rows
        described = _read(self.parts / names.SCORING_NAME)
        assert described is not None
        self.num_rows = described["num_rows"]
        limits = EngineLimits.at_least(rows=self.given.batch_size, tokens=self.scorer.scoring.max_length)
        engine = score_engine(self.scorer.loaded, limits=limits, fuse=True)
        rows = (row for _, _, row in self.rows())
        with self._progress() as progress:
            bar = progress.add_task("scoring", total=self.num_rows)
            for number in range(-(-self.num_rows // size)):
                shard = list(islice(rows, size))
                part = self.parts / f"part-{number:06d}.jsonl"
                if number % ranks.world_size == ranks.rank and not part.is_file():
                    self._score_shard(engine, shard, part)
                progress.update(bar, advance=len(shard))

    def _score_shard(self, engine: Engine, rows: list[Row], part: Path) -> None:
        logits = score_all(engine, score_requests(self.scorer, rows), width=self.scorer.loaded.width)
        vectors = predictions(self.scorer.scoring.problem, logits)
        targets, calibration = self.scorer.scoring.targets(), self.scorer.calibration
        records = [
            score_record(None if self.given.scores_only else row, vector.tolist(), targets)
            for row, vector in zip(rows, vectors, strict=True)
        ]
        if self.given.calibrated:
            assert calibration is not None
            for record, share in zip(records, calibration.apply(logits).tolist(), strict=True):
                record["pred_calibrated"] = targets.prediction([1 - share, share])
        with whole_file(part) as file:
            write_records(file, records, as_lines=True)

    def _progress(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        return Progress(*columns, console=self.place.console)

    # ---- the first rank: after

    def join(self) -> None:
        """The parts in order, as one file."""
        count = 0

        def records() -> Iterator[dict[str, Any]]:
            nonlocal count
            for part in sorted(self.parts.glob("part-*.jsonl")):
                with part.open(encoding="utf-8") as file:
                    for line in file:
                        count += 1
                        yield json.loads(line)

        with whole_file(self.out) as file:
            write_records(file, records(), as_lines=self.out.suffix == ".jsonl")
            assert count == self.num_rows, f"{count} records of {self.num_rows} rows"
        write_json(self.record, self._description())
        shutil.rmtree(self.parts)
        self.place.console.print(f"{count} rows scored: {self.out}", soft_wrap=True)


def _read(file: Path) -> dict[str, Any] | None:
    values = read_json(file)
    return values if isinstance(values, dict) else None


def _fingerprint(name: str) -> str:
    """Changes with a checkpoint's weights: their size and samples all over them; a hub name stands for itself."""
    if not is_path(name):
        return name
    digest = hashlib.sha256()
    path = Path(name)
    files = (
        [path]
        if path.is_file()
        else sorted(path.glob("*.safetensors")) + sorted(path.glob("*.bin")) + sorted(path.glob("*.pt"))
    )
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as content:
            for sample in range(NUM_SAMPLES):
                content.seek(sample * max(0, size - SAMPLE_BYTES) // max(1, NUM_SAMPLES - 1))
                digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()[:32]
