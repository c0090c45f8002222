"""The settings of clf.py: one documented field a setting, from which flags, help, schema and docs are derived.

Knows nothing of where a value came from (`cascade`) or how flags are parsed (`flags`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, field_validator, model_validator

from workflow.config.sections import (
    CommandSettings,
    DataSection,
    EvaluationSection,
    Implied,
    ModelSection,
    OptimSection,
    RunSection,
    Section,
    TrainedSection,
    TrainingSection,
    setting,
)
from workflow.config.settings import NO_DATA
from workflow.config.strategy_settings import StrategiesSection, preset
from workflow.config.tracking import TrackingSection
from workflow.errors import ConfigError, did_you_mean
from workflow.metric_names import SCORE_METRICS, listed, usual_problem

NO_SCORE_MODEL = (
    "no model: pass --model_pretrain_name HUB_NAME_OR_PATH, --model_init_path PATH_OR_HUB_NAME, or --model_init_name NAME "
    "(a folder under mount/models)"
)


class ClfRunSection(RunSection):
    """The run and its folder"""

    no_train: bool = setting(
        False, "only score the eval rows: predictions go to --pred_save_path, or preds/RUN/ of the working directory"
    )
    pred_save_path: Path | None = setting(
        None, "also write the final predictions to this file; with --no_train, only there", affects="place"
    )
    scores_only: bool = setting(False, "prediction files hold scores alone, without the rows", affects="place")


class ClfModelSection(ModelSection):
    """The model"""

    model_pretrain_name: str | None = setting(
        None, "pretrained checkpoint, by hub name or path; T5, BERT and their families, or a nanoGPT ckpt.pt"
    )
    model_init_path: str | None = setting(
        None,
        "start from this path or hub name instead (a checkpoint, a run: its best checkpoint); beside --model_pretrain_name, "
        "which then names the run and lends its tokenizer where the checkpoint has none",
        rivals=("model_init_name",),
        companions=("model_pretrain_name",),
    )
    model_init_name: str | None = setting(
        None,
        "start from this folder under mount/models (a checkpoint, or a run: its best checkpoint)",
        companions=("model_pretrain_name",),
    )
    tokenizer: str | None = setting(
        None, "tokenizer to use instead of the model's own, by path or hub name (nanoGPT checkpoints have none: gpt2)"
    )


class ScoreSection(Section):
    """Inputs, targets and scores"""

    affects = "numbers"
    problem: Literal["auto", "binary", "multiclass", "multilabel", "regression"] = setting(
        "auto",
        "what a target is: binary, a number in [0, 1]; multiclass, a label or a distribution; multilabel, a list of labels; "
        "regression, any number; auto is binary for two labels, else multiclass",
    )
    labels: tuple[str, ...] = setting(
        ("no", "yes"),
        "names of the classes, in order; for T5 each must be one token of its vocabulary, and scores are read off these tokens' logits",
    )
    target_range: tuple[float, float] | None = setting(
        None, "LOW and HIGH of binary targets, mapped to [0, 1] for training and back in predictions"
    )
    template: str | None = setting(
        None, "TEXT or FILE that wraps each row, with {field} for its keys, e.g. 'article: {input}\\noutput:'"
    )
    max_length: int = setting(
        1024,
        "tokens of an input, special ones included; longer ones are cut and counted; at most what the model takes",
        ge=4,
    )

    @field_validator("labels")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) < 2 or len(set(value)) < len(value) or not all(name.strip() for name in value):
            raise ValueError("give two or more different names, e.g. --labels no yes")
        return value

    @field_validator("target_range")
    @classmethod
    def _rising(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 < value[1] - value[0] < math.inf:
            raise ValueError("LOW must be below HIGH, e.g. --target_range 0 5")
        return value

    @property
    def kind(self) -> str:
        """The problem, decided."""
        return self.problem if self.problem != "auto" else usual_problem(self.labels)

    @model_validator(mode="after")
    def _check_together(self) -> ScoreSection:
        if self.kind == "binary" and len(self.labels) != 2:
            raise ValueError("--problem binary needs two --labels: the negative one, then the positive one")
        if self.target_range is not None and self.kind != "binary":
            raise ValueError(f"--target_range is for binary targets, not {self.kind} ones")
        return self


def checked_score(**given: Any) -> ScoreSection:
    """These settings, None for a default, by the rules that clf.py has for them. Raises ConfigError."""
    try:
        return ScoreSection.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problems = ((problem["loc"], problem["msg"].removeprefix("Value error, ")) for problem in error.errors())
        told = (f"--{where[0]}: {message}" if where else message for where, message in problems)
        raise ConfigError("; ".join(dict.fromkeys(told))) from None


class ClfOptimSection(OptimSection):
    """Optimizer and schedule"""

    lr: float | None = setting(
        None, "peak learning rate; by default 1e-4 for T5 and 3e-5 for other models", aliases=("learning_rate",), gt=0
    )
    ft_head_first: bool = setting(
        False, "train the output head alone for the first --head_steps updates, then everything", rivals=("freeze",)
    )
    head_steps: int | None = setting(
        None,
        "updates of the head alone with --ft_head_first; by default a tenth of the run",
        needs="ft_head_first",
        ge=1,
    )


class ClfTrainingSection(TrainingSection):
    """Training"""

    num_epochs: float | None = setting(
        None, "passes over the training rows, instead of --max_steps", aliases=("epochs",), gt=0
    )
    max_steps: int | None = setting(
        None,
        "updates of the weights, rather than --num_epochs; 3000 where neither is given",
        rivals=("num_epochs",),
        ge=1,
    )
    train_batch_size: int = setting(
        32,
        "examples per step over all ranks; times --gradient_accumulation_steps gives the examples of an update",
        aliases=("batch_size",),
        ge=1,
    )


class ClfEvaluationSection(EvaluationSection):
    """Evaluation"""

    eval_steps: int | None = setting(
        None,
        "updates between evaluations; by default 3000, or once an epoch with --num_epochs; the last step is always evaluated",
        ge=1,
    )
    eval_batch_size: int = setting(32, "rows in one scoring batch of a rank", ge=1, affects="speed")
    save_best_metric: str = setting(
        "eval_loss",
        "metric that chooses checkpoint-best-ckpt; an unknown name lists them all",
        aliases=("best_metric",),
    )
    calibration_split: str = setting(
        "auto",
        "what the decision threshold and the calibration are fitted on; metrics of both are reported on the other eval rows: "
        "a share of the eval rows such as 0.5, or 'calibration', the data's own rows of that split; auto is these, else 0.5",
    )
    threshold_metric: Literal["accuracy", "f1_macro", "mcc"] = setting(
        "accuracy", "what the decision threshold is chosen for"
    )

    @field_validator("calibration_split")
    @classmethod
    def _share_or_split(cls, value: str) -> str:
        if value in ("auto", "calibration"):
            return value
        try:
            inside = 0 < float(value) < 1
        except ValueError:
            raise ValueError(
                f"expected auto, calibration, or a share between 0 and 1{did_you_mean(value, ('auto', 'calibration'))}"
            ) from None
        if not inside:
            raise ValueError("a share lies between 0 and 1, e.g. 0.5")
        return value


class ClfSettings(CommandSettings):
    """Fine-tunes a T5, BERT or GPT-2 model that scores or classifies inputs, and evaluates it on held-out rows."""

    run: ClfRunSection = ClfRunSection()
    model: ClfModelSection = ClfModelSection()
    data: DataSection = DataSection()
    score: ScoreSection = ScoreSection()
    optim: ClfOptimSection = ClfOptimSection()
    trained: TrainedSection = TrainedSection()
    strategies: StrategiesSection = StrategiesSection()
    training: ClfTrainingSection = ClfTrainingSection()
    evaluation: ClfEvaluationSection = ClfEvaluationSection()
    tracking: TrackingSection = TrackingSection()

    @classmethod
    def missing(cls, values: Mapping[str, Any]) -> list[str]:
        """What is required and not among these values."""
        given = any(values.get(name) for name in ("model_pretrain_name", "model_init_path", "model_init_name"))
        return [*([] if given else [NO_SCORE_MODEL]), *([] if values.get("data_name") else [NO_DATA])]

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> Implied:
        """What --strategy says."""
        return preset(values)

    @model_validator(mode="after")
    def _check_together(self) -> ClfSettings:
        known, name = SCORE_METRICS[self.score.kind], self.evaluation.save_best_metric
        if name not in known:
            raise ValueError(
                f"--save_best_metric {name}: no metric of {self.score.kind} targets{did_you_mean(name, known)}; "
                f"there are, best when: {listed(known)}"
            )
        if self.optim.head_steps is not None and not self.optim.ft_head_first:
            raise ValueError("--head_steps needs --ft_head_first")
        if self.optim.ft_head_first and self.strategies.freeze is not None:
            raise ValueError("--ft_head_first and --freeze both say when the head learns alone; pass one of them")
        return self
