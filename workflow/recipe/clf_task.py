"""Input -> score or class: a T5 read at its first decoder position, or a model with a classification head.

Knows nothing of run folders or of how an update is made.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from workflow import paths as names
from workflow.config.clf_settings import ClfSettings
from workflow.data.checks import Reading, inputs_and_targets
from workflow.data.encoders import INPUT, ScoreEncoder
from workflow.data.examples import RowFormat, ScoredRows
from workflow.data.scoring import Scoring
from workflow.data.sources import Source
from workflow.data.texts import read_template
from workflow.errors import ConfigError, ModelError
from workflow.evaluation.evaluator import Evaluation
from workflow.evaluation.metrics import Floats, Metric
from workflow.evaluation.plots import write_plots
from workflow.evaluation.score_evaluator import ScoreEvaluation, ScoreEvaluator
from workflow.evaluation.score_files import copy_scores, read_calibration, read_scores, write_calibration, write_scores
from workflow.files import replace_by_link, why_not_writable, write_json
from workflow.inference.head_engine import score_engine
from workflow.inference.interface import EngineLimits, Together
from workflow.models.classifier import LoadedClassifier, load_classifier
from workflow.models.load import tokenizer_stands_in
from workflow.models.save import Weights, write_model
from workflow.recipe.cards import scorer_facts, write_card
from workflow.recipe.place import init_model_folder, inside_run
from workflow.recipe.scorers import (
    calibration_plan,
    check_finite,
    check_own_head,
    constant_baseline,
    cut_notes,
    row_losses,
    score_encoder,
    scoring_notes,
    unfit_notes,
)
from workflow.recipe.task import Task
from workflow.runtime import derived_seed
from workflow.training.checkpoint import TrainState
from workflow.training.flops import dimensions_of
from workflow.training.objectives import ScoreLoss, score_loss

LEARNING_RATES = {True: 1e-4, False: 3e-5}
"""By whether the model is a T5."""


class ClfTask(Task[ClfSettings]):
    """Fine-tunes on inputs and targets."""

    name = "clf"
    settings_file = "args.json"
    scores = True
    loaded: LoadedClassifier
    _from_text: bool = False
    """Whether numbers may be written as texts, known once `load_data` has the source."""

    def name_parts(self, data_name: str) -> Sequence[str]:
        """`{data}_{model}`."""
        return data_name, self.model_label

    @property
    def model_label(self) -> str:
        """As given; the pretrained model's name where there is one."""
        model = self.settings.model
        return str(model.model_pretrain_name or model.model_init_path or model.model_init_name)

    @property
    def best_metric(self) -> str:
        """A score metric."""
        return self.settings.evaluation.save_best_metric

    @property
    def learning_rate(self) -> float:
        """As set, else by the kind of model."""
        return self.settings.optim.lr or LEARNING_RATES[self.loaded.start_token is not None]

    @functools.cached_property
    def scoring(self) -> Scoring:
        """How rows are read and predictions written. Raises ConfigError for a bad template."""
        score = self.settings.score
        low, high = score.target_range or (0.0, 1.0)
        template = read_template(score.template) if score.template is not None else None
        return Scoring(score.kind, score.labels, low, high, template, score.max_length, self.settings.data.keep_source)

    def check_settings(self) -> None:
        """Reads the template, and looks where predictions are to go."""
        assert self.scoring
        target = self.settings.run.pred_save_path
        if target is not None and (reason := why_not_writable(target)):
            raise ConfigError(f"--pred_save_path {target}: {reason}; name a file that can be written")

    @property
    def inputs(self) -> Mapping[str, str]:
        """The template's text, which may stand in a file."""
        return {"template_text": self.scoring.template} if self.scoring.template is not None else {}

    def load_data(self, source: Source) -> None:
        """Notes that numbers in CSV files are texts, then loads."""
        self._from_text = source.is_untyped
        super().load_data(source)
        split = self.settings.evaluation.calibration_split
        if split == "calibration" and not len(self.data.calibration):
            raise ConfigError(f'--calibration_split calibration: {source.label} has no "calibration" rows')

    @property
    def row_format(self) -> RowFormat:
        """Texts and targets."""
        return ScoredRows(self.scoring.texts, self.scoring.targets(from_text=self._from_text))

    @property
    def reading(self) -> Reading:
        """Inputs and targets."""
        return inputs_and_targets(self.scoring.texts)

    # ---- the model

    def start_model(self) -> str:
        """The initial path, else the name under the mount, else the pretrained model."""
        model = self.settings.model
        if model.model_init_path is not None:
            return inside_run(model.model_init_path)
        if model.model_init_name is not None:
            return init_model_folder(model.model_init_name, self.place.mount)
        assert model.model_pretrain_name is not None
        return inside_run(model.model_pretrain_name)

    def load_model(self, name: str, *, trained: bool) -> None:
        """The model with a head for these labels."""
        model = self.settings.model
        pretrained = model.model_pretrain_name
        self.loaded = load_classifier(
            name,
            problem=self.scoring.problem,
            labels=self.scoring.labels,
            tokenizer=model.tokenizer or tokenizer_stands_in(name, pretrained),
            dropout=model.dropout,
            seed=derived_seed(self.settings.run.seed, "head"),
            as_stored=True,
        )
        if trained and self.loaded.has_new_head:
            raise ModelError(
                f"{name}: has no trained head for {', '.join(self.scoring.labels)}; train it without --no_train"
            )
        notes = [*self.loaded.notes, *self._length_notes(), *scoring_notes(name, self.scoring)]
        self.loaded = replace(self.loaded, notes=tuple(notes))
        if self.settings.optim.ft_head_first:
            check_own_head(self.loaded)

    @property
    def max_length(self) -> int:
        """Tokens of an input at most."""
        limit = self.loaded.max_positions
        return min(self.scoring.max_length, limit) if limit is not None else self.scoring.max_length

    def _length_notes(self) -> list[str]:
        if self.max_length == self.scoring.max_length:
            return []
        return [f"inputs are cut at {self.max_length} tokens, the most that this model takes"]

    def encoder(self) -> ScoreEncoder:
        """Inputs as the model takes them."""
        return score_encoder(self.loaded, self.scoring, self.max_length, with_targets=True, from_text=self._from_text)

    def head_steps(self, max_steps: int) -> int:
        """As set with --ft_head_first, by default a tenth of the run."""
        optim = self.settings.optim
        return (optim.head_steps or math.ceil(max_steps / 10)) if optim.ft_head_first else 0

    def header(self) -> Sequence[str]:
        """Size, kind, labels, learning rate."""
        loaded, scoring = self.loaded, self.scoring
        kind = "scores from the labels' logits at the first decoder position"
        if loaded.start_token is None:
            kind = f"{loaded.model.config.model_type} with a classification head"
        lines = [
            f"{loaded.size_text}, {kind}",
            f"{scoring.problem} targets; labels {', '.join(scoring.labels)}; peak learning rate {self.peak_rates[-1]:g}",
        ]
        model = self.settings.model
        if model.model_pretrain_name and (start := model.model_init_path or model.model_init_name):
            lines.append(f"weights from {start}, not from {model.model_pretrain_name}")
        if self.settings.optim.ft_head_first:
            lines.append("the head learns alone first")
        return lines

    def objective(self) -> ScoreLoss:
        """Loss per example."""
        outputs = len(self.scoring.labels) if self.loaded.start_token is not None else None
        return ScoreLoss(
            self.loaded,
            self.data.train,
            pad_id=self.loaded.tokenizer.pad_token_id,
            device=self.device,
            dimensions=dimensions_of(self.loaded.model.config, num_outputs=outputs),
            is_ragged=self.why_padded is None,
            form=self.strategies.loss_form(score_loss(self.scoring.problem), self.scoring.problem),
        )

    def evaluator(self, together: Together | None) -> ScoreEvaluator:
        """Scores and measures."""
        evaluation = self.settings.evaluation
        limits = EngineLimits.at_least(rows=evaluation.eval_batch_size, tokens=self.max_length)
        return ScoreEvaluator(
            score_engine(self.loaded, limits=limits, together=together),
            row_losses(self.scoring.problem),
            self.data.examples.eval,
            self.data.eval,
            calibration_plan(evaluation.calibration_split, self.data.calibration, self.settings.run.seed),
            threshold_metric=evaluation.threshold_metric,
            ranks=self.place.ranks,
            problem=self.loaded.problem,
            width=self.loaded.width,
            unit=self.scoring.high - self.scoring.low,
            slice_by=evaluation.slice_by,
        )

    # ---- files

    def write_model(self, folder: Path, weights: Weights, step: int, *, of: str = "") -> None:
        """The model, how to score with it, and the calibration where this very step was evaluated."""
        write_model(folder, self.loaded.model, self.loaded.tokenizer, weights, adapters=self.loaded.adapters)
        write_json(folder / names.SCORING_NAME, replace(self.scoring, max_length=self.max_length).as_json())
        found = self.evaluated_at(step, of)
        if isinstance(found, ScoreEvaluation) and found.calibration is not None:
            self._write_calibration(folder / names.CALIBRATION_NAME, found)
        write_card(self, folder, step, found, of=of, **scorer_facts(self.loaded, self.scoring, self.max_length, found))

    def _write_calibration(self, file: Path, found: ScoreEvaluation) -> None:
        assert found.calibration is not None
        write_calibration(
            file, found.calibration, found.reported, threshold_metric=self.settings.evaluation.threshold_metric
        )

    def record(self, paths: names.RunPaths, step: int, found: Evaluation, *, of: str = "") -> None:
        """`checkpoint-N-preds.json`."""
        assert isinstance(found, ScoreEvaluation)
        self._last[of] = (step, found)
        self.write_predictions(paths.step_scores(step, of), found)

    def write_predictions(self, file: Path, found: Evaluation) -> None:
        """The score of each eval row."""
        assert isinstance(found, ScoreEvaluation)
        scores_only = self.settings.run.scores_only
        write_scores(file, self.data.examples.eval, found.vectors, self.scoring.targets(), scores_only=scores_only)

    def baseline(self) -> dict[str, Metric]:
        """What a constant reaches: the training targets' mean, whatever the input."""
        return constant_baseline(self.scoring, self.data.train.targets, self.data.eval.targets)

    def result_notes(self, paths: names.RunPaths, state: TrainState) -> list[str]:
        """Why nothing was calibrated, if so."""
        return unfit_notes(read_calibration(paths.checkpoint(state.step) / names.CALIBRATION_NAME))

    def finish(self, paths: names.RunPaths, state: TrainState) -> None:
        """`preds.json`, the final step's predictions, and for binary targets the plots of them."""
        final = paths.step_scores(state.step)
        if not final.is_file():  # without eval rows, or with --no_eval_at_end
            return
        replace_by_link(final, paths.scores)
        if (target := self.settings.run.pred_save_path) is not None:
            copy_scores(final, target)
        for of in (strategy.name for strategy in self.strategies.strategies):
            if (averaged := paths.step_scores(state.step, of)).is_file():
                replace_by_link(averaged, paths.root / names.prefixed(names.SCORES_NAME, of))
        vectors = read_scores(final, self.scoring.targets()).vectors
        self._plots(paths.root / names.PLOTS_NAME, paths.root.name, vectors)

    def _plots(self, folder: Path, title: str, vectors: Floats) -> None:
        if self.scoring.problem == "binary":
            write_plots(folder, vectors[:, 1], np.asarray(self.data.eval.targets[:, 1], dtype=np.float64), title=title)

    def predictions_alone(self) -> Path:
        """In RUN/ of preds/, or --pred_save_path."""
        return self.settings.run.pred_save_path or names.predictions_folder(self.run_name) / names.SCORES_NAME

    def record_alone(self, file: Path, found: Evaluation) -> None:
        """Predictions, metrics, calibration and plots; at --pred_save_path the predictions alone."""
        assert isinstance(found, ScoreEvaluation)
        check_finite(found.logits, self.start_model(), [f"eval[{row}]" for row in range(len(found.logits))])
        cut = cut_notes(self.data.eval.truncation(INPUT))
        for note in [*self.loaded.notes, *cut, *unfit_notes(found.calibration)]:
            self.write_note(f"note: {note}")
        if self.settings.run.pred_save_path is not None:
            self.write_predictions(file, found)
            return
        super().record_alone(file, found)
        if found.calibration is not None:
            self._write_calibration(file.with_name(names.CALIBRATION_NAME), found)
        self._plots(file.parent / names.PLOTS_NAME, self.run_name, found.vectors)
