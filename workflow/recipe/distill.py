"""`workflow distill`: the commands that a user would type, shown and run; each can be stopped and goes on.

    workflow score TEACHER --data UNLABELLED --out NEW/teacher.jsonl
    (the scores become mount/data/NEW/train.jsonl, the eval rows with true targets eval.jsonl)
    clf.py --data_name NEW --model_init_* STUDENT ...
    workflow score TEACHER --data NEW --split eval; workflow evaluate STUDENT_RUN TEACHER_SCORES

Knows nothing that a user does not.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from workflow import paths as names
from workflow.config.clf_settings import ClfSettings
from workflow.config.flags import parse
from workflow.data.scoring import Scoring, read_scoring
from workflow.data.sources import Row, find_source
from workflow.errors import ConfigError, DataError
from workflow.evaluation.score_files import ROW, SCORE
from workflow.files import whole_file
from workflow.recipe.place import model_to_use

EXAMPLE = (
    "workflow distill --teacher RUN --student MODEL --data unlabelled.jsonl --data_name distilled --max_steps 2000"
)


def distill(given: Namespace, rest: list[str]) -> int:
    """Runs the steps; stops at the first that fails, with its exit code."""
    mount = names.find_mount(given.mount)
    teacher = model_to_use(given.teacher, mount)
    scoring = read_scoring(Path(teacher) / names.SCORING_NAME) or Scoring()
    if scoring.problem not in ("binary", "multiclass"):
        raise ConfigError(f"--teacher {given.teacher}: scores {scoring.problem} targets, which are not distilled")
    new = names.checked_name(given.data_name, what="--data_name")
    run = [
        "--data_name",
        new,
        *_student(given.student, mount),
        *_as_teacher(scoring, rest),
        "--mount",
        str(mount),
        *rest,
    ]
    settings = parse(ClfSettings, run, prog="workflow distill", example=EXAMPLE).settings
    folder = mount / "data" / new
    labelled = find_source(given.eval_data or _own_data(given, teacher), mount)
    scores = folder / "teacher" / "scores.jsonl"
    split = [] if _is_list(given.data) else ["--split", "train"]
    _run(
        ["workflow", "score", given.teacher, "--data", given.data, *split, "--out", str(scores), "--mount", str(mount)]
    )
    _write_rows(folder / "train.jsonl", _soft_rows(scores))
    _write_rows(folder / "eval.jsonl", (row for split_name, _, row in labelled.rows() if split_name == "eval"))
    from workflow.config.cascade import Resolved
    from workflow.console import make_console
    from workflow.recipe.clf_task import ClfTask
    from workflow.recipe.place import Place
    from workflow.runtime import Ranks

    name = ClfTask(Resolved(settings), Place(Ranks(), "cpu", mount, make_console())).run_name
    _run(["clf.py", *run])
    on_eval = folder / "teacher" / "eval_scores.json"
    mounted = ["--mount", str(mount)]
    _run(["workflow", "score", given.teacher, "--data", new, "--split", "eval", "--out", str(on_eval), *mounted])
    reading = ["--labels", *scoring.labels, "--target_range", str(scoring.low), str(scoring.high)]
    out = str(mount / "models" / name / "distillation")
    _run(
        [
            "workflow",
            "evaluate",
            name,
            "--against",
            str(on_eval),
            "--out",
            out,
            *(reading if scoring.problem == "binary" else reading[:-3]),
            *mounted,
        ]
    )
    return 0


def _student(student: str, mount: Path) -> list[str]:
    """The flag that names the student: a folder under mount/models, else a path or a hub name."""
    inside = "/" not in student and (mount / "models" / student).is_dir()
    return ["--model_init_name" if inside else "--model_init_path", student]


def _as_teacher(scoring: Scoring, rest: list[str]) -> list[str]:
    """The teacher's way of reading rows, unless the flags say another."""
    flags: dict[str, list[str]] = {"--labels": [*scoring.labels]}
    if (scoring.low, scoring.high) != (0.0, 1.0):
        flags["--target_range"] = [str(scoring.low), str(scoring.high)]
    if scoring.template is not None:
        flags["--template"] = [scoring.template]
    return [part for flag, values in flags.items() if flag not in rest for part in (flag, *values)]


def _own_data(given: Namespace, teacher: str) -> str:
    """The data set that the teacher was trained on."""
    try:
        record = json.loads((Path(teacher).parent / names.SETTINGS_NAMES[1]).read_text(encoding="utf-8"))
        return str(record["settings"]["data_name"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"--teacher {given.teacher}: is no run, so pass --eval_data NAME, a data set with true targets"
        ) from None


def _is_list(data: str) -> bool:
    """Whether the rows to score are a plain file of rows and no data set with splits."""
    return Path(data).suffix in (".jsonl", ".csv", ".tsv", ".parquet")


def _soft_rows(scores: Path) -> Iterator[Row]:
    """Each scored row with the teacher's score as its target."""
    with scores.open(encoding="utf-8") as file:
        for line in file:
            record: dict[str, Any] = json.loads(line)
            yield {**{key: value for key, value in record[ROW].items() if key != "split"}, "target": record[SCORE]}


def _write_rows(path: Path, rows: Iterator[Row]) -> None:
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path}: there would be no rows in it; --eval_data NAME names a data set with eval rows")
    with whole_file(path) as file:
        for row in chain([first], rows):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _run(command: list[str]) -> None:
    """Shows and runs a command; exits with its code if it fails."""
    program = ["-m", "workflow"] if command[0] == "workflow" else ["-m", "workflow.clf"]
    print(f"$ {shlex.join(command if command[0] == 'workflow' else ['python3', *command])}", flush=True)
    code = subprocess.run([sys.executable, *program, *command[1:]], check=False).returncode
    if code:
        sys.exit(code)
