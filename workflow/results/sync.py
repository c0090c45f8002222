"""`workflow results export` and `merge`: results of several places brought together.

Knows nothing of how a place is reached. A conflict is never decided silently: nothing is written until all are settled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workflow.paths import SCORES_NAME, SETTINGS_NAMES, RunPaths
from workflow.results.runs import STUDY_NAME, Result, is_store, read_raw
from workflow.results.settling import Prefer, settle
from workflow.results.store import Content, Kept, Store

PREDICTIONS = (
    SCORES_NAME,
    f"checkpoint-*-{SCORES_NAME}",
    "temperature=*_n=*_step=*.json",
    "swa-*.json",
    "ema-*.json",
    "test-*.json",
    "test-*.jsonl",
)


@dataclass(frozen=True)
class Outcome:
    """How many results the place has now, how many of them are new, and how many gave way to others."""

    total: int
    added: int
    removed: int


def bring_together(
    places: Sequence[str],
    to: str,
    *,
    models: Path | None = None,
    predictions: bool = True,
    prefer: Prefer | None = None,
) -> Outcome:
    """Adds the results of studies, runs and exported folders to a place, which keeps what it has.

    Raises ResultsError, with nothing written, for runs whose numbers differ between places unless `prefer` decides.
    """
    store = Store(to)
    before = store.names()
    every = [kept for place in places for kept in _kept_at(place, models, predictions=predictions)]
    own = store.kept() if before else []
    settled = settle((kept.result for kept in (*own, *every)), prefer=prefer)
    chosen = {id(result) for result in settled}
    # What the place has already is not read again: it may be far away, and large.
    names = {kept.entry for kept in own if id(kept.result) in chosen}
    names |= {store.add(kept) for kept in every if id(kept.result) in chosen}
    gone = set(before) - names
    for name in gone:
        store.remove(name)
    return Outcome(len(names), len(names - set(before)), len(gone))


def _kept_at(place: str, models: Path | None, *, predictions: bool) -> list[Kept]:
    if is_store(place):
        return Store(place).kept()
    study = Path(place) / STUDY_NAME
    shared: dict[str, Content] = {STUDY_NAME: study.read_bytes} if study.is_file() else {}
    return [
        Kept(result, {**_files_of(result, predictions=predictions), **shared}, number)
        for number, result in enumerate(read_raw([place], models=models))
    ]


def _files_of(result: Result, *, predictions: bool) -> dict[str, Content]:
    """The report, the settings with their origins, and the prediction files if asked."""
    if result.report is None:
        return {}
    paths = [RunPaths(result.place).report, *(result.place / name for name in SETTINGS_NAMES)]
    if predictions:
        paths += sorted(path for pattern in PREDICTIONS for path in result.place.glob(pattern))
    return {path.name: path.read_bytes for path in paths if path.is_file()}
