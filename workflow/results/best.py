"""Which setting of a study won, by the mean over its seeds, as a settings file that `--config` takes.

Knows nothing of tables. Settings some of whose runs failed win only where no setting is whole: a mean over the runs
that survived is no fair figure.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflow.config.cascade import Layer, resolve
from workflow.config.clf_settings import ClfSettings
from workflow.config.rivals import without_silenced
from workflow.config.sections import CommandSettings
from workflow.config.settings import Seq2SeqSettings
from workflow.metric_names import higher_is_better, metric_of
from workflow.results.identity import OF_PLACE, hash_of
from workflow.results.runs import Result, Which

ENTRIES: dict[str, type[CommandSettings]] = {"seq2seq": Seq2SeqSettings, "clf": ClfSettings}
NO_SETTING = OF_PLACE | {"seed"}


@dataclass(frozen=True)
class Winner:
    """A setting (everything that its runs set), and by what it won."""

    settings: Mapping[str, Any]
    why: Mapping[str, Any]


def chosen_settings(entry: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a settings file needs to say: all that is set, defaults too, but not the run's place, name or seed.

    A value that is the program's default still counts: another file below this one may set another.
    """
    told = without_silenced(ENTRIES[entry], settings)
    given = resolve(ENTRIES[entry], [Layer("point", told)], complete=False)
    return {name: value for name, value in given.flat().items() if name in given.origins and name not in NO_SETTING}


def best_settings(results: Sequence[Result], *, which: Which = "best") -> dict[str, Winner]:
    """Task (and eval language, where these differ) -> the setting that won; nothing for tasks without a value."""
    groups: dict[str, list[Result]] = {}
    evals = len({result.labels.get("eval") for result in results}) > 1
    for result in results:
        parts = [result.labels.get("task", ""), *([result.labels.get("eval", "")] if evals else [])]
        groups.setdefault("-".join(part for part in parts if part), []).append(result)
    found = {name: _winner(some, which) for name, some in groups.items()}
    return {name: winner for name, winner in found.items() if winner is not None}


def shared_settings(winners: Mapping[str, Winner]) -> dict[str, Any]:
    """What all winners have in common; of one winner, everything."""
    first, *others = (winner.settings for winner in winners.values())
    return {
        name: value for name, value in first.items() if all(name in other and other[name] == value for other in others)
    }


def _winner(results: Sequence[Result], which: Which) -> Winner | None:
    metric = next((metric_of(result.shown_metrics[0]) for result in results if result.shown_metrics), None)
    if metric is None:
        return None
    settings: dict[str, list[Result]] = {}
    for result in results:
        own = {name: value for name, value in result.settings.items() if name not in NO_SETTING}
        settings.setdefault(hash_of(own), []).append(result)
    standings = [standing for some in settings.values() if (standing := _standing(some, metric, which)).values]
    if not standings:
        return None
    whole = [standing for standing in standings if standing.whole]
    sign = 1.0 if higher_is_better(metric) else -1.0
    best = max(whole or standings, key=lambda standing: sign * statistics.fmean(standing.values))
    first = best.results[0]
    return Winner(
        chosen_settings(first.entry, first.settings),
        {
            "metric": metric,
            "best_when": "high" if higher_is_better(metric) else "low",
            "evaluation": which,
            "mean": statistics.fmean(best.values),
            "std": statistics.stdev(best.values) if len(best.values) > 1 else None,
            "n": len(best.values),
            "runs": [result.name for result in best.results],
            "settings_compared": len(whole or standings),
            "settings_left_out": len(settings) - len(whole or standings),
            "all_runs_of_it_are_done": best.whole,
        },
    )


@dataclass(frozen=True)
class _Standing:
    results: Sequence[Result]
    values: Sequence[float]

    @property
    def whole(self) -> bool:
        return len(self.values) == len(self.results)


def _standing(results: Sequence[Result], metric: str, which: Which) -> _Standing:
    records = (result.record(metric, which) for result in results)
    return _Standing(results, [record.value for record in records if record is not None and record.value is not None])
