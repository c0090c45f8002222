"""GLUE's tasks by the benchmark's own table."""

import pytest

from workflow.data.glue import NINE, TASKS, glue_task
from workflow.errors import ConfigError
from workflow.metric_names import SCORE_METRICS

FILES = "CoLA SST-2 MRPC STS-B QQP MNLI-m MNLI-mm QNLI RTE WNLI AX"


def test_the_nine_tasks_and_the_eleven_files():
    assert NINE == ("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI")
    assert sorted(task.leaderboard for task in TASKS.values()) == sorted(f"{name}.tsv" for name in FILES.split())
    assert {name: task.trained_on for name, task in TASKS.items() if task.trained_on} == {
        "MNLI-mm": "MNLI",
        "AX": "MNLI",
    }


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_metrics_are_known_for_the_kind_of_target(task):
    assert set(task.metrics) <= set(SCORE_METRICS[task.problem])
    assert len(task.names) == len(task.labels) == len(set(task.labels))
    assert task.settings["save_best_metric"] == task.metrics[0]


def test_what_the_leaderboard_is_told():
    assert [glue_task("RTE").answer(place) for place in (0, 1)] == ["not_entailment", "entailment"]
    assert glue_task("mnli").answer(2) == "contradiction"
    assert glue_task("CoLA").answer(1) == "1"
    assert glue_task("sts_b").answer(4.25) == "4.250"


def test_names_as_people_write_them():
    assert [glue_task(name).name for name in ("sst2", "STSB", "mnli_m", "MNLI-MM", "Cola")] == [
        "SST-2",
        "STS-B",
        "MNLI",
        "MNLI-mm",
        "CoLA",
    ]
    with pytest.raises(ConfigError, match=r'qnlu: no task of GLUE; did you mean "qnli"\?; there are CoLA'):
        glue_task("qnlu")
