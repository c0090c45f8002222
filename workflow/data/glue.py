"""GLUE's tasks: metrics, labels, splits, leaderboard files, and the columns of their TSV files.

Knows nothing of how a file is read (`glue_files`) or of models.

Sources: Wang et al. 2018, "GLUE: A Multi-Task Benchmark and Analysis Platform" (tasks, metrics); the benchmark's own
downloads (file names, columns); the `nyu-mll/glue` data set card (rows of the test splits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workflow.errors import ConfigError, did_you_mean

YES_AND_NO = ("0", "1")
ENTAILMENT = ("not_entailment", "entailment")
NLI = ("entailment", "neutral", "contradiction")
TRAIN, EVAL, TEST = "train", "eval", "test"
SPLITS = (TRAIN, EVAL, TEST)
STS_RANGE = (0.0, 5.0)


@dataclass(frozen=True)
class Columns:
    """Where a headerless file of this many columns has its texts and its label."""

    texts: tuple[int, ...]
    label: int
    width: int
    may_be_longer: bool = False
    """Whether rows of the corpus have more columns behind these, some more than others."""


@dataclass(frozen=True)
class GlueTask:
    """One task. A class is its place in `labels`, which are also what the leaderboard's file says of it."""

    name: str
    texts: tuple[str, ...]
    label: str
    metrics: tuple[str, ...]
    leaderboard: str
    num_test: int
    labels: tuple[str, ...] = YES_AND_NO
    """Empty for STS-B, whose targets are numbers."""
    class_names: tuple[str, ...] = ()
    """What the labels mean, where they do not say it themselves."""
    folder: str = ""
    """Where its files are in a GLUE folder, unless in one of its own name."""
    files: tuple[str, str, str] = ("train", "dev", "test")
    """Names of the files without suffix: to learn from, to measure on, of the leaderboard."""
    other_files: tuple[tuple[str, ...], ...] = ((), (), ())
    """Names under which the corpus itself is distributed, where that is not GLUE's."""
    headerless: tuple[Columns, ...] = ()
    trained_on: str = ""
    """The task whose model answers this one, where it has no training rows of its own use."""
    may_be_cut: bool = False
    """Whether the official files hold rows with too few columns, which everybody leaves out."""

    @property
    def problem(self) -> str:
        """binary, multiclass or regression."""
        return {0: "regression", 2: "binary"}.get(len(self.labels), "multiclass")

    @property
    def names(self) -> tuple[str, ...]:
        """What each class means."""
        return self.class_names or self.labels

    @property
    def settings(self) -> dict[str, Any]:
        """What clf.py needs to know of this task, by the names of its settings; `labels` names classes for people."""
        chosen = {"save_best_metric": self.metrics[0], "problem": self.problem}
        return chosen | ({"labels": list(self.names)} if self.problem == "multiclass" else {})

    def split_files(self, split: str) -> tuple[str, ...]:
        """The names, without suffix, that a split's file may have, GLUE's own first."""
        place = SPLITS.index(split)
        return (self.files[place], *self.other_files[place])

    def answer(self, prediction: Any) -> str:
        """A prediction as the leaderboard's file has it: from the number of a class, or from a number of STS-B."""
        return f"{prediction:.3f}" if self.problem == "regression" else self.labels[prediction]


_PAIR = ("sentence1", "sentence2")
_MNLI_LABEL = "gold_label"

TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            "CoLA",
            ("sentence",),
            "label",
            ("mcc",),
            "CoLA.tsv",
            1063,
            class_names=("unacceptable", "acceptable"),
            other_files=((), (), ("test_unlabelled",)),
            headerless=(Columns((3,), 1, 4),),
        ),
        GlueTask(
            "SST-2", ("sentence",), "label", ("accuracy",), "SST-2.tsv", 1821, class_names=("negative", "positive")
        ),
        GlueTask(
            "MRPC",
            ("#1 String", "#2 String"),
            "Quality",
            ("accuracy", "f1"),
            "MRPC.tsv",
            1725,
            class_names=("not_equivalent", "equivalent"),
            # The corpus itself has no dev file; its test file has labels, in the order of the leaderboard's.
            other_files=(
                ("msr_paraphrase_train", "noheader_train_4076"),
                ("msr_paraphrase_test", "noheader_test_1725"),
                ("msr_paraphrase_test", "noheader_test_1725"),
            ),
            headerless=(Columns((3, 4), 0, 5),),
        ),
        GlueTask(
            "STS-B",
            _PAIR,
            "score",
            ("pearson", "spearman"),
            "STS-B.tsv",
            1379,
            labels=(),
            other_files=(("sts-train",), ("sts-dev",), ("sts-test",)),
            # The corpus itself: genre, file, year, number, score, two sentences, and their sources in some rows.
            headerless=(Columns((5, 6), 4, 7, may_be_longer=True),),
        ),
        GlueTask(
            "QQP",
            ("question1", "question2"),
            "is_duplicate",
            ("accuracy", "f1"),
            "QQP.tsv",
            390_965,
            class_names=("not_duplicate", "duplicate"),
            may_be_cut=True,
        ),
        GlueTask(
            "MNLI",
            _PAIR,
            _MNLI_LABEL,
            ("accuracy",),
            "MNLI-m.tsv",
            9796,
            labels=NLI,
            files=("train", "dev_matched", "test_matched"),
        ),
        GlueTask("QNLI", ("question", "sentence"), "label", ("accuracy",), "QNLI.tsv", 5463, labels=ENTAILMENT),
        GlueTask("RTE", _PAIR, "label", ("accuracy",), "RTE.tsv", 3000, labels=ENTAILMENT),
        GlueTask("WNLI", _PAIR, "label", ("accuracy",), "WNLI.tsv", 146, class_names=ENTAILMENT),
        GlueTask(
            "MNLI-mm",
            _PAIR,
            _MNLI_LABEL,
            ("accuracy",),
            "MNLI-mm.tsv",
            9847,
            labels=NLI,
            folder="MNLI",
            files=("train", "dev_mismatched", "test_mismatched"),
            trained_on="MNLI",
        ),
        GlueTask(
            "AX",
            _PAIR,
            "label",
            ("mcc",),
            "AX.tsv",
            1104,
            labels=NLI,
            folder="diagnostic",
            files=("", "", "diagnostic"),
            other_files=((), (), ("AX", "test")),
            trained_on="MNLI",
        ),
    )
}
"""By name: the nine tasks, then MNLI's mismatched half and the diagnostic set, which MNLI's model answers."""

NINE = tuple(name for name, task in TASKS.items() if not task.trained_on)
"""The tasks that a model is trained for."""


def plain(name: str) -> str:
    """A task's name without what people write differently: STS-B, sts_b and stsb are one."""
    return name.lower().replace("-", "").replace("_", "")


_BY_PLAIN = {plain(name): name for name in TASKS} | {"mnlim": "MNLI", "diagnostic": "AX", "sst": "SST-2"}


def glue_task(name: str) -> GlueTask:
    """The task of this name, however it is spelled. Raises ConfigError."""
    if plain(name) not in _BY_PLAIN:
        near = did_you_mean(plain(name), _BY_PLAIN)
        raise ConfigError(f"{name}: no task of GLUE{near}; there are {', '.join(TASKS)}")
    return TASKS[_BY_PLAIN[plain(name)]]
