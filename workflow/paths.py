"""Every file name of the mount and of a run, once.

Knows nothing of what stands in the files. Names given by users stay inside the mount: no separators, no `..`.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from workflow.errors import ConfigError

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
SETTINGS_NAMES = ("training_args.json", "args.json")
SCORES_NAME = "preds.json"
METRICS_NAME = "metrics.json"
"""Beside the predictions of an evaluation without a run."""
CALIBRATION_NAME = "calibration.json"
SCORING_NAME = "scoring.json"
ANSWER_TOKENS_NAME = "answer_tokens.json"
TOKEN_IDS_NAME = "token_ids.json"
PARAM_GROUPS_NAME = "param_groups.json"
REPORT_PAGE_NAME = "report.html"
CARD_NAME = "README.md"
STATE_FOLDER = "training_state"
"""Of a checkpoint: what the model is without."""
PLOTS_NAME = "plots"
LONGEST_NAME = 255
"""Bytes of a name, on all usual file systems."""
LONGEST_RUN_NAME = 200
"""Of one that is made; moved aside, a run's name has some more."""
HASH_DIGITS = 8


def find_mount(given: Path | None = None) -> Path:
    """The mount: the given folder, else `WORKFLOW_MOUNT`, else `/model_mount/` if it exists, else `mount/` here."""
    if given is not None:
        return given
    if from_environment := os.environ.get("WORKFLOW_MOUNT"):
        return Path(from_environment)
    shared = Path("/model_mount")
    return shared if shared.is_dir() else Path("mount")


def cache_dir() -> Path:
    """Where token caches go: `WORKFLOW_CACHE`, else `$XDG_CACHE_HOME/workflow`, else `~/.cache/workflow`."""
    if given := os.environ.get("WORKFLOW_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workflow"


def predictions_folder(name: str) -> Path:
    """Where the predictions of --no_train go: a folder of this name in `WORKFLOW_PREDS`, else in preds/ here."""
    return Path(os.environ.get("WORKFLOW_PREDS") or "preds") / name


def scoring_beside(file: Path) -> Path:
    """The record of how a file of scores was made."""
    return file.with_name(f"{file.name}.{SCORING_NAME}")


def checked_name(name: str, *, what: str) -> str:
    """`name` if it is one plain path component; ConfigError otherwise, so that no name leaves the mount."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name or name.startswith("."):
        raise ConfigError(
            f"{what}: {name!r} is not a plain name (no slashes, no leading dot); pass a path where a path is meant"
        )
    if len(name.encode("utf-8", "surrogateescape")) > LONGEST_NAME:
        raise ConfigError(f"{what}: {name[:40]}... is longer than the {LONGEST_NAME} bytes that a file's name may have")
    return name


def run_name(*parts: str) -> str:
    """The default run name: `{init}_{data}_{seed}` or `{data}_{model}`, slashes as underscores, no leading dot or underscore.

    Of a name that file systems would refuse the end stays, behind a hash of the whole.
    """
    name = "_".join(parts).replace("/", "_").replace("\\", "_").replace(":", "_").lstrip("._")
    whole = name.encode("utf-8", "surrogateescape")
    if len(whole) <= LONGEST_RUN_NAME:
        return name
    digest = hashlib.sha256(whole).hexdigest()[:HASH_DIGITS]
    end = whole[HASH_DIGITS + 1 - LONGEST_RUN_NAME :].decode("utf-8", "ignore")
    return f"{digest}_{end}"


@dataclass(frozen=True)
class RunPaths:
    """The files of one run folder; `settings_name` is the task's name for the file of its settings."""

    root: Path
    settings_name: str = SETTINGS_NAMES[0]

    @property
    def settings(self) -> Path:
        """Every setting with its origin."""
        return self.root / self.settings_name

    @property
    def lock(self) -> Path:
        """Held (flock) by the process that writes the run."""
        return self.root / "run.lock"

    @property
    def micro_batches(self) -> Path:
        """How many tokens a micro-batch may have, where that was found out."""
        return self.root / "micro_batches.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: training and evaluation figures by step."""
        return self.root / "metrics.jsonl"

    @property
    def report(self) -> Path:
        """Written last; a run with a report is a finished run."""
        return self.root / "report.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files."""
        return self.root / "tensorboard"

    @property
    def best(self) -> Path:
        """The model of the best evaluation."""
        return self.root / "checkpoint-best-ckpt"

    @property
    def scores(self) -> Path:
        """The scores of the final step's model (clf)."""
        return self.root / SCORES_NAME

    def step_scores(self, step: int, of: str = "") -> Path:
        """The scores of the model after `step` updates (clf), or of an average then."""
        return self.root / prefixed(f"checkpoint-{step}-{SCORES_NAME}", of)

    def average(self, name: str) -> Path:
        """The model of averaged weights (swa, ema)."""
        return self.root / f"checkpoint-{name}"

    @property
    def param_groups(self) -> Path:
        """Names, rates and members of the optimizer's parameter groups."""
        return self.root / "param_groups.json"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint written after `step` updates."""
        return self.root / f"checkpoint-{step}"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Complete checkpoints by rising step. A folder has this name only after it is complete."""
        found = [
            (int(match[1]), path)
            for path in (self.root.iterdir() if self.root.is_dir() else ())
            if (match := CHECKPOINT.fullmatch(path.name)) and path.is_dir()
        ]
        return sorted(found)


def predictions_name(*, temperature: float, n_samples: int, step: int) -> str:
    """`temperature=0.00_n=1_step=500.json`."""
    return f"temperature={temperature:.2f}_n={n_samples}_step={step}.json"


def prefixed(name: str, of: str) -> str:
    """A file's name, or `swa-NAME` for that of an average."""
    return f"{of}-{name}" if of else name


def model_folder(path: Path) -> Path:
    """`path`, or the model inside it when it is a run folder: its best checkpoint, else its newest."""
    if (path / "config.json").is_file():
        return path
    run = RunPaths(path)
    if run.best.is_dir():
        return run.best
    checkpoints = run.checkpoints()
    return checkpoints[-1][1] if checkpoints else path
