"""Prompt -> completion: a T5-family model trained on completions and evaluated by generating.

Knows nothing of run folders or of how an update is made.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from workflow import paths as names
from workflow.config.settings import Seq2SeqSettings
from workflow.data.checks import PROMPTS_AND_COMPLETIONS, Reading
from workflow.data.encoders import LengthLimits, Seq2SeqEncoder
from workflow.data.examples import SEQ2SEQ, RowFormat
from workflow.data.features import Features
from workflow.evaluation.evaluator import Evaluation, TextEvaluation, TextEvaluator, write_predictions
from workflow.inference.engine import T5Engine
from workflow.inference.interface import EngineLimits, Together
from workflow.inference.sampling import SamplingParams
from workflow.models.answers import AnswerTexts
from workflow.models.load import LoadedModel, load_seq2seq
from workflow.models.save import Weights, write_model
from workflow.models.tokenizer_file import write_ids
from workflow.models.verbalizers import no_yes_tokens
from workflow.recipe.answers import answers_of
from workflow.recipe.cards import write_card
from workflow.recipe.place import init_model_folder, inside_run
from workflow.recipe.task import Task
from workflow.strategies.base import TOKENS
from workflow.strategies.composed import LossForm
from workflow.training.flops import dimensions_of
from workflow.training.objectives import CompletionLoss, token_loss


class Seq2SeqTask(Task[Seq2SeqSettings]):
    """Fine-tunes on prompts and completions."""

    name = "seq2seq"
    settings_file = "training_args.json"
    scores = False
    row_format: RowFormat = SEQ2SEQ
    reading: Reading = PROMPTS_AND_COMPLETIONS
    loaded: LoadedModel

    def name_parts(self, data_name: str) -> Sequence[str]:
        """`{init}_{data}_{seed}`."""
        return self.model_label, data_name, str(self.settings.run.seed)

    @property
    def model_label(self) -> str:
        """As given."""
        return str(self.settings.model.model_init_path or self.settings.model.model_init_name)

    @property
    def best_metric(self) -> str:
        """A text metric."""
        return self.settings.evaluation.best_metric

    @property
    def learning_rate(self) -> float:
        """As set."""
        return self.settings.optim.lr

    def check_settings(self) -> None:
        """Nothing beyond what the settings check themselves."""

    def start_model(self) -> str:
        """The path, else the folder of the name."""
        model = self.settings.model
        if model.model_init_path is not None:
            return inside_run(model.model_init_path)
        assert model.model_init_name is not None
        return init_model_folder(model.model_init_name, self.place.mount)

    def load_model(self, name: str, *, trained: bool) -> None:  # noqa: ARG002
        """The whole model."""
        self.loaded = load_seq2seq(name, dropout=self.settings.model.dropout, as_stored=True)

    def encoder(self) -> Seq2SeqEncoder:
        """Prompts and completions by the model's own tokenizer."""
        data = self.settings.data
        return Seq2SeqEncoder(
            self.loaded.tokenizer, LengthLimits(data.max_source_length, data.max_target_length, data.keep_source)
        )

    @functools.cached_property
    def answers_and_findings(self) -> tuple[AnswerTexts, list[str]]:
        """How answers are written, now that the data is known, and what is to be told of special tokens in it."""
        assert self.loaded.answers is not None
        data = self.data
        return answers_of(self.loaded.answers, data.examples, {"train": data.train, "eval": data.eval})

    def more_checks(self) -> dict[str, Any]:
        """Completions are read as answers are written."""
        answers, findings = self.answers_and_findings
        return {"answers": answers, "findings": findings}

    def header(self) -> Sequence[str]:
        """Size, head, dropout."""
        head = "own output head" if self.loaded.has_own_head else "output head tied to the embeddings"
        return [f"{self.loaded.size_text}, {head}, dropout {self.loaded.model.config.dropout_rate}"]

    def objective(self) -> CompletionLoss:
        """Loss per label token."""
        form = self.strategies.loss_form(token_loss, TOKENS)
        if form is not None and self.why_padded is None:
            self.form.head.train_by(form.loss, passes=form.passes)
        return self._loss_on(self.data.train, form)

    def _loss_on(self, features: Features, form: LossForm | None = None) -> CompletionLoss:
        config = self.loaded.model.config
        return CompletionLoss(
            config,
            features,
            pad_id=self.loaded.tokenizer.pad_token_id,
            device=self.device,
            dimensions=dimensions_of(config),
            is_ragged=self.why_padded is None,
            form=form,
        )

    @property
    def sampling(self) -> SamplingParams:
        """How evaluation decodes; the longest completion of the data bounds the length."""
        evaluation = self.settings.evaluation
        return SamplingParams(
            max_new_tokens=evaluation.max_new_tokens or self._longest_completion(),
            temperature=evaluation.temperature,
            top_k=evaluation.top_k,
            top_p=evaluation.top_p,
            n=evaluation.n_samples,
            num_beams=evaluation.num_beams,
        )

    def _longest_completion(self) -> int:
        """Tokens, end of sequence included."""
        splits = (self.data.train, self.data.eval)
        return max((int(features.lengths("completion").max()) for features in splits if len(features)), default=1)

    def evaluator(self, together: Together | None) -> TextEvaluator:
        """Generates, and computes the loss of the references."""
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        evaluation, data = self.settings.evaluation, self.settings.data
        limits = EngineLimits.at_least(
            rows=max(evaluation.eval_batch_size, evaluation.n_samples, evaluation.num_beams),
            tokens=data.max_source_length,
        )
        answers, _ = self.answers_and_findings
        engine = T5Engine(model, tokenizer, limits=limits, together=together, answers=answers)

        losses = self._loss_on(self.data.eval)

        def row_losses(rows: Sequence[int]) -> torch.Tensor:
            was_training = model.training
            model.eval()
            try:
                return losses.row_losses(self.form, rows)
            finally:
                model.train(was_training)

        return TextEvaluator(
            engine,
            row_losses,
            self.data.examples.eval,
            self.data.eval,
            self.sampling,
            ranks=self.place.ranks,
            batch_size=evaluation.eval_batch_size,
            seed=self.settings.run.seed,
            label_tokens=no_yes_tokens(tokenizer),
            slice_by=evaluation.slice_by,
            reference=answers.reference,
        )

    def write_model(self, folder: Path, weights: Weights, step: int, *, of: str = "") -> None:
        """The model, with the length that answers may have, and its card."""
        answers, _ = self.answers_and_findings
        write_model(
            folder,
            self.loaded.model,
            self.loaded.tokenizer,
            weights,
            max_new_tokens=self.sampling.max_new_tokens,
            adapters=self.loaded.adapters,
            answers=answers,
        )
        write_ids(folder, self.loaded.tokenizer)
        self.describe(folder, step, of=of)

    def describe(self, folder: Path, step: int, *, of: str = "") -> None:
        """The card."""
        answers, _ = self.answers_and_findings
        write_card(
            self,
            folder,
            step,
            self.evaluated_at(step, of),
            of=of,
            kind="texts",
            max_length=self.settings.data.max_source_length,
            max_new_tokens=self.sampling.max_new_tokens,
            left_out=(*answers.never_shown, *answers.ends) if answers.marks else (),
        )

    def record(self, paths: names.RunPaths, step: int, found: Evaluation, *, of: str = "") -> None:
        """`temperature=..._n=..._step=....json`."""
        self._last[of] = (step, found)
        self.write_predictions(paths.root / names.prefixed(self._file_name(step), of), found)

    def write_predictions(self, file: Path, found: Evaluation) -> None:
        """The answers to each eval row."""
        assert isinstance(found, TextEvaluation)
        answers, _ = self.answers_and_findings
        write_predictions(file, self.data.examples.eval, found.results, reference=answers.reference)

    def record_alone(self, file: Path, found: Evaluation) -> None:
        """Also tells of special tokens in the completions."""
        for finding in self.answers_and_findings[1]:
            self.write_note(f"note: {finding}")
        super().record_alone(file, found)

    def predictions_alone(self) -> Path:
        """In PRED_DIR of preds/."""
        folder = names.checked_name(self.settings.run.pred_dir or self.run_name, what="--pred_dir")
        return names.predictions_folder(folder) / self._file_name(0)

    def _file_name(self, step: int) -> str:
        evaluation = self.settings.evaluation
        return names.predictions_name(temperature=evaluation.temperature, n_samples=evaluation.n_samples, step=step)
