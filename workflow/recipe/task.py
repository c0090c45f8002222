"""What a training run needs to know of its task; `train` and `run` know nothing else of it.

    claim -> load_model -> load_data -> objective, evaluator -> write_model, record, finish

A task holds its settings, its place and, once loaded, its model and data. Methods that say "collective" are called
by all ranks alike.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch

from workflow import paths as names
from workflow.config.cascade import Resolved
from workflow.config.clf_settings import ClfSettings
from workflow.config.settings import Seq2SeqSettings
from workflow.data.checks import Reading, check
from workflow.data.examples import Examples, RowFormat, load_examples
from workflow.data.features import Features, RowEncoder, load_features
from workflow.data.sources import Source
from workflow.errors import ConfigError, DataError
from workflow.evaluation.evaluator import Evaluation, check_slice_key
from workflow.evaluation.metrics import Metric
from workflow.evaluation.report import measured
from workflow.files import why_not_writable, write_json
from workflow.inference.interface import Together
from workflow.models.load import LoadedModel, is_path
from workflow.models.ragged import ragged_form_of, why_padded
from workflow.models.save import Weights
from workflow.recipe.place import Place
from workflow.runtime import collectively, on_first, torch_device
from workflow.strategies.composed import Composed
from workflow.strategies.listing import compose
from workflow.training.checkpoint import TrainState
from workflow.training.ds_config import torch_dtype
from workflow.training.objectives import Objective

DEBUG_LIMITS = {"train": 64, "eval": 16, "calibration": 16}

S = TypeVar("S", Seq2SeqSettings, ClfSettings)


class Evaluates(Protocol):
    """An evaluator of the eval rows on the model as it is at each call."""

    def evaluate(self) -> Evaluation:
        """A collective call; the first rank gets the findings."""


@dataclass(frozen=True)
class Data:
    """A data set with its token ids."""

    examples: Examples
    train: Features
    eval: Features
    calibration: Features


class Task(ABC, Generic[S]):
    """One kind of run."""

    name: ClassVar[str]
    settings_file: ClassVar[str]
    scores: ClassVar[bool]
    """Whether the model scores its inputs, rather than writing texts."""
    initial_rates: tuple[float, ...] = ()
    """Of the parameter groups, ascending; known once a run has begun."""
    loaded: LoadedModel
    data: Data

    def __init__(self, resolved: Resolved[S], place: Place) -> None:
        self.resolved: Resolved[S] = resolved
        self.settings: S = resolved.settings
        self.place = place
        self._last: dict[str, tuple[int, Evaluation]] = {}
        """The newest evaluation and its step, of the model (""): a checkpoint of that step tells of it."""

    # ---- names

    @property
    def run_name(self) -> str:
        """The name of the run's folder: as given, else by `name_parts`. Raises ConfigError."""
        given, data_name = self.settings.run.training_run_name, self.settings.data.data_name
        if given is not None:
            return names.checked_name(given, what="--training_run_name")
        assert data_name is not None
        return names.run_name(*self.name_parts(data_name))

    @abstractmethod
    def name_parts(self, data_name: str) -> Sequence[str]:
        """What a run's name is made of where none is given."""

    @property
    @abstractmethod
    def model_label(self) -> str:
        """What the run started from, for its report."""

    @property
    @abstractmethod
    def best_metric(self) -> str:
        """The metric that chooses the best checkpoint."""

    @property
    def device(self) -> torch.device:
        """This rank's device."""
        return torch_device(self.place.device, self.place.ranks)

    # ---- model and data

    @abstractmethod
    def start_model(self) -> str:
        """The folder or hub name that a new run starts from. Raises ConfigError."""

    @abstractmethod
    def load_model(self, name: str, *, trained: bool) -> None:
        """Loads the model on this rank; a `trained` one must be complete."""

    @abstractmethod
    def check_settings(self) -> None:
        """Refuses what can be refused before anything is loaded. Raises ConfigError."""

    @property
    @abstractmethod
    def row_format(self) -> RowFormat:
        """What every row must hold."""

    @abstractmethod
    def encoder(self) -> RowEncoder:
        """How rows become token ids for the loaded model."""

    @property
    @abstractmethod
    def reading(self) -> Reading:
        """How the checks look at rows."""

    @property
    def inputs(self) -> Mapping[str, str]:
        """Contents of the files that settings name, by what to call them."""
        return {}

    def load_model_everywhere(self, name: str, *, trained: bool) -> None:
        """Collective; from the hub, the first rank of a machine fetches the model before the others read it."""
        if not is_path(name):
            self.place.console.print(f"fetching {name} from the hub, unless it is in the local cache")
        collectively(lambda: self.load_model(name, trained=trained), self.place.ranks, first_alone=not is_path(name))

    def load_data(self, source: Source) -> None:
        """Collective: rows and token ids, made by the first rank of each machine and mapped by all."""
        cache, encoder = names.cache_dir(), self.encoder()
        limits = DEBUG_LIMITS if self.settings.run.debug else None

        def load() -> Data:
            examples = load_examples(source, self.row_format, cache, limits=limits)
            return Data(
                examples,
                *(load_features(examples, split, encoder, cache) for split in ("train", "eval", "calibration")),
            )

        self.data = collectively(load, self.place.ranks, first_alone=True)
        if not len(self.data.eval):
            self.place.console.print(
                "no eval rows: nothing will be evaluated, and the last checkpoint counts as the best"
            )
        check_slice_key(self.data.examples.eval, self.settings.evaluation.slice_by, what="eval row")

    def data_warnings(self) -> tuple[str, list[str]]:
        """Label and row counts of the data in one line, and what is odd about it."""
        data = self.data
        features = {"train": data.train, "eval": data.eval, "calibration": data.calibration}
        found = check(data.examples, self.reading, features=features, tokenizer=self.loaded.tokenizer)
        rows = ", ".join(f"{split.rows} {name} rows" for name, split in found.splits.items())
        return f"{found.label}: {rows}", found.warnings()

    # ---- training

    @functools.cached_property
    def why_padded(self) -> str | None:
        """Why the loaded model is trained on padded batches; None where it takes ragged ones."""
        return why_padded(self.loaded.model)

    @functools.cached_property
    def form(self) -> Any:
        """What training calls: a form of the loaded model that takes ragged batches, else the model."""
        model = self.loaded.model
        return ragged_form_of(model, scores=self.scores) if self.why_padded is None else model

    @functools.cached_property
    def strategies(self) -> Composed:
        """What the settings turn on."""
        return compose(self.settings.strategies)

    @property
    def peak_rates(self) -> tuple[float, ...]:
        """Those of the parameter groups, ascending; before a run has begun, the one that is set."""
        return self.initial_rates or (self.learning_rate,)

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """The peak learning rate."""

    @property
    def default_epochs(self) -> float | None:
        """Passes over the data where neither steps nor epochs are set."""
        return self.settings.training.num_epochs

    def head_steps(self, max_steps: int) -> int:  # noqa: ARG002
        """Updates in which the head alone learns."""
        return 0

    @abstractmethod
    def header(self) -> Sequence[str]:
        """Lines about the model for the run's header."""

    @abstractmethod
    def objective(self) -> Objective:
        """What training minimises."""

    @abstractmethod
    def evaluator(self, together: Together | None) -> Evaluates:
        """Evaluates the eval rows; `together` for models sharded by ZeRO-3."""

    # ---- files

    @abstractmethod
    def write_model(self, folder: Path, weights: Weights, step: int, *, of: str = "") -> None:
        """Writes the model files of the checkpoint after `step` updates, or of an average then; by the first rank."""

    def evaluated_at(self, step: int, of: str = "") -> Evaluation | None:
        """The evaluation of this very step, if it was the newest; on the first rank."""
        evaluated, found = self._last.get(of, (None, None))
        return found if evaluated == step else None

    @abstractmethod
    def record(self, paths: names.RunPaths, step: int, found: Evaluation, *, of: str = "") -> None:
        """Writes the prediction file of an evaluation, maybe that of an average; by the first rank."""

    @abstractmethod
    def write_predictions(self, file: Path, found: Evaluation) -> None:
        """Writes one prediction file; by the first rank."""

    def baseline(self) -> dict[str, Metric]:
        """Metrics of a prediction that ignores the input, for comparison; by the first rank."""
        return {}

    def result_notes(self, paths: names.RunPaths, state: TrainState) -> list[str]:  # noqa: ARG002
        """What the result's table should say besides; by the first rank."""
        return []

    def finish(self, paths: names.RunPaths, state: TrainState) -> None:
        """Writes what belongs to the end of a run, before its report; by the first rank."""

    # ---- without a run

    def evaluate_only(self, source: Source) -> None:
        """Collective: predictions and metrics of a model go to `predictions_alone`; no run is touched."""
        file = self.predictions_alone()
        if (wrong := why_not_writable(file)) is not None:
            raise ConfigError(
                f"{file}: predictions cannot be written there: {wrong}; start in a folder that can be written to, or name "
                "one for them by WORKFLOW_PREDS"
            )
        self.load_model_everywhere(self.start_model(), trained=True)
        self.load_data(source)
        if not len(self.data.eval):
            raise DataError(f"{source.label}: no eval rows, so there is nothing to do with --no_train")
        self.loaded.model.to(self.device, torch_dtype(self.settings.model.precision, self.place.device)).eval()
        found = self.evaluator(None).evaluate()

        def write() -> None:
            self.record_alone(file, found)
            self.write_note(found.one_line())
            self.write_note(f"predictions in {file}")

        on_first(write, self.place.ranks)

    @abstractmethod
    def predictions_alone(self) -> Path:
        """The prediction file of an evaluation without a run. Raises ConfigError."""

    def record_alone(self, file: Path, found: Evaluation) -> None:
        """Writes the prediction file, and the metrics beside it; by the first rank."""
        self.write_predictions(file, found)
        record: Any = measured(0, found.metrics, found.slices).model_dump(mode="json")
        write_json(file.with_name("metrics.json"), record)

    def write_note(self, text: Any) -> None:
        """A line on the terminal, unbroken."""
        self.place.console.print(text, soft_wrap=True)
