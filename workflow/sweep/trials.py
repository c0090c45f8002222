"""A search's trials in Optuna's storage: what to try next, what came of it, which are not worth going on with.

Knows nothing of points or runs. Every call must be made under the study's lock: then several processes share one search,
and what was tried is known to all of them.
"""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from workflow.errors import ConfigError
from workflow.sweep.grid import Range, Search

POINTS = "points"
NUM_TRIES = 200
"""Draws in a row that were all tried before, after which nothing new is expected."""
DIGITS = 4
"""Significant digits of a drawn number: enough for a search, short enough to read."""


class _FileLock(JournalFileOpenLock):
    """Ends with the process that holds it, unlike a file that is made and removed, which would have to be waited for."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path, self.descriptor = path, -1

    def acquire(self) -> bool:
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        os.close(self.descriptor)


@dataclass(frozen=True)
class Trial:
    """A trial by its number: the points (names) that try it, and how it stands."""

    number: int
    points: tuple[str, ...]
    state: str
    value: float | None


class Trials:
    """The trials of one search; `journal` is a file, unless `storage` names a database."""

    def __init__(
        self,
        search: Search,
        *,
        name: str,
        higher: bool,
        ranges: Mapping[str, Range],
        choices: Mapping[str, Sequence[Any]],
        journal: Path,
        storage: str | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.search, self.ranges, self.choices = search, ranges, choices
        self.direction: Literal["maximize", "minimize"] = "maximize" if higher else "minimize"
        self.space: dict[str, BaseDistribution] = {
            **{name: distribution(given) for name, given in ranges.items()},
            **{name: CategoricalDistribution([_as_text(value) for value in given]) for name, given in choices.items()},
        }
        self.storage = _storage(journal, storage)
        self.study = optuna.create_study(
            storage=self.storage,
            study_name=name,
            direction=self.direction,
            load_if_exists=True,
            pruner=pruner(search),
        )

    def close(self) -> None:
        """Close the connections to a database, which SQLAlchemy's pool keeps open otherwise."""
        if isinstance(self.storage, optuna.storages.RDBStorage):
            self.storage.remove_session()
            self.storage.engine.dispose()

    def all(self) -> list[Trial]:
        """Every trial that is or was tried."""
        return [
            Trial(one.number, tuple(one.user_attrs.get(POINTS, ())), one.state.name, one.value)
            for one in self.study.get_trials(deepcopy=False)
        ]

    def draw(self) -> Iterator[dict[str, Any]]:
        """Values to try, as the sampler proposes them in the light of all trials; ends where they repeat themselves.

        What is drawn depends on the search's seed and the trials alone, not on which process draws.
        """
        known = self.study.get_trials(deepcopy=False)
        for attempt in range(NUM_TRIES):
            drawing = optuna.create_study(direction=self.direction, sampler=self._sampler(len(known), attempt))
            drawing.add_trials(known)
            proposal = drawing.ask(fixed_distributions=self.space)
            yield {name: self._value(name, proposal.params[name]) for name in self.space}

    def _sampler(self, num_trials: int, attempt: int) -> BaseSampler:
        seed = (self.search.seed * 1_000_003 + num_trials * 1_009 + attempt) % 2**32
        if (
            self.search.kind == "tpe" and attempt < NUM_TRIES // 2
        ):  # then it proposes what was tried: anything new will do
            return TPESampler(seed=seed, constant_liar=True)
        return RandomSampler(seed=seed)

    def _value(self, name: str, drawn: Any) -> Any:
        if name in self.choices:
            return json.loads(drawn)
        given = self.ranges[name]
        if isinstance(drawn, float) and given.step is None:
            return min(max(float(f"{drawn:.{DIGITS}g}"), float(given.low)), float(given.high))
        return drawn

    def add(self, values: Mapping[str, Any], points: Sequence[str]) -> None:
        """A new trial of these values, tried by these points."""
        params = {name: _as_text(value) if name in self.choices else value for name, value in values.items()}
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING, params=params, distributions=self.space, user_attrs={POINTS: list(points)}
            )
        )

    def again(self, number: int) -> None:
        """A new trial of a failed one's values and points."""
        old = self._frozen(number)
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=old.params,
                distributions=old.distributions,
                user_attrs=old.user_attrs,
            )
        )

    def report(self, number: int, values: Sequence[float]) -> bool:
        """Tells the values of a trial's evaluations, the first one's first; whether it is not worth going on with.

        Each is judged before the next is told, as if its trial had been asked then: the pruner compares the latest
        value that it knows, and of runs that are looked at now and then these would be of unlike evaluations.
        """
        trial = self._running(number)
        if trial is None:
            return True
        known = self._frozen(number).intermediate_values
        for index, value in enumerate(values, start=1):
            if index not in known:
                trial.report(value, index)
                if trial.should_prune():
                    return True
        return bool(values) and trial.should_prune()

    def tell(self, number: int, value: float | None) -> None:
        """Ends a trial: with its value, or as failed."""
        if self._running(number) is not None:
            self.study.tell(number, value, state=None if value is not None else TrialState.FAIL)

    def prune(self, number: int) -> None:
        """Ends a trial that was not worth going on with."""
        if self._running(number) is not None:
            self.study.tell(number, state=TrialState.PRUNED)

    def _running(self, number: int) -> optuna.Trial | None:
        frozen = self._frozen(number)
        return None if frozen.state.is_finished() else optuna.Trial(self.study, frozen._trial_id)

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]


def pruner(search: Search) -> optuna.pruners.BasePruner:
    """Successive halving by evaluations (Li et al. 2020, asynchronous): after 1, 3, 9, ... of them the best third goes on."""
    if search.kind == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=search.reduction_factor)
    return optuna.pruners.NopPruner()


def distribution(given: Range) -> BaseDistribution:
    """A range as Optuna has it."""
    if given.whole:
        step = 1 if given.step is None else int(given.step)
        return IntDistribution(int(given.low), int(given.high), log=given.log, step=step)
    return FloatDistribution(given.low, given.high, log=given.log, step=given.step)


def _as_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _storage(journal: Path, url: str | None) -> optuna.storages.BaseStorage:
    if url is not None:
        try:
            return optuna.storages.RDBStorage(url)
        except Exception as error:  # SQLAlchemy's, or its driver's, which is not installed
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"--storage {url}: cannot be used: {reason}; expected e.g. sqlite:///search.db") from None
    _mend(journal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        backend = JournalFileBackend(str(journal), lock_obj=_FileLock(journal.with_name(f"{journal.name}.lock")))
        return optuna.storages.JournalStorage(backend)


def _mend(journal: Path) -> None:
    """Takes off a last line that a killed process did not finish: what follows it would not be understood."""
    if not journal.is_file():
        return
    content = journal.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)
