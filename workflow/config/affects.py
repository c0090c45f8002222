"""What the settings of the training programs change, from which the rules for resuming, naming and pooling runs derive."""

from __future__ import annotations

import functools

from workflow.config.clf_settings import ClfSettings
from workflow.config.sections import Affects, affected_by, section_fields
from workflow.config.settings import Seq2SeqSettings

PROGRAMS = (Seq2SeqSettings, ClfSettings)


@functools.cache
def names_that_affect(*kinds: Affects) -> frozenset[str]:
    """The flat names of the settings that change one of these."""
    return frozenset(
        name for program in PROGRAMS for name in section_fields(program) if affected_by(program, name) in kinds
    )
