"""How fast the quickstart trains beside busy neighbours and without them; prints one JSON line.

    python benchmarks/busy.py [--rounds 3] [--steps 400] [--neighbours 2] [--contenders before now one-thread short-spin passive]

Tokens a second of the quickstart's tiny model, each run a program of its own: the median over its `metrics.jsonl` but for the first line, then the
median over rounds. Contenders and places are interleaved within a round. `before` is libgomp as torch finds it (a thread a CPU, 300,000 spins), `now` what
`workflow/threads.py` chooses when the program starts. A neighbour is a process that computes without end. `worst` is the slowest 25 updates.
Ratios are against `before` on the idle machine; `threads` is what `now` chose. Measure on a machine on which nothing else runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workflow.recipe.quickstart import commands

ROOT = Path(__file__).resolve().parents[1]
EVERY = 25
CPUS = str(len(os.sched_getaffinity(0)))
CONTENDERS = {
    "before": {"OMP_NUM_THREADS": CPUS, "GOMP_SPINCOUNT": "300000"},
    "now": {},
    "one-thread": {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "300000"},
    "short-spin": {"OMP_NUM_THREADS": CPUS, "GOMP_SPINCOUNT": "2000"},
    "passive": {"OMP_NUM_THREADS": CPUS, "OMP_WAIT_POLICY": "passive"},
}
CHOICE = "import os; from workflow.threads import settle_threads as s; s(); print(os.environ.get('OMP_NUM_THREADS', 'a thread a CPU'))"


def main() -> None:
    """Reads the flags and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--neighbours", type=int, default=2)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=["before", "now"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        mount = Path(place)
        (mount / "data").symlink_to(ROOT / "mount/data")
        run({}, "-m", *commands(mount, prompt="")[0])  # the quickstart's model
        print(json.dumps(measure(mount, given)))


def measure(mount: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The medians, by contender and place."""
    places = {"idle": 0, f"{given.neighbours} neighbours": given.neighbours}
    speeds: dict[str, dict[str, list[list[float]]]] = {
        name: {place: [] for place in places} for name in given.contenders
    }
    threads = {}
    for number in range(given.rounds):
        for place, count in places.items():
            with neighbours(count):
                threads[place] = run({}, "-c", CHOICE).strip()
                for name in given.contenders:
                    speeds[name][place].append(train(mount, CONTENDERS[name], f"{name} {count} {number}", given.steps))
    medians = {
        name: {place: statistics.median(map(statistics.median, found)) for place, found in of.items()}
        for name, of in speeds.items()
    }
    base = medians.get("before", {}).get("idle")
    return {
        "cpus": int(CPUS),
        "threads": threads,
        "tokens_per_s": {name: {place: round(speed) for place, speed in of.items()} for name, of in medians.items()},
        "worst": {
            name: {place: round(min(map(min, found))) for place, found in of.items()} for name, of in speeds.items()
        },
        "ratios": {name: {place: round(speed / base, 3) for place, speed in of.items()} for name, of in medians.items()}
        if base
        else {},
        "load_average": os.getloadavg(),
    }


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that compute inside the block."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def train(mount: Path, environment: dict[str, str], name: str, steps: int) -> list[float]:
    """Tokens a second of every 25 updates but the first."""
    settings = ("--config", ROOT / "configs/quickstart.json", "--mount", mount, "--training_run_name", name)
    length = (
        "--max_steps",
        steps,
        "--eval_steps",
        steps,
        "--logging_steps",
        EVERY,
        "--no_eval_at_start",
        "--no_eval_at_end",
    )
    run(environment, ROOT / "seq2seq.py", *settings, *length)
    lines = [json.loads(line) for line in (mount / "models" / name / "metrics.jsonl").read_text().splitlines()]
    return [line["tokens_per_s"] for line in lines if "tokens_per_s" in line][1:]


def run(environment: dict[str, str], *arguments: object) -> str:
    """A program, with none of the caller's settings of threads; its output."""
    own = ("OMP_", "GOMP_", "KMP_", "MKL_", "WORKFLOW_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    path = os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")]).strip(os.pathsep)
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**kept, "PYTHONPATH": path, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
