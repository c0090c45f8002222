"""Names as schedulers take them.

Knows nothing of jobs but their names.
"""

from __future__ import annotations

import hashlib
import re

CTL_LONGEST, DNS_LONGEST = 38, 52
"""Kubernetes has 63 for the names of pods, which add an index and a suffix to the Job's."""


def ctl_name(name: str) -> str:
    """Letters, digits and dashes, at most 38."""
    return cut(re.sub(r"[^A-Za-z0-9-]", "", name).strip("-") or "job", CTL_LONGEST)


def dns_name(name: str) -> str:
    """A DNS label: small letters, digits and dashes, a letter first (services need it)."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "job"
    return cut(label if label[0].isalpha() else f"run-{label}", DNS_LONGEST)


def cut(name: str, longest: int) -> str:
    """`name`, or its beginning and six digits of its hash, so that names that begin alike stay apart."""
    if len(name) <= longest:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{name[: longest - 7].rstrip('-')}-{digest}"
