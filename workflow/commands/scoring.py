"""`workflow score`, `workflow evaluate` and `workflow distill`.

Knows nothing of models or metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflow.commands.parsing import (
    CommandParser,
    add_meaning,
    add_mount,
    add_quoting,
    command_parser,
    output_file,
    output_folder,
)
from workflow.config.clf_settings import checked_score
from workflow.errors import ConfigError

if TYPE_CHECKING:
    from workflow.recipe.place import Place

SPLITS = ("train", "eval", "calibration")


def score(argv: Sequence[str]) -> int:
    """Scores a file of any size with a run or a checkpoint, on every visible GPU."""
    parser = command_parser(
        "score",
        "Scores every row of a file, in its order. Killed and started again, it goes on where it stopped.",
        "workflow score stsb_t5 --data unlabelled.jsonl --out scores.jsonl",
    )
    parser.add_argument("model", metavar="RUN", help="a run's name under mount/models, a folder, or a hub name")
    parser.add_argument(
        "--data", "--data_name", required=True, metavar="NAME|FILE", help="rows with inputs; targets may be missing"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=output_file,
        metavar="FILE",
        help=".json for one list, .jsonl for one record a line; -, standard output, gets lines",
    )
    parser.add_argument("--split", choices=SPLITS, help="score the rows of one split; by default all rows")
    parser.add_argument("--scores_only", action="store_true", help="leave the rows out of the records")
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="add pred_calibrated, by the calibration in the checkpoint (binary targets)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an --out of another model or data set")
    parser.add_argument("--batch_size", type=int, default=32, help="rows in one batch (default: 32)")
    parser.add_argument("--shard_rows", type=int, default=4096, help="rows between two saves of a rank (default: 4096)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--nproc", type=int, help="ranks to launch; by default one per visible GPU, or one on CPU")
    _add_reading(parser)
    add_quoting(parser)
    add_mount(parser)
    given = parser.parse_args(argv)
    for name in ("batch_size", "shard_rows"):
        if getattr(given, name) < 1:
            raise ConfigError(f"workflow score: --{name} must be at least 1")
    if given.nproc is not None and given.nproc < 1:
        raise ConfigError("workflow score: --nproc must be at least 1")
    # A head's own labels may be as many as another problem needs.
    checked_score(labels=given.labels, max_length=given.max_length, problem=given.problem if given.labels else None)
    from datetime import timedelta

    from workflow.entry import in_ranks

    def work(place: Place) -> None:
        from workflow.recipe.score import score

        score(given, place)

    # Ranks wait for each other once, at the end; until then each goes at its own pace.
    return in_ranks("workflow", ["score", *argv], given, work, patience=timedelta(days=7))


def _add_reading(parser: CommandParser) -> None:
    """How rows are read, for checkpoints that do not say it themselves."""
    group = parser.add_argument_group("for checkpoints without scoring.json, which runs of clf.py leave")
    group.add_argument(
        "--problem",
        choices=("binary", "multiclass", "multilabel", "regression"),
        help="what its scores are (default: as its configuration says, else by the number of its outputs)",
    )
    group.add_argument(
        "--labels",
        nargs="+",
        help="names of the classes, in the order of the scores (default: the head's own, else no yes)",
    )
    group.add_argument("--template", metavar="FILE|TEXT", help="wraps each row, with {field} for its keys")
    group.add_argument("--max_length", type=int, help="tokens of an input (default: 1024)")
    group.add_argument("--tokenizer", help="tokenizer by path or hub name")


def evaluate(argv: Sequence[str]) -> int:
    """Measures prediction files; several are an ensemble too."""
    parser = command_parser(
        "evaluate",
        "Measures prediction files of scores against the targets in their rows.",
        "workflow evaluate stsb_t5 stsb_bert --slice_by genre\n"
        "  workflow evaluate stsb_t5 --against stsb_bert --out evaluation/t5-or-bert",
    )
    parser.add_argument("predictions", nargs="+", metavar="PREDS", help="prediction files, or runs (their preds.json)")
    parser.add_argument("--against", metavar="PREDS", help="test whether the predictions differ from these")
    parser.add_argument(
        "--ensemble",
        choices=("scores", "ranks"),
        default="scores",
        help="several PREDS: mean of scores, or of ranks (default: scores)",
    )
    parser.add_argument(
        "--data",
        "--data_name",
        metavar="NAME|FILE",
        help="take the targets from this data set's eval rows (files of --scores_only)",
    )
    parser.add_argument("--slice_by", metavar="KEY", help="also measure for each value of this key of the rows")
    parser.add_argument(
        "--out",
        type=output_folder,
        default=Path("evaluation"),
        metavar="DIR",
        help="folder for evaluation.json, .md and plots (default: evaluation)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_meaning(parser)
    add_quoting(parser)
    add_mount(parser)
    given = parser.parse_args(argv)
    from workflow.recipe.evaluate import evaluate

    return evaluate(given)


def distill(argv: Sequence[str]) -> int:
    """Scores unlabelled rows with a teacher and trains a student on the scores."""
    parser = command_parser(
        "distill",
        "Scores rows with a teacher, writes them as a data set with soft targets, trains a student on it by clf.py, and\n"
        "measures both on the same eval rows. All further flags are clf.py's.",
        "workflow distill --teacher stsb_t5 --student tiny-bert --data unlabelled.jsonl --data_name distilled --max_steps 2000",
    )
    parser.add_argument("--teacher", required=True, metavar="RUN", help="a run's name, a folder, or a hub name")
    parser.add_argument(
        "--student", required=True, metavar="MODEL", help="a model under mount/models, a path, or a hub name"
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="NAME|FILE",
        help="the rows to score (a data set's training rows); targets are not looked at",
    )
    parser.add_argument("--data_name", required=True, metavar="NEW", help="the data set to make: mount/data/NEW/")
    parser.add_argument(
        "--eval_data",
        metavar="NAME|FILE",
        help="data set whose eval rows, with true targets, both are measured on; by default the teacher's",
    )
    add_quoting(parser)
    add_mount(parser)
    given, rest = parser.parse_known_args(argv)
    from workflow.recipe.distill import distill

    return distill(given, rest)
