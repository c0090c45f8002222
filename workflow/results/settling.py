"""One result a run: what to do when the same run is read from two places, and what when they disagree.

Knows nothing of where results are read from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from workflow.errors import ResultsError
from workflow.results.identity import hash_of, placeless

if TYPE_CHECKING:
    from workflow.results.runs import Result

Prefer = Literal["newest", "first"]


def settle(results: Iterable[Result], *, prefer: Prefer | None = None) -> list[Result]:
    """Each run once, in order.

    A study's point stands for its run, a finished one for an unfinished one of the same study and name (outside
    studies: of the same name and settings), a later reading of a folder for an earlier one. Two finished readings of
    one run (by identity) from different places must have the same numbers; where they have not, ResultsError tells
    them all, unless `prefer` says which counts.
    """
    every = list(results)
    points = {result.place.absolute() for result in every if result.study}
    own = [result for result in every if result.study or result.place.absolute() not in points]
    read_once = _one_of_each(own, lambda result: (result.place.absolute(), result.slice), _latest)
    done = {_point(result) for result in read_once if result.report is not None}
    wanted = [result for result in read_once if result.report is not None or _point(result) not in done]
    if prefer is None and (told := conflicts(wanted)):
        raise ResultsError(
            f"{len(told)} runs have the same name, data and settings, but other numbers in two places; pass --prefer newest, "
            "or --prefer first for the place that is named first:\n" + "\n".join(f"  {line}" for line in told)
        )
    return _one_of_each(wanted, lambda result: result.identity, _newest if prefer == "newest" else _first)


def conflicts(results: Sequence[Result]) -> list[str]:
    """A line for each identity whose readings differ in their numbers: where, and in what."""
    by_identity: dict[str, list[Result]] = {}
    for result in results:
        if result.report is not None:
            by_identity.setdefault(result.identity, []).append(result)
    return [
        f"{some[0].name}: {'; '.join(_told(result) for result in some)}"
        for some in by_identity.values()
        if len({numbers_of(result) for result in some}) > 1
    ]


def numbers_of(result: Result) -> str:
    """Equal for reports of equal metrics, steps and losses; speed and hardware may differ."""
    assert result.report is not None
    names = {"initial", "final", "best", "final_train_loss", "steps", "examples"}
    return hash_of(result.report.model_dump(mode="json", include=names))


def finished_at(result: Result) -> str:
    """When its report was written, as texts that sort by time; empty where that is not known."""
    from datetime import UTC, datetime

    told = str(result.report.environment.get("finished_at", "")) if result.report else ""
    try:
        return datetime.fromisoformat(told).astimezone(UTC).isoformat()
    except ValueError:
        return ""


def _told(result: Result) -> str:
    assert result.report is not None
    found = result.report.best or result.report.final
    record = found.metrics.get(result.report.best_metric) if found else None
    value = "no value" if record is None or record.value is None else f"{record.value:.6g}"
    return f"{result.report.best_metric} {value} in {result.place} ({finished_at(result) or 'no date'})"


def _point(result: Result) -> tuple[str | None, ...]:
    """Equal for readings of one run, finished or not: in a study its name is of its settings, elsewhere anybody may use it."""
    settings = None if result.study else hash_of(placeless(result.settings))
    return result.study, result.name, result.slice, settings


def _one_of_each(
    results: Iterable[Result], key: Callable[[Result], object], choose: Callable[[Result, Result], Result]
) -> list[Result]:
    kept: dict[object, Result] = {}
    for result in results:
        name = key(result)
        kept[name] = choose(kept[name], result) if name in kept else result
    return list(kept.values())


def _latest(before: Result, now: Result) -> Result:
    """The later reading, unless only the earlier one is of a study and it is as complete."""
    return before if before.study and not now.study and (before.report or not now.report) else now


def _first(before: Result, now: Result) -> Result:
    """The first, unless it lacks what a study says of it."""
    return now if now.study and not before.study and numbers_equal(before, now) else before


def _newest(before: Result, now: Result) -> Result:
    if numbers_equal(before, now):
        return _first(before, now)
    return now if finished_at(now) > finished_at(before) else before


def numbers_equal(one: Result, other: Result) -> bool:
    """Whether two results of one identity agree; unfinished ones do."""
    return one.report is None or other.report is None or numbers_of(one) == numbers_of(other)
