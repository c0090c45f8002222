"""How many threads a process computes with, and how they wait for each other, by what the machine gives; before torch is loaded.

libgomp's threads spin while they wait. On an idle machine that is fastest. Beside other programs a thread spins away the time that the one
it waits for would need; fewer threads do better there, and short waits. libgomp reads its variables when torch loads it, so that they are
set first. What the user has set stays.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from workflow.rank_variables import find_ranks, local_size

THREADS = "OMP_NUM_THREADS"
SPIN = "GOMP_SPINCOUNT"
CHOSEN = "WORKFLOW_CHOSEN"
"""Names the variables that a process of ours has set, which its children choose anew."""
OF_THREADS = (THREADS, "MKL_NUM_THREADS")
OF_WAITING = (SPIN, "OMP_WAIT_POLICY")
SHORT_SPIN = "2000"
WINDOW_S, NUM_WINDOWS = 0.1, 4
SPARE = 0.5
"""CPUs of which others may use as much on a machine that counts as idle."""


def settle_threads() -> None:
    """Sets what is best here; the first thing that a program does. Without effect where torch has been loaded."""
    if "torch" not in sys.modules and sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, ValueError):
            settle(os.environ)


def settle(env: MutableMapping[str, str]) -> None:
    """Writes the choice into `env`."""
    forget_chosen(env)
    is_alone = env.get(THREADS) == "1"  # and waits for nobody: so torchrun sets it, too
    if is_alone or (any(name in env for name in OF_THREADS) and _waits_as_said(env)):
        return
    cpus, local = available_cpus(), _ranks_here(env)
    free = None if local > 1 else free_cpus(cpus)  # ranks that start together would take each other for neighbours
    chosen = choose(env, cpus=max(1, cpus // local), free=free)
    if chosen:
        env.update(chosen, **{CHOSEN: " ".join(chosen)})


def forget_chosen(env: MutableMapping[str, str]) -> None:
    """Removes what a process of ours has chosen."""
    for name in env.pop(CHOSEN, "").split():
        env.pop(name, None)


def choose(env: Mapping[str, str], *, cpus: int, free: float | None) -> dict[str, str]:
    """The variables to set for a process that may use `cpus` CPUs, of which about `free` are idle (None: not known).

    At least half of them: neighbours leave, and a program that competes with as many as there are CPUs is given as much.
    """
    is_busy = free is not None and free < cpus - SPARE
    threads = cpus if free is None or not is_busy else min(cpus, max(round(free), math.ceil(cpus / 2)))
    chosen = {}
    if not any(name in env for name in OF_THREADS) and threads < len(os.sched_getaffinity(0)):
        chosen[THREADS] = str(threads)
    if is_busy and not _waits_as_said(env):
        chosen[SPIN] = SHORT_SPIN
    return chosen


def share_of_threads(env: Mapping[str, str], parts: int, *, most: int | None = None) -> str:
    """OMP_NUM_THREADS for each of several processes side by side: as the user says, else `most`, else their share."""
    given = {**env}
    forget_chosen(given)
    if THREADS in given:
        return given[THREADS]
    total = int(env[THREADS]) if env.get(THREADS, "").isdigit() else available_cpus()
    return str(most or max(1, total // parts))


def available_cpus() -> int:
    """CPUs that this process may use: by its affinity and its control groups' quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min([count, *_quotas()])))


def free_cpus(most: int, *, stat: Path = Path("/proc/stat")) -> float:
    """About how many of the CPUs that this process may use are idle: the most of some short looks, one where that is all."""
    free = 0.0
    for _ in range(NUM_WINDOWS):
        before = _ticks(stat)
        time.sleep(WINDOW_S)
        after = _ticks(stat)
        shares = [
            (after[cpu][0] - before[cpu][0]) / max(1, after[cpu][1] - before[cpu][1]) for cpu in before if cpu in after
        ]
        free = max(free, sum(shares))
        if free >= most - SPARE:
            break
    return free


def _ticks(stat: Path) -> dict[int, tuple[int, int]]:
    """CPU -> (idle ticks, all ticks), of those that this process may use."""
    mine, found = os.sched_getaffinity(0), {}
    for line in stat.read_text(encoding="ascii").splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in mine:
            counts = [int(count) for count in ticks[:8]]
            found[int(name[3:])] = (counts[3] + counts[4], sum(counts))
    return found


def _quotas(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[float]:
    """CPUs that this process's control groups grant it, from its own up."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "cpu" not in kinds.split(","):
                continue
            base = root / "cpu" if kinds else root
            group = base / path.lstrip("/")
            for folder in (group, *group.parents):
                found += _quota(folder)
                if folder == base:
                    break
    return found


def _quota(folder: Path) -> list[float]:
    with contextlib.suppress(OSError, ValueError):
        given = folder / "cpu.max"
        if given.is_file():
            quota, period = given.read_text(encoding="ascii").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
            )
        if float(quota) > 0:  # "max" and -1: none
            return [float(quota) / float(period)]
    return []


def _ranks_here(env: Mapping[str, str]) -> int:
    """Ranks that share the CPUs with this one; 1 where its launcher gave it CPUs of its own."""
    if len(os.sched_getaffinity(0)) < (os.cpu_count() or 1):
        return 1
    with contextlib.suppress(ValueError):
        found = find_ranks(env)
        return local_size(env, found[1]) if found is not None else 1
    return 1


def _waits_as_said(env: Mapping[str, str]) -> bool:
    return any(name in env for name in OF_WAITING) or any(name.startswith("KMP_") for name in env)
