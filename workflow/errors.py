"""Every error that a user can cause, as one tree; each says where, what is wrong, and what to do.

Knows neither exit codes' printing nor HTTP: `cli.py` and the server translate the tree once each.

    WorkflowError
    |- ConfigError       a flag, a settings file or a combination of settings       exit 2
    |- DataError         a data file, a split, a row                                exit 2
    |- ModelError        a checkpoint, a tokenizer, an architecture                 exit 2
    |  `- DamagedModel     ... that computes what is no number                      exit 2, HTTP 500
    |- RunExistsError    a run folder that is in use or holds another run           exit 2
    |- ResultsError      a report that cannot be read                               exit 2
    |- TemplateError     a job's template, or a field of it                         exit 2
    |- JobError          a scheduler that refuses, or cannot be asked               exit 1
    |- CheckpointError   a checkpoint that cannot be written or continued from      exit 1
    |- BackendError      training cannot go on (non-finite loss, a lost rank, ...)  exit 1
    |  |- StartAgain       ... in this process; a new one can go on                 exit 75
    |  `- RankLost         ... because another rank is dead or hangs                exit 1
    |- Stopped           a signal asked the run to stop; the same command goes on   exit 75, 130 after Ctrl-C
    |- GivenUp           an evaluation was left for that reason                     exit 75
    `- RequestError      what is wrong with a request, or why it cannot be answered
       |- UnknownModel     no such run under the mount                              HTTP 404
       |- PromptTooLong    more tokens than the model or the server takes           HTTP 413
       |- QueueFull        as many requests as the server takes; try again          HTTP 429
       |- ModelUnavailable a run that cannot be loaded now                          HTTP 503
       |- Draining         the server is shutting down                              HTTP 503
       |- RequestTimeout   not answered within the deadline                         HTTP 504
       |- RequestCancelled its client went away                                     HTTP 499
       `- EngineFailed     the engine, not the request, is at fault                 HTTP 500
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Hashable, Iterable
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


class WorkflowError(Exception):
    """Base of all errors whose text is meant for the user; printed without a traceback."""

    exit_code = 1
    known_to_all = False
    """Whether every rank raised this same error, so that the first rank alone prints it."""


class ConfigError(WorkflowError):
    """Flags, settings files or combinations of settings are wrong; each of `problems` is a message of its own."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__(_listed(problems))
        self.problems = problems


class DataError(WorkflowError):
    """A data file cannot be used; the text names file, split, row and key."""

    exit_code = 2


class ModelError(WorkflowError):
    """A checkpoint or tokenizer cannot be used."""

    exit_code = 2


class DamagedModel(ModelError):
    """A model computes what is no number."""

    def __init__(self) -> None:
        super().__init__(
            "the model's logits are not finite numbers; its weights are damaged, or overflowed in training: serve or use "
            "an older checkpoint of the run"
        )


class RunExistsError(WorkflowError):
    """The run folder is held by another process or belongs to a run with other settings."""

    exit_code = 2


class ResultsError(WorkflowError):
    """A report cannot be read."""

    exit_code = 2


class TemplateError(WorkflowError):
    """A template of jobs cannot be filled: fields without values, values without fields, a script that is none."""

    exit_code = 2


class JobError(WorkflowError):
    """A scheduler refuses what it is asked, or cannot be asked."""


class CheckpointError(WorkflowError):
    """A checkpoint could not be written, or cannot be continued from."""


class BackendError(WorkflowError):
    """Training cannot go on."""


class StartAgain(BackendError):
    """Training cannot go on in this process; the same command, started again, can. The code is sysexits' EX_TEMPFAIL."""

    exit_code = 75


class RankLost(BackendError):
    """Another rank is dead, silent or behind; the text names it where that is known."""


class GivenUp(WorkflowError):
    """An evaluation was left before its end, by all ranks, because a signal asked the run to stop."""

    exit_code = 75


class Stopped(WorkflowError):
    """The run stopped because a signal asked for it; `step` is its last update, None where it had not come so far.

    `where` says instead how far something else than a run has come.
    """

    known_to_all = True

    def __init__(self, number: int, *, step: int | None = None, where: str | None = None) -> None:
        where = where or (f"after step {step}" if step else "before the first step")
        super().__init__(f"stopped by {signal.Signals(number).name} {where}; the same command continues")
        self.exit_code = self.code_of(number)

    @staticmethod
    def code_of(number: int) -> int:
        """130 as shells have it after Ctrl-C, else "try again"."""
        return 130 if number == signal.SIGINT else 75


class RequestError(WorkflowError):
    """A request is wrong, or cannot be answered. `param` names the field at fault, `code` is for programs."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class UnknownModel(RequestError):
    """No run of this name can be served."""


class PromptTooLong(RequestError):
    """A prompt has more tokens than the model or the server takes."""


class RetryLater(RequestError):
    """Base of refusals that pass: the same request may succeed after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: int = 1, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class QueueFull(RetryLater):
    """As many requests, or tokens, as the server takes are waiting already."""


class ModelUnavailable(RetryLater):
    """A run cannot be loaded now."""


class Draining(RetryLater):
    """The server is shutting down and takes no new requests."""


class RequestTimeout(RequestError):
    """The request was not answered within its deadline."""


class RequestCancelled(RequestError):
    """The request's client went away."""


class EngineFailed(RequestError):
    """The engine, not the request, is at fault."""


def _listed(problems: tuple[str, ...]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems:\n" + "\n".join(f"  {problem}" for problem in problems)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean "max_steps"?`, or nothing when no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else ""


def doubled(names: Iterable[Name]) -> Name | None:
    """The first name that stands a second time; None where each stands once. In one pass."""
    seen: set[Name] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def install_command(*extras: str) -> str:
    """Name the command that installs extras, from a checkout: on PyPI, `workflow` is another project's name."""
    return f"pip install -e '.[{','.join(extras)}]'"
