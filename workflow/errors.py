"""Every error that a user can cause, as one tree; each says where, what is wrong, and what to do.

Knows neither exit codes' printing nor HTTP: `cli.py` and the server translate the tree once each.

    WorkflowError
    |- ConfigError       a flag, a settings file or a combination of settings       exit 2
    |- DataError         a data file, a split, a row                                exit 2
    |- ModelError        a checkpoint, a tokenizer, an architecture                 exit 2
    |- RunExistsError    a run folder that is in use or holds another run           exit 2
    |- ResultsError      a report that cannot be read                               exit 2
    |- CheckpointError   a checkpoint that cannot be written or continued from      exit 1
    `- BackendError      training cannot go on (non-finite loss, a lost rank, ...)  exit 1
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WorkflowError(Exception):
    """Base of all errors whose text is meant for the user; printed without a traceback."""

    exit_code = 1
    known_to_all = False
    """Whether every rank raised this same error, so that the first rank alone prints it."""


class ConfigError(WorkflowError):
    """A flag, a settings file or a combination of settings is wrong."""

    exit_code = 2


class DataError(WorkflowError):
    """A data file cannot be used; the text names file, split, row and key."""

    exit_code = 2


class ModelError(WorkflowError):
    """A checkpoint or tokenizer cannot be used."""

    exit_code = 2


class RunExistsError(WorkflowError):
    """The run folder is held by another process or belongs to a run with other settings."""

    exit_code = 2


class ResultsError(WorkflowError):
    """A report cannot be read."""

    exit_code = 2


class CheckpointError(WorkflowError):
    """A checkpoint could not be written, or cannot be continued from."""


class BackendError(WorkflowError):
    """Training cannot go on."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean "max_steps"?`, or nothing when no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else ""
