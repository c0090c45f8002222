"""The settings of seq2seq.py: one documented field a setting, from which flags, help, schema and docs are derived.

Knows nothing of where a value came from (`cascade`) or how flags are parsed (`flags`). Names are unique over the
sections of a command, so that a flag needs no section.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from workflow.config.sections import (
    CommandSettings,
    DataSection,
    EvaluationSection,
    Implied,
    ModelSection,
    OptimSection,
    RunSection,
    TrainedSection,
    TrainingSection,
    setting,
)
from workflow.config.strategy_settings import StrategiesSection, preset
from workflow.config.tracking import TrackingSection

NO_MODEL = "no model: pass --model_init_path PATH_OR_HUB_NAME or --model_init_name NAME (a folder under mount/models)"
NO_DATA = "no data: pass --data_name NAME (mount/data/NAME.json) or a path"

GREEDY_BELOW = 0.01
"""Temperatures below this are greedy, as in the commands that use 0.001 for it."""


class Seq2SeqRunSection(RunSection):
    """The run and its folder"""

    no_train: bool = setting(
        False, "only evaluate: predictions go to preds/PRED_DIR of the working directory, no run is touched"
    )
    pred_dir: str | None = setting(
        None, "folder under preds/ for --no_train; by default the run's name", affects="place"
    )


class Seq2SeqDataSection(DataSection):
    """The data"""

    max_source_length: int = setting(
        1024, "tokens of a prompt, end-of-sequence included; longer ones are cut and counted", ge=2
    )
    max_target_length: int = setting(
        512, "tokens of a completion, end-of-sequence included; longer ones are cut and counted", ge=2
    )


class Seq2SeqOptimSection(OptimSection):
    """Optimizer and schedule"""

    lr: float = setting(1e-4, "peak learning rate", aliases=("learning_rate",), gt=0)


class Seq2SeqTrainingSection(TrainingSection):
    """Training"""

    num_epochs: float = setting(
        4.0, "passes over the training rows; gives max_steps where that is not set", aliases=("epochs",), gt=0
    )
    max_steps: int | None = setting(
        None, "updates of the weights, rather than --num_epochs", rivals=("num_epochs",), ge=1
    )
    train_batch_size: int = setting(
        16,
        "examples per step over all ranks; times --gradient_accumulation_steps gives the examples of an update",
        aliases=("batch_size",),
        ge=1,
    )


class Seq2SeqEvaluationSection(EvaluationSection):
    """Evaluation"""

    eval_steps: int | None = setting(
        None, "updates between evaluations; by default max_steps / num_epochs; the last step is always evaluated", ge=1
    )
    eval_batch_size: int = setting(64, "prompts in one generation batch of a rank", ge=1, affects="speed")
    temperature: float = setting(0.001, "sampling temperature; below 0.01 decoding is greedy", ge=0)
    n_samples: int = setting(1, "generations per eval prompt", ge=1, le=1000)
    top_p: float = setting(1.0, "sample from the smallest set of tokens with this probability", gt=0, le=1)
    top_k: int = setting(0, "sample from this many most likely tokens; 0 for all", ge=0)
    num_beams: int = setting(
        1, "beam search with this many beams; needs greedy temperature and one sample", ge=1, le=64
    )
    max_new_tokens: int | None = setting(
        None, "tokens of a generation at most; by default the longest completion in the data", ge=1
    )
    best_metric: Literal["exact_match", "token_f1", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "eval_loss"] = (
        setting(
            "exact_match", "metric that chooses checkpoint-best-ckpt; eval_loss is best when low, the others when high"
        )
    )


class Seq2SeqSettings(CommandSettings):
    """Fine-tunes a T5-family model on prompts and completions, and evaluates it by sampling."""

    run: Seq2SeqRunSection = Seq2SeqRunSection()
    model: ModelSection = ModelSection()
    data: Seq2SeqDataSection = Seq2SeqDataSection()
    optim: Seq2SeqOptimSection = Seq2SeqOptimSection()
    trained: TrainedSection = TrainedSection()
    strategies: StrategiesSection = StrategiesSection()
    training: Seq2SeqTrainingSection = Seq2SeqTrainingSection()
    evaluation: Seq2SeqEvaluationSection = Seq2SeqEvaluationSection()
    tracking: TrackingSection = TrackingSection()

    @classmethod
    def missing(cls, values: Mapping[str, Any]) -> list[str]:
        """What is required and not among these values."""
        return [
            *([] if values.get("model_init_name") or values.get("model_init_path") else [NO_MODEL]),
            *([] if values.get("data_name") else [NO_DATA]),
        ]

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> Implied:
        """What --strategy says."""
        return preset(values)

    def idle(self) -> dict[str, tuple[str, str]]:
        """What draws tokens, where none are drawn."""
        if self.evaluation.temperature >= GREEDY_BELOW:
            return {}
        return dict.fromkeys(("top_p", "top_k"), ("temperature", f"decoding is greedy below {GREEDY_BELOW}"))

    @model_validator(mode="after")
    def _check_together(self) -> Seq2SeqSettings:
        if self.evaluation.num_beams > 1 and (
            self.evaluation.temperature >= GREEDY_BELOW or self.evaluation.n_samples > 1
        ):
            raise ValueError("--num_beams needs greedy decoding (--temperature 0) and --n_samples 1")
        return self
