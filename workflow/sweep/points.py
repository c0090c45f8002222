"""Points: single runs of a study, with settings valid by the program's own rules, named and told apart by content.

Knows nothing of where points come from (`grid`, `suite`, `ablation`) or how they are run (`driver`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workflow.config.cascade import FLAGS, Layer, Resolved, flatten, resolve
from workflow.config.rivals import Unset, outweighed, without_silenced
from workflow.config.sections import section_fields
from workflow.errors import ConfigError
from workflow.paths import checked_name
from workflow.run_folder import FREE_TO_CHANGE
from workflow.sweep.entries import ENTRIES, Entry, entry_named
from workflow.training.ds_file import check_deepspeed

LONGEST_NAME = 60
HASH_DIGITS = 6
OF_THE_STUDY = frozenset({"training_run_name", "mount", "overwrite_output_dir"})
"""Settings that a study gives its runs itself; a base file may hold them, for other uses."""
STILL_IN_NAMES = frozenset({"save_steps", "scores_only", "pred_dir"})
"""Settings that change no numbers, but count in names of points and searches, so that studies from before that was known go on."""
NO_RUNS = ("no_train", "dry_run")
"""Settings with which a program leaves no run."""


@dataclass(frozen=True)
class Draft:
    """A point to be: layers of raw settings, later ones winning; labels for tables; `title` for the name.

    `swept` names what the study varies, which belongs to a point's identity even where it changes no numbers.
    """

    entry: str
    layers: tuple[Layer, ...]
    labels: Mapping[str, Any]
    title: str
    swept: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    varied: tuple[str, ...] = ()
    """What else differs between points, and must have a say in those that set it."""


@dataclass(frozen=True)
class Point:
    """One run: everything that is set, flat and JSON-ready, and what tables call it."""

    name: str
    entry: str
    run: str
    settings: Mapping[str, Any]
    labels: Mapping[str, Any]
    metrics: tuple[str, ...]
    slice: str | None = None
    """The part of the run's eval rows that this point is about; points of one run share its folder."""
    digest: str = field(default="", compare=False, repr=False)
    """The whole hash of its content; empty for a point that was read back from a file."""
    resolved: Resolved[Any] | None = field(default=None, compare=False, repr=False)
    """The settings as the program itself will see them; None for a point that was read back from a file."""

    def as_json(self) -> dict[str, Any]:
        """The record of study.json."""
        return {
            "name": self.name,
            "entry": self.entry,
            "run": self.run,
            "labels": dict(self.labels),
            "metrics": list(self.metrics),
            "settings": dict(self.settings),
            **({"slice": self.slice} if self.slice is not None else {}),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Point:
        """A point of study.json. KeyError or TypeError where it is none."""
        return cls(
            str(record["name"]),
            str(record["entry"]),
            str(record["run"]),
            without_silenced(ENTRIES[record["entry"]].settings_type, dict(record["settings"]))
            if record["entry"] in ENTRIES
            else dict(record["settings"]),
            dict(record["labels"]),
            tuple(record["metrics"]),
            record.get("slice"),
        )


def make_points(drafts: Iterable[Draft], *, study: str) -> list[Point]:
    """The drafts as points, each content once, in order.

    Raises ConfigError with every problem of every draft, each told once.
    """
    problems: dict[str, None] = {}
    points: dict[str, Point] = {}
    for draft in drafts:
        try:
            point = make_point(draft, study=study)
            if point.name in points and points[point.name].digest != point.digest:  # one name in sixteen million
                point = make_point(draft, study=study, digits=2 * HASH_DIGITS)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
        else:
            points.setdefault(point.name, point)
    if problems:
        raise ConfigError(*problems)
    return list(points.values())


def make_point(draft: Draft, *, study: str, digits: int = HASH_DIGITS) -> Point:
    """One point. Raises ConfigError with all its problems."""
    entry = entry_named(draft.entry, where=str(draft.labels.get("task", study)))
    resolved = resolve(entry.settings_type, draft.layers)
    flat = resolved.flat()
    if impossible := [name for name in NO_RUNS if flat.get(name)]:
        raise ConfigError(
            *(f"{resolved.origin(name)}: {name}: leaves no run to be compared; leave it out" for name in impossible)
        )
    check_deepspeed(str(flat["deepspeed"]), may_be_elsewhere=True)
    given = {name: flat[name] for name in resolved.origins}
    if problems := silenced(entry, (*draft.swept, *draft.varied), resolved.origins, given, resolved.unset):
        raise ConfigError(*problems)
    settings = {
        name: given[name] for name in section_fields(entry.settings_type) if name in given and name not in OF_THE_STUDY
    }
    metrics = draft.metrics or (str(flat[entry.metric_setting]),)
    digest = content_hash(entry, resolved, draft.swept)
    name = readable_name(draft.title, digest[:digits])
    labels = {**_usual_labels(settings, flat), **draft.labels}
    return Point(name, entry.name, run_of(study, name), settings, labels, metrics, digest=digest, resolved=resolved)


def silenced(
    entry: Entry,
    swept: Sequence[str],
    origins: Mapping[str, str],
    values: Mapping[str, Any],
    unset: Mapping[str, Unset],
) -> list[str]:
    """Problems of a study that varies what has no say, or that takes out what the command line says."""
    reasons = outweighed(entry.settings_type, values, unset)
    return [
        *(
            f"{origins.get(name.partition('.')[0], entry.name)}: {name} varies, but {reasons[name]}; leave one of them out"
            for name in swept
            if name in reasons
        ),
        *(
            f"{origins.get(whole, entry.name)}: {name} varies, but {whole} is off; leave one of them out"
            for name in swept
            for whole, dot, _ in [name.partition(".")]
            if dot and values.get(whole, ...) is None
        ),
        *(
            f"{gone.by_origin}: {gone.by} would unset --{name} of the command line; leave one of them out"
            for name, gone in unset.items()
            if gone.origin == FLAGS
        ),
    ]


def run_of(study: str, name: str) -> str:
    """The run folder's name under `models/`."""
    return checked_name(f"{study}-{name}", what="--out: the folder's name, which begins its runs' names")


def content_hash(entry: Entry, resolved: Resolved[Any], swept: Sequence[str] = ()) -> str:
    """What tells runs apart: the settings that are not defaults and can change numbers, or that the study varies."""
    defaults = flatten(entry.settings_type())
    left_out = (OF_THE_STUDY | FREE_TO_CHANGE - STILL_IN_NAMES) - set(swept)
    content = {
        name: value for name, value in resolved.flat().items() if name not in left_out and value != defaults[name]
    }
    text = json.dumps([entry.name, content], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _usual_labels(settings: Mapping[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    model = next(
        (
            settings[name]
            for name in ("model_init_path", "model_init_name", "model_pretrain_name")
            if settings.get(name)
        ),
        "",
    )
    return {"task": str(flat["data_name"]), "model": str(model), "setting": "", "seed": flat["seed"]}


def readable_name(title: str, digest: str) -> str:
    """`lr-0.001-batch_size-16-seed-0-3fa94c` made of what file systems, Slurm and Kubernetes take; at most 60 characters."""
    slug = re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-.")[: LONGEST_NAME - len(digest) - 1].strip("-.")
    return f"{slug or 'point'}-{digest}"


def value_text(value: Any) -> str:
    """A setting's value in labels and names: `0.001`, `1e-05`, `true`, compact JSON for objects."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
