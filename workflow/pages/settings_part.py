"""Settings, environment and parameter groups as tables: what differs first, what was set next, the rest folded away.

Knows nothing of what a setting means.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from workflow.pages.markup import folded, long_text, note, number, table, text
from workflow.pages.run_files import RunFiles

OF_A_NAME = frozenset({"training_run_name", "mount", "overwrite_output_dir", "resume"})
"""Settings that say where a run is, not what it does."""
MOST_PARAMETERS = 6


def settings_part(runs: Sequence[RunFiles]) -> str:
    """With several runs what differs; what did not stay at its default, with its origin; everything."""
    parts = [_differences(runs)] if len(runs) > 1 else []
    for run in runs:
        whose = f" of {run.name}" if len(runs) > 1 else ""
        chosen = {name: value for name, value in run.settings.items() if run.origins.get(name, "default") != "default"}
        given = _settings_table(f"Settings{whose} that were given", run, chosen)
        everything = folded(
            f"All {len(run.settings)} settings{whose}", _settings_table(f"All settings{whose}", run, run.settings)
        )
        parts.append((given if chosen else note(f"All settings{whose} are defaults.")) + everything)
    return "".join(parts)


def _differences(runs: Sequence[RunFiles]) -> str:
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in OF_A_NAME)
    by_name = {name: [run.settings.get(name) for run in runs] for name in names}
    rows = [
        [text(name), *map(_value, values)]
        for name, values in by_name.items()
        if len({json.dumps(value, default=str) for value in values}) > 1
    ]
    hashes = [run.data_hash for run in runs]
    if len(set(hashes)) > 1:
        rows.append(["hash of the data", *(text((value or "unknown")[:12]) for value in hashes)])
    if not rows:
        return note("These runs have the same settings and data.")
    return table("Settings that differ between the runs", ["setting", *(text(run.name) for run in runs)], rows)


def _settings_table(caption: str, run: RunFiles, chosen: Any) -> str:
    rows = [[text(name), _value(value), text(run.origins.get(name, "default"))] for name, value in chosen.items()]
    return table(caption, ["setting", "value", "from"], rows, kind="settings")


def _value(value: Any) -> str:
    return f"<code>{long_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str), longest=300)}</code>"


def groups_part(run: RunFiles) -> str:
    """The optimizer's parameter groups."""
    if not run.groups:
        return ""
    rows = []
    for group in run.groups:
        names = [str(name) for name in group.get("parameters") or []]
        more = f" and {len(names) - MOST_PARAMETERS} more" if len(names) > MOST_PARAMETERS else ""
        shown = ", ".join(names[:MOST_PARAMETERS]) + more
        rates = (number(_as_number(group.get(key))) for key in ("initial_lr", "weight_decay"))
        rows.append([text(group["name"]), *rates, str(len(names)), f"<code>{long_text(shown, longest=300)}</code>"])
    head = ["group", "initial rate", "weight decay", "tensors", "parameters"]
    return folded(f"{len(rows)} parameter groups", table("Parameter groups", head, rows))


def _as_number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def environment_part(runs: Sequence[RunFiles]) -> str:
    """Back end, hardware, versions, commit, by run."""
    found = {run.name: _environment(run) for run in runs}
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    if not names:
        return note("The environment stands in report.json, which a run writes last.")
    rows = [[text(name), *(text(values.get(name, "")) for values in found.values())] for name in names]
    return table("Environment", ["", *map(text, found)], rows)


def _environment(run: RunFiles) -> dict[str, Any]:
    report = run.report
    if report is None:
        return {}
    nested = {"backend": report.backend, **report.environment}
    found: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            found |= {f"{name}: {key}": part for key, part in value.items()}
        else:
            found[name] = value
    speed = report.speed
    return found | {
        "tokens a second": number(speed.tokens_per_s),
        "examples a second": number(speed.examples_per_s),
        "seconds of training": number(speed.train_seconds),
        "share of peak (MFU)": number(speed.mfu),
    }
