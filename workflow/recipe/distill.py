"""`workflow distill`: the commands that a user would type, shown and run; each can be stopped and goes on.

    workflow score TEACHER --data UNLABELLED --split train --out NEW/teacher/scores.jsonl
    (the scores become mount/data/NEW/train.jsonl, the eval rows with true targets eval.jsonl)
    clf.py --data_name NEW --model_init_* STUDENT ...
    workflow score TEACHER --data NEW --split eval; workflow evaluate STUDENT_RUN TEACHER_SCORES

Knows nothing that a user does not.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from argparse import Namespace
from decimal import Decimal
from pathlib import Path

from workflow import paths as names
from workflow.config.cascade import Resolved
from workflow.config.clf_settings import ClfSettings
from workflow.config.flags import named_settings, parse
from workflow.console import make_console
from workflow.data.scoring import Scoring
from workflow.data.sources import Source, find_source
from workflow.errors import ConfigError
from workflow.recipe import distill_data
from workflow.recipe.clf_task import ClfTask
from workflow.recipe.place import Place, model_to_use
from workflow.recipe.score_job import fingerprint
from workflow.recipe.scorers import scoring_of
from workflow.runtime import PARENT_VARIABLE, Ranks

EXAMPLE = (
    "workflow distill --teacher RUN --student MODEL --data unlabelled.jsonl --data_name distilled --max_steps 2000"
)


def distill(given: Namespace, rest: list[str]) -> int:
    """Runs the steps, once nothing is left that can be refused; stops at the first that fails, with its exit code."""
    mount = names.find_mount(given.mount)
    teacher = model_to_use(given.teacher, mount)
    scoring = _teachers_scoring(given.teacher, teacher)
    new = names.checked_name(given.data_name, what="--data_name")
    folder = mount / "data" / new
    distill_data.check_free(folder)
    if scoring.template is not None and "{" in str(folder):
        raise ConfigError(
            f"{folder}: holds a brace, so that --template could not name a file in it; choose another --mount"
        )
    template = folder / "teacher" / "template.txt"

    def run_of(own: str | None) -> list[str]:
        start = ["--data_name", new, *_student(given.student, mount), *_as_teacher(scoring, rest, own)]
        return [*start, "--mount", str(mount), *rest]

    name = _checked_run(run_of(scoring.template), scoring, mount)
    unlabelled, labelled = (
        find_source(data, mount, given.quoting) for data in (given.data, _eval_data(given, teacher))
    )
    distill_data.check_eval_rows(labelled, scoring)
    distill_data.claim(folder, _made_of(teacher, unlabelled, labelled))

    score = ["workflow", "score", given.teacher, "--mount", str(mount)]
    scores, on_eval = folder / "teacher" / "scores.jsonl", folder / "teacher" / "eval_scores.json"
    _run([*score, "--data", given.data, "--split", "train", "--quoting", given.quoting, "--out", str(scores)])
    distill_data.write_train_rows(folder, scores, scoring)
    distill_data.write_eval_rows(folder, labelled, scoring)
    if scoring.template is not None:
        distill_data.write_template(template, scoring.template)
    # The template by its file: in a text on the command line, a backslash before an n would become a newline.
    _run(["clf.py", *run_of(str(template))])
    _run([*score, "--data", new, "--split", "eval", "--out", str(on_eval)])
    found = str(mount / "models" / name / "distillation")
    compared = ["workflow", "evaluate", name, "--against", str(on_eval), "--out", found, "--mount", str(mount)]
    _run([*compared, *(part for flag in _reading(scoring).values() for part in flag)])
    return 0


# ---- what must fit together


def _teachers_scoring(given: str, teacher: str) -> Scoring:
    scoring = scoring_of(teacher)[0] or Scoring()
    if scoring.problem not in ("binary", "multiclass"):
        raise ConfigError(f"--teacher {given}: scores {scoring.problem} targets, which are not distilled")
    return scoring


def _checked_run(run: list[str], scoring: Scoring, mount: Path) -> str:
    """The name of the student's run. Raises ConfigError for settings that do not fit the teacher, or the steps to come."""
    settings = parse(ClfSettings, run, prog="workflow distill", example=EXAMPLE).settings
    score = settings.score
    mine = Scoring(score.kind, score.labels, *(score.target_range or (0.0, 1.0)))
    theirs = Scoring(scoring.problem, scoring.labels, scoring.low, scoring.high)
    if scoring.problem == "binary" and len(score.labels) == 2:  # targets are numbers, whatever a model's words for them
        mine = Scoring(mine.problem, theirs.labels, mine.low, mine.high)
    if differences := mine.differences(theirs):
        raise ConfigError(f"the student must learn what the teacher scores: {'; '.join(differences)}")
    unfit = {
        "scores_only": settings.run.scores_only,
        "no_train": settings.run.no_train,
        "debug": settings.run.debug,
        "no_eval_at_end": settings.evaluation.no_eval_at_end,
    }
    if flags := [f"--{flag}" for flag, is_set in unfit.items() if is_set]:
        raise ConfigError(
            f"{', '.join(flags)}: leave out of distilling, which trains, and compares predictions for all eval rows"
        )
    task = ClfTask(Resolved(settings), Place(Ranks(), "cpu", mount, make_console(quiet=True)))
    task.check_settings()
    return task.run_name


def _eval_data(given: Namespace, teacher: str) -> str:
    """The data set with true targets: as given, else the one that the teacher was trained on."""
    if given.eval_data:
        return str(given.eval_data)
    try:
        record = json.loads((Path(teacher).parent / names.SETTINGS_NAMES[1]).read_text(encoding="utf-8"))
        return str(record["settings"]["data_name"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"--teacher {given.teacher}: is no run, so pass --eval_data NAME, a data set with true targets"
        ) from None


def _made_of(teacher: str, unlabelled: Source, labelled: Source) -> dict[str, str]:
    return {
        "teacher": teacher,
        "weights": fingerprint(teacher),
        "data_hash": unlabelled.data_hash,
        "eval_data_hash": labelled.data_hash,
    }


# ---- the commands


def _student(student: str, mount: Path) -> list[str]:
    """The flag that names the student: a folder under mount/models, else a path or a hub name."""
    inside = "/" not in student and (mount / "models" / student).is_dir()
    return ["--model_init_name" if inside else "--model_init_path", student]


def _reading(scoring: Scoring) -> dict[str, list[str]]:
    """Flags that say what scores are, by the setting's name."""
    flags = {"problem": ["--problem", scoring.problem], "labels": ["--labels", *scoring.labels]}
    if (scoring.low, scoring.high) != (0.0, 1.0):
        # Not 1e-05, which argparse takes for a flag where it is negative.
        bounds = (f"{Decimal(repr(float(bound))):f}" for bound in (scoring.low, scoring.high))
        flags["target_range"] = ["--target_range", *bounds]
    return flags


def _as_teacher(scoring: Scoring, rest: list[str], template: str | None) -> list[str]:
    """The teacher's way of reading rows, unless the flags say another; `template` is its text, or a file of it."""
    flags = _reading(scoring)
    if scoring.template is not None:
        flags["template"] = [f"--template={template}"]
    said = named_settings(ClfSettings, rest)
    return [part for name, flag in flags.items() if name not in said for part in flag]


def _run(command: list[str]) -> None:
    """Shows and runs a command, which dies with this process; exits with its code if it fails."""
    program = ["-m", "workflow"] if command[0] == "workflow" else ["-m", "workflow.clf"]
    print(f"$ {shlex.join(command if command[0] == 'workflow' else ['python3', *command])}", flush=True)
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    code = subprocess.run([sys.executable, *program, *command[1:]], check=False, env=environment).returncode
    if code:
        sys.exit(code)
