"""Runs many requests through an engine until all are done: evaluation, batch generation and batch scoring.

Knows nothing of files or of how ranks divide the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from workflow.data.encoders import INPUT, TOKEN_TYPES
from workflow.errors import GivenUp
from workflow.inference.interface import Engine
from workflow.inference.requests import GenerateRequest, Job, Outcome, Result, ScoreRequest
from workflow.watch.signals import asked

Floats = npt.NDArray[np.float64]


def generate_all(engine: Engine, requests: Sequence[GenerateRequest]) -> list[Result]:
    """The results, in the order of the requests. Under ZeRO-3 a collective call."""
    return [outcome for outcome in _run(engine, requests) if isinstance(outcome, Result)]


def score_all(engine: Engine, requests: Sequence[ScoreRequest], *, width: int) -> Floats:
    """Logits [requests, width], in the order of the requests. Under ZeRO-3 a collective call."""
    found = _run(engine, requests)
    return np.array(found, dtype=np.float64).reshape(len(requests), width)


def requests_of(fields: Mapping[str, Sequence[Sequence[int]]]) -> list[ScoreRequest]:
    """The requests of encoded rows: of each field, every row's numbers."""
    if TOKEN_TYPES not in fields:
        return [ScoreRequest(ids) for ids in fields[INPUT]]
    return [ScoreRequest(ids, types) for ids, types in zip(fields[INPUT], fields[TOKEN_TYPES], strict=True)]


def _run(engine: Engine, requests: Sequence[GenerateRequest] | Sequence[ScoreRequest]) -> list[Outcome]:
    """Submits all, the longest first so that neighbours are of like length; raises what any of them failed with."""
    outcomes: dict[int, Outcome] = {}
    failures: list[BaseException] = []
    jobs = {number: Job(requests[number], on_done=_keep(outcomes, number, failures)) for number in range(len(requests))}
    for number in sorted(jobs, key=lambda number: -len(requests[number].token_ids)):
        engine.submit(jobs[number])
    told = is_given_up = False
    while engine.step():  # to the end even after a failure: other ranks may still wait for this one's steps
        is_given_up = is_given_up or bool(asked())
        if (failures or is_given_up) and not told:
            told = True
            for job in jobs.values():
                engine.cancel(job)
    if is_given_up and failures:
        raise GivenUp("left because a signal asked to stop")
    if failures:
        raise failures[0]
    return [outcomes[number] for number in range(len(requests))]


def _keep(outcomes: dict[int, Outcome], number: int, failures: list[BaseException]) -> Callable[[Outcome], None]:
    def keep(outcome: Outcome) -> None:
        outcomes[number] = outcome
        if isinstance(outcome, BaseException):
            failures.append(outcome)

    return keep


def predictions(problem: str, logits: Floats) -> Floats:
    """What logits [rows, width] say: a distribution over the labels, a probability for each label, or the number."""
    if problem == "regression":
        return logits
    if problem == "multilabel":
        return np.exp(-np.logaddexp(0.0, -logits))
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return found
