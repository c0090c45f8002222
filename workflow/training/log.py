"""What a run says while it trains: `metrics.jsonl`, trackers (TensorBoard among them), and lines or a progress bar for people.

Knows nothing of models. Only the first rank has one of these; the others are silent.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from workflow.files import whole_file
from workflow.paths import RunPaths
from workflow.training.checkpoint import TrainState
from workflow.training.spikes import Spikes
from workflow.training.trackers import Trackers
from workflow.training.trainer import Update


class MetricsFile:
    """`metrics.jsonl`: appended line by line; lines after the step that a run continues from are dropped."""

    def __init__(self, path: Path, *, continue_from: int, without_evaluation: bool = False) -> None:
        kept = [line for line in _lines(path) if _step(line) <= continue_from] if continue_from else []
        if without_evaluation:  # a run that was stopped twice may have written it, and will again
            kept = [line for line in kept if _step(line) < continue_from or '"eval_loss"' not in line]
        with whole_file(path) as file:
            file.writelines(kept)
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        """One object a line, on disk at once."""
        self._file.write(json.dumps(values, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [line for line in file if line.endswith("\n")]


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62  # a line that a crash cut: drop it


class TrainingLog:
    """Says each update to files and people."""

    def __init__(
        self, console: Console, paths: RunPaths, state: TrainState, trackers: Trackers, *, max_steps: int, every: int
    ) -> None:
        self.console = console
        self.every = every
        self.max_steps = max_steps
        self.spikes = Spikes()
        continue_from = state.step
        self.file = MetricsFile(paths.metrics, continue_from=continue_from, without_evaluation=state.owes_evaluation)
        self.trackers = trackers
        self.bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[says]}", markup=False),
            )
            self.bar = Progress(*columns, console=console)
            self.task = self.bar.add_task("training", total=max_steps, completed=continue_from, says="")
            self.bar.start()

    def after_step(self, state: TrainState, update: Update) -> None:
        """A hook of the trainer."""
        if self.bar is not None:
            self.bar.update(
                self.task, completed=update.step, says=f"loss {update.loss:.4f}  {update.tokens_per_s:,.0f} tokens/s"
            )
        if update.skipped is not None:
            self._say_skipped(update)
            return
        if told := self.spikes.look(update.loss):
            self._say(update, "note", told)
        if update.step % self.every and update.step not in (1, self.max_steps):
            return
        values: dict[str, Any] = {
            "step": update.step,
            "loss": update.loss,
            "grad_norm": update.grad_norm,
            "lr": update.lr,
            "tokens_per_s": round(update.tokens_per_s, 1),
            "examples": state.examples,
        }
        if update.rates:
            values["lrs"] = dict(update.rates)
        self.write(values, group="train")
        if self.bar is None:
            left = state.seconds / max(1, state.step) * (self.max_steps - state.step)
            self.console.print(
                f"step {update.step}/{self.max_steps}  loss {update.loss:.4f}  grad_norm {update.grad_norm:.3f}  lr {update.lr:.2e}  "
                f"{update.tokens_per_s:,.0f} tokens/s  {left / 60:.1f} min left"
            )

    def _say_skipped(self, update: Update) -> None:
        fault = update.skipped
        assert fault is not None
        self.file.write({"step": update.step, "skipped": fault.what, "rows": list(fault.rows)})
        self._say(update, "left out", f"{fault}; the weights are as before")

    def _say(self, update: Update, what: str, text: str) -> None:
        start = f"step {update.step}/{self.max_steps}  "
        self.console.print(Text.assemble(start, (what, "yellow"), f"  {text}"), soft_wrap=True)

    def write(self, values: Mapping[str, Any], *, group: str) -> None:
        """One line of figures with their step."""
        self.file.write(values)
        self.trackers.log(values["step"], values, group)

    def saved(self, step: int) -> None:
        """A checkpoint was written."""
        self.trackers.log(step, {}, "checkpoint")

    def close(self) -> None:
        """Ends the bar and closes the file; trackers end later, after the report."""
        with contextlib.suppress(Exception):
            if self.bar is not None:
                self.bar.stop()
        self.file.close()
