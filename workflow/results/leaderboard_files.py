"""Where a leaderboard's predictions stand, whether they are of the whole test files, and the zip.

Knows nothing of how scores become answers (`leaderboard`). A run's test predictions are RUN/test-TASK.jsonl (or .json),
written by `workflow score`; MNLI's run has test-MNLI-m, test-MNLI-mm and test-AX.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workflow.data.glue import TASKS, TEST, GlueTask, glue_task
from workflow.data.glue_files import LeftOut, find_split, folder_of_task, glue_rows
from workflow.errors import ConfigError, DataError, ResultsError
from workflow.files import whole_file
from workflow.metric_names import higher_is_better, metric_of
from workflow.results.leaderboard import Answers
from workflow.results.runs import Result, Which

SUFFIXES = (".jsonl", ".json")
FIRST_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip can hold: equal answers are equal bytes whenever they are zipped."""


def stem_of(task: GlueTask) -> str:
    """What the task's file is called: MNLI's is MNLI-m."""
    return Path(task.leaderboard).stem


def named_files(given: Sequence[str]) -> dict[str, Path]:
    """`TASK=FILE...` by task. Raises ConfigError."""
    found: dict[str, Path] = {}
    for text in given:
        name, separator, file = text.partition("=")
        if not separator or not file:
            raise ConfigError(f"--predictions {text}: expected TASK=FILE, e.g. CoLA=cola-test.jsonl")
        task = glue_task(name)
        if task.name in found:
            raise ConfigError(f"--predictions {text}: {task.name} is named twice")
        found[task.name] = Path(file)
    return found


@dataclass(frozen=True)
class Unscored:
    """A task whose best run has no scores of its test rows; `file` is where they belong."""

    task: GlueTask
    run: Path

    @property
    def file(self) -> Path:
        """Where the scores are looked for."""
        return self.run / f"test-{stem_of(self.task)}{SUFFIXES[0]}"

    @property
    def advice(self) -> str:
        """The commands that make them."""
        data = f"{stem_of(self.task)}-test"
        return (
            f"{stem_of(self.task)}: workflow data make glue {self.task.name} --glue_dir GLUE --split test --out {data} && "
            f"workflow score {self.run} --data {data} --out {self.file}"
        )


def files_of_runs(results: Sequence[Result], which: Which) -> tuple[dict[str, Path], list[Unscored]]:
    """Each task's file of test predictions, and the tasks whose best run has none.

    Of several runs of a task that have one, the best on the dev rows counts (of equal ones the first).
    """
    done = [result for result in results if result.report is not None]
    found: dict[str, Path] = {}
    unscored: list[Unscored] = []
    for task in TASKS.values():
        runs = [result for result in done if _task_of(result) == (task.trained_on or task.name)]
        runs.sort(key=lambda result: -_merit(result, which))
        files = [file for result in runs if (file := _test_file(result, task))]
        if files:
            found[task.name] = files[0]
        if runs and not _test_file(runs[0], task):  # not even where a worse run has one, which then counts
            unscored.append(Unscored(task, runs[0].place))
    return found, unscored


def check_rows(answers: Answers, glue_dir: Path | None, *, unofficial: bool) -> str:
    """What the number of rows was checked against. Raises ResultsError where it is another.

    The official numbers (`num_test`) are those of the benchmark's own test files, as its data set card counts them.
    """
    count, task = len(answers.answers), answers.task
    checked = []
    if glue_dir is not None:
        try:
            path = find_split(folder_of_task(glue_dir, task), task, TEST)
        except DataError:
            checked.append("no test file given")
        else:
            rows = sum(1 for _ in glue_rows(path, task, LeftOut(), labelled=False))
            if rows != count:
                raise ResultsError(
                    f"{answers.source}: {count} predictions, and {path} has {rows} rows; score that file"
                )
            checked.append(path.name)
    if count == task.num_test:
        return ", ".join([*checked, "official number"])
    if not unofficial:
        raise ResultsError(
            f"{answers.source}: {count} predictions, and GLUE's test file of {task.name} has {task.num_test} rows, "
            "so the leaderboard would refuse it; --unofficial writes it all the same"
        )
    return ", ".join([*checked, f"NOT the official {task.num_test}"])


def write_zip(path: Path, every: Sequence[Answers]) -> None:
    """Writes the files, in the order of the tasks, so that equal answers give equal bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for answers in every:
            entry = zipfile.ZipInfo(answers.task.leaderboard, FIRST_DATE)
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            archive.writestr(entry, answers.text)
    with whole_file(path) as file:
        file.buffer.write(content.getvalue())


def missing_tasks(found: Mapping[str, object]) -> list[GlueTask]:
    """The tasks without predictions, in order."""
    return [task for name, task in TASKS.items() if name not in found]


def _task_of(result: Result) -> str | None:
    try:
        return glue_task(result.labels.get("task", "")).name
    except ConfigError:
        return None


def _merit(result: Result, which: Which) -> float:
    metric = metric_of(result.shown_metrics[0])
    record = result.record(metric, which)
    if record is None or record.value is None:
        return float("-inf")
    return record.value if higher_is_better(metric) else -record.value


def _test_file(result: Result, task: GlueTask) -> Path | None:
    files = (result.place / f"test-{stem_of(task)}{suffix}" for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)
