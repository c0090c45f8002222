"""`workflow score`: every row of a file scored, in order, on all ranks, in shards that survive a kill.

    OUT.parts/scoring.json       what is being scored with what: a second start must mean the same
    OUT.parts/part-000007.jsonl  rows 7 * shard_rows onward, whole or not there
    OUT.parts/cut-000007.json    how much of these rows' inputs was cut, where any was
    OUT, OUT.scoring.json        the joined parts, and what they are

Knows nothing of training. Ranks share no tensors: each takes every n-th shard of the row stream.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from workflow import paths as names
from workflow.data.examples import ScoredRows, row_problem, without_nan
from workflow.data.features import Truncation
from workflow.data.sources import Row, Source, find_source
from workflow.errors import ConfigError, DataError
from workflow.evaluation.score_files import in_lines, score_record, write_records
from workflow.files import is_stream, read_json, remove_leftovers, whole_file, write_json
from workflow.inference.batch import predictions, score_all
from workflow.inference.head_engine import score_engine
from workflow.inference.interface import Engine, EngineLimits
from workflow.locks import acquire, holder, release
from workflow.models.load import is_path, quiet_transformers
from workflow.recipe.place import Place, model_to_use
from workflow.recipe.score_job import IN_PARTS_ALONE, check_out, describe, differences
from workflow.recipe.scorers import LoadedScorer, check_finite, counted_requests, cut_notes, load_scorer
from workflow.runtime import collectively, on_first, torch_device
from workflow.training.ds_config import torch_dtype

MAX_PROBLEMS = 10

Entry = tuple[str, int, Row]
"""A row with its split and its number there."""


def score(given: Namespace, place: Place) -> None:
    """Scores what is not scored yet; the last thing that appears is the whole file."""
    quiet_transformers()
    source = on_first(lambda: find_source(given.data, place.mount, given.quoting), place.ranks)
    on_first(lambda: check_out(given.out, source), place.ranks)
    name = model_to_use(given.model, place.mount)
    scorer = collectively(lambda: _load(given, name, place), place.ranks, first_alone=not is_path(name))
    notes = source.notes if given.split is not None else source.read_notes
    for note in (*notes, *scorer.loaded.notes):
        place.console.print(f"note: {note}", soft_wrap=True)
    parts = on_first(lambda: _parts_folder(given.out), place.ranks)
    job = _Job(given, place, source, scorer, name, parts)
    try:
        if on_first(job.begin, place.ranks):
            job.score_shards()
            collectively(lambda: None, place.ranks)
            on_first(job.join, place.ranks)
    finally:
        if job.lock is not None:
            release(job.lock)
            if is_stream(given.out):  # nothing that a second start could go on with
                shutil.rmtree(parts, ignore_errors=True)


def _parts_folder(out: Path) -> Path:
    """Beside the output; of what is no file, a temporary folder."""
    return Path(tempfile.mkdtemp(prefix="workflow-score-")) if is_stream(out) else out.with_name(f"{out.name}.parts")


def _load(given: Namespace, name: str, place: Place) -> LoadedScorer:
    scorer = load_scorer(
        name,
        labels=given.labels,
        problem=given.problem,
        template=given.template,
        max_length=given.max_length,
        tokenizer=given.tokenizer,
    )
    if given.calibrated:
        if scorer.calibration is None or scorer.scoring.problem != "binary":
            raise ConfigError(f"--calibrated: {name} has no {names.CALIBRATION_NAME} for binary scores")
        if scorer.calibration.reason:
            raise ConfigError(
                f"--calibrated: nothing was fitted when {name} was evaluated ({scorer.calibration.reason}), so calibrated "
                "scores would be the plain ones; leave the flag out"
            )
    scorer.loaded.model.to(torch_device(place.device, place.ranks), torch_dtype(given.precision, place.device)).eval()
    return scorer


class _Job:
    """One file to be scored."""

    def __init__(
        self, given: Namespace, place: Place, source: Source, scorer: LoadedScorer, name: str, parts: Path
    ) -> None:
        self.given = given
        self.place = place
        self.source = source
        self.scorer = scorer
        self.name = name
        self.out: Path = given.out
        self.is_stream = is_stream(self.out)
        self.parts = parts
        self.described = self.parts / names.SCORING_NAME
        self.record = names.scoring_beside(self.out)
        self.description: dict[str, Any] = {}  # the first rank's
        self.lock: int | None = None

    def entries(self) -> Iterator[Entry]:
        """The rows to be scored; what is not known of them is null, in the output too."""
        wanted = self.given.split
        for split, index, row in self.source.rows(everything=wanted is None):
            if wanted is None or split == wanted:
                yield split, index, without_nan(row)

    def part(self, number: int) -> Path:
        """The file of a shard."""
        return Path(self.parts / f"part-{number:06d}.jsonl")

    def cut(self, number: int) -> Path:
        """The file that says how much of a shard's inputs was cut; there is none where nothing was."""
        return Path(self.parts / f"cut-{number:06d}.json")

    # ---- the first rank: before

    def begin(self) -> bool:
        """Claims the parts folder, checks every row, and says whether there is anything to do."""
        self.description = describe(self.given, self.name, self.scorer, self.source)
        if self.out.exists() and not self.is_stream and not self.given.overwrite and not self._lacks_only_its_record():
            self._check_same()
            self.place.console.print(f"{self.out} is there already, of the same model and data", soft_wrap=True)
            return False
        self.parts.mkdir(parents=True, exist_ok=True)
        self._lock()
        remove_leftovers(self.parts)
        before = _read(self.described)
        if before is None:
            self._start_anew()
        elif changed := differences(before, self.description):
            raise ConfigError(
                f"{self.parts} holds the beginning of another scoring ({', '.join(changed)} differ); remove it, or choose another --out"
            )
        done = len(list(self.parts.glob("part-*.jsonl")))
        if done:
            self.place.console.print(f"going on after {done} shards of {self.given.shard_rows} rows")
        return True

    def _check_same(self) -> None:
        before = _read(self.record)
        advice = "choose another, or pass --overwrite"
        if before is None:
            raise ConfigError(f"--out {self.out} exists, and no {self.record.name} says of what; {advice}")
        if changed := differences(before, self.description, apart_from=IN_PARTS_ALONE):
            raise ConfigError(f"--out {self.out} exists, of another scoring ({', '.join(changed)} differ); {advice}")

    def _lacks_only_its_record(self) -> bool:
        """Whether a kill came between the whole file and the record of it: the parts are complete and of this scoring."""
        before = _read(self.described)
        if self.record.exists() or before is None or differences(before, self.description):
            return False
        return all(self.part(number).is_file() for number in self._shards(before["num_rows"]))

    def _lock(self) -> None:
        self.lock = acquire(self.parts / "lock")
        if self.lock is None:
            raise ConfigError(
                f"{self.parts}: another process is scoring into it ({holder(self.parts / 'lock')}); wait for it, or choose another --out"
            )

    def _start_anew(self) -> None:
        try:
            num_rows = self._count_good_rows()
        except BaseException:
            shutil.rmtree(self.parts, ignore_errors=True)
            raise
        for pattern in ("part-*.jsonl", "cut-*.json"):  # of a description that was lost
            for part in self.parts.glob(pattern):
                part.unlink()
        write_json(self.described, {**self.description, "num_rows": num_rows})

    def _count_good_rows(self) -> int:
        """A pass over all rows before the model is put to work, so that a bad one is told at once."""
        row_format = ScoredRows(self.scorer.scoring.texts, None)
        problems: list[str] = []
        count = 0
        for split, index, row in self.entries():
            count += 1
            if problem := row_format.problem(row) or (None if self.given.scores_only else row_problem(row)):
                problems.append(f"{split}[{index}]: {problem}")
                if len(problems) >= MAX_PROBLEMS:
                    break
        if problems:
            raise DataError("\n  ".join([f"{self.source.label}: rows that cannot be scored:", *problems]))
        if not count:
            raise DataError(
                f"{self.source.label}: no rows" + (f" in split {self.given.split}" if self.given.split else "")
            )
        return count

    # ---- every rank

    def score_shards(self) -> None:
        """Writes this rank's missing shards."""
        ranks, size, num_rows = self.place.ranks, self.given.shard_rows, self._num_rows()
        limits = EngineLimits.at_least(rows=self.given.batch_size, tokens=self.scorer.scoring.max_length)
        engine = score_engine(self.scorer.loaded, limits=limits, fuse=True)
        entries = self.entries()
        with self._progress() as progress:
            bar = progress.add_task("scoring", total=num_rows)
            for number in self._shards(num_rows):
                shard = list(islice(entries, size))
                if len(shard) != min(size, num_rows - number * size):
                    raise self._changed()
                if number % ranks.world_size == ranks.rank and not self.part(number).is_file():
                    self._score_shard(engine, shard, number)
                progress.update(bar, advance=len(shard))
        if next(entries, None) is not None:
            raise self._changed()

    def _num_rows(self) -> int:
        described = _read(self.described)
        assert described is not None
        num_rows: int = described["num_rows"]
        return num_rows

    def _shards(self, num_rows: int) -> range:
        return range(-(-num_rows // self.given.shard_rows))

    def _changed(self) -> DataError:
        return DataError(f"{self.source.label}: changed while it was scored; remove {self.parts} and start again")

    def _score_shard(self, engine: Engine, shard: list[Entry], number: int) -> None:
        rows = [row for _, _, row in shard]
        requests, cut = counted_requests(self.scorer, rows)
        logits = score_all(engine, requests, width=self.scorer.loaded.width)
        check_finite(logits, self.name, [f"{split}[{index}]" for split, index, _ in shard])
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
        if cut.rows:  # before the part, by which a shard counts as done
            write_json(self.cut(number), asdict(cut))
        with whole_file(self.part(number)) as file:
            write_records(file, records, as_lines=True)

    def _progress(self) -> Progress:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self.place.console)

    # ---- the first rank: after

    def join(self) -> None:
        """The parts in order, as one file. Its record, which may be of an older file, goes first and comes last."""
        num_rows, count = self._num_rows(), 0

        def records() -> Iterator[dict[str, Any]]:
            nonlocal count
            for number in self._shards(num_rows):
                with self.part(number).open(encoding="utf-8") as file:
                    for line in file:
                        count += 1
                        yield json.loads(line)

        if not self.is_stream:
            self.record.unlink(missing_ok=True)
        with whole_file(self.out) as file:
            write_records(file, records(), as_lines=in_lines(self.out))
            assert count == num_rows, f"{count} records of {num_rows} rows"
        cut = self._truncation(num_rows)
        if not self.is_stream:
            write_json(self.record, {**self.description, **self._thresholds(), "truncated": asdict(cut)})
        shutil.rmtree(self.parts)
        self.place.console.print(f"{count} rows scored: {self.out}", soft_wrap=True)
        for note in cut_notes(cut):
            self.place.console.print(f"note: {note}", soft_wrap=True)

    def _truncation(self, num_rows: int) -> Truncation:
        """How much of the inputs was cut, by this start and those before it."""
        found = [cut for number in self._shards(num_rows) if (cut := _read(self.cut(number)))]
        return Truncation(sum(cut["rows"] for cut in found), sum(cut["tokens"] for cut in found))

    def _thresholds(self) -> dict[str, Any]:
        """Those that the checkpoint's evaluation fitted for the plain score, by metric, for whoever decides by it."""
        found = self.scorer.calibration
        return {"thresholds": dict(found.thresholds)} if found and found.thresholds and not found.reason else {}


def _read(file: Path) -> dict[str, Any] | None:
    values = read_json(file)
    return values if isinstance(values, dict) else None
