"""What the settings of the commands are made of: documented fields in sections, and the sections that commands share.

Knows nothing of where a value came from (`cascade`) or how flags are parsed (`flags`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from workflow.errors import did_you_mean

ZERO_STAGES = ("zero0", "zero1", "zero2", "zero3")

Affects = Literal["numbers", "speed", "place", "command"]
"""What another value of a setting changes: what a run learns or measures; how fast and on how much memory it does so;
where its files and those who are told stand; or only how this one command finds, starts or ends it."""


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    affects: ClassVar[Affects]
    """What its settings change, where they do not say it themselves."""


def setting(
    default: Any,
    text: str,
    *,
    aliases: tuple[str, ...] = (),
    rivals: tuple[str, ...] = (),
    companions: tuple[str, ...] = (),
    needs: str | None = None,
    affects: Affects | None = None,
    **limits: Any,
) -> Any:
    """Make a field with its help text, the other names it goes by, and pydantic's limits (`gt`, `ge`, ...).

    `rivals` are the settings that have no say where this one is set (`rivals`), `companions` those of them that one
    layer may set beside it all the same; `needs` is the setting without which it says nothing. `affects` is the
    section's unless it is given here.
    """
    extra: dict[str, Any] = {"aliases": list(aliases)}
    extra |= {"rivals": list(rivals)} if rivals else {}
    extra |= {"companions": list(companions)} if companions else {}
    extra |= {"needs": [needs]} if needs else {}
    extra |= {"affects": affects} if affects else {}
    return Field(default, description=text, json_schema_extra=extra, **limits)


@dataclass(frozen=True)
class Implied:
    """What the setting `by` says of others that win over it, and what to call it as their origin."""

    by: str = ""
    origin: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


class CommandSettings(Section):
    """Base of each command's settings: sections only."""

    @classmethod
    def missing(cls, values: Mapping[str, Any]) -> list[str]:  # noqa: ARG003
        """What is required and not among these values by flat name, as messages."""
        return []

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> Implied:  # noqa: ARG003
        """What one of these values by flat name says of others that win over it."""
        return Implied()

    def idle(self) -> dict[str, tuple[str, str]]:
        """Settings that say nothing with the value of another one -> that one, and why."""
        return {}


class RunSection(Section):
    """The run and its folder"""

    affects = "command"
    training_run_name: str | None = setting(
        None, "name of the run's folder under mount/models; by default made of model, data and seed"
    )
    mount: Path | None = setting(
        None, "folder that holds data/ and models/; by default WORKFLOW_MOUNT, /model_mount if it exists, else ./mount"
    )
    seed: int = setting(
        0, "seed of the data order, dropout and sampling, each derived from it separately", ge=0, affects="numbers"
    )
    resume: str = setting(
        "auto",
        "auto: continue this run's newest complete checkpoint if there is one; or the PATH of a checkpoint to continue in a new run",
    )
    overwrite_output_dir: bool = setting(
        False,
        "move an existing run folder of this name aside (nothing is deleted) and start anew; automatic restarts go on instead",
    )
    allow_changed_data: bool = setting(
        False, "continue a run although its data changed; what was measured on the old rows no longer counts"
    )
    debug: bool = setting(False, "use the first 64 training and 16 eval rows, and show tracebacks", affects="numbers")
    dry_run: bool = setting(
        False, "print what the run would need on this machine (memory by ZeRO stage, hours) and stop: nothing is loaded"
    )
    nproc: int | None = setting(
        None, "ranks to launch on this machine; by default one per visible GPU, or one on CPU", ge=1
    )
    grace_s: float = setting(
        60.0,
        "seconds that ranks have, after a signal to the program that launched them, to stop with a checkpoint before they are killed; "
        "longer than an update and a save, shorter than what the cluster grants",
        gt=0,
    )
    max_restarts: int = setting(
        0, "times that ranks are started again, from the newest checkpoint, after one of them died or hung", ge=0
    )
    rank_timeout_s: float = setting(
        1800.0,
        "seconds after which a rank that does not answer ends the run; longer than tokenizing, or any one save or report, takes",
        ge=5,
    )


class ModelSection(Section):
    """The model"""

    affects = "numbers"
    model_init_name: str | None = setting(
        None, "start from this folder under mount/models (a checkpoint, or a run: its best checkpoint)"
    )
    model_init_path: str | None = setting(
        None,
        "start from this path or hub name, rather than from --model_init_name",
        rivals=("model_init_name",),
    )
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "auto is bf16 (with fp32 master weights) on GPU and fp32 on CPU"
    )
    dropout: float | None = setting(None, "dropout rate; by default the checkpoint's own", ge=0, lt=1)
    gradient_checkpointing: bool = setting(
        False, "recompute activations in the backward pass: less memory, about a third more time", affects="speed"
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, value: Any) -> Any:
        if value in ("fp16", "float16", "half"):
            raise ValueError("fp16 overflows in T5's feed-forward layers; use bf16 (with fp32 master weights) or fp32")
        return value


class DataSection(Section):
    """The data"""

    affects = "numbers"
    data_name: str | None = setting(
        None,
        "mount/data/NAME.json (or .jsonl, .csv, .tsv, .parquet, or a folder with a file per split), a path to such a file, or hf:NAME",
        aliases=("data",),
    )
    quoting: Literal["auto", "quoted", "none"] = setting(
        "auto",
        "whether quotes in CSV and TSV files enclose values (quoted) or are part of texts (none); auto takes them for part of texts "
        "in TSV files that do not parse otherwise",
    )
    keep_source: Literal["end", "start"] = setting(
        "end", "which part of a too long input is kept; the cue to answer usually stands at the end"
    )


class OptimSection(Section):
    """Optimizer and schedule"""

    affects = "numbers"
    optimizer: Literal["adamw", "adafactor"] = setting(
        "adamw", "adafactor needs --deepspeed zero0 and fp32: ZeRO's flat partitions cannot be factored"
    )
    lr_scheduler: Literal["linear", "cosine", "constant", "one_cycle", "inverse_sqrt"] = setting(
        "linear",
        "what follows the warmup: decay to zero, none, one cycle (warmup from a 25th, by default for 0.3 of the run, then down to next to nothing), "
        "or the inverse square root of the step",
    )
    warmup_steps: int = setting(
        2000, "steps of linear warmup; more than half of the run is cut to a tenth of it, with a notice", ge=0
    )
    warmup_ratio: float | None = setting(
        None, "warmup as a share of the run, rather than in --warmup_steps", rivals=("warmup_steps",), ge=0, le=1
    )
    weight_decay: float = setting(
        0.0, "decoupled weight decay; not applied to layer norms and relative-position biases", ge=0
    )
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm; 0 turns clipping off", ge=0)


class TrainedSection(Section):
    """What trains: all weights, some of them, or adapters"""

    affects = "numbers"
    train_only: str | None = setting(
        None,
        "freeze all weights but these: bias, norm, head, or glob patterns over names of parameters and modules, with commas between; "
        "a classification head always trains",
        rivals=("lora_r",),
    )
    lora_r: int = setting(0, "rank of adapters that train in the place of the weights; 0 for none", ge=0)
    lora_alpha: float | None = setting(
        None,
        "what adapters are scaled by, over their rank (rslora: over its root); by default twice the rank",
        needs="lora_r",
        gt=0,
    )
    lora_dropout: float = setting(0.0, "dropout rate of what goes into adapters", needs="lora_r", ge=0, lt=1)
    lora_targets: str = setting(
        "attention",
        "linear maps that get adapters: attention, all, or glob patterns over module names, with commas between (wi_*,wo)",
        needs="lora_r",
    )
    lora_kind: Literal["lora", "rslora", "dora"] = setting(
        "lora",
        "plain, rank-stabilised, or weight-decomposed adapters (dora computes whole weights: slower)",
        needs="lora_r",
    )
    lora_base: Literal["full", "nf4"] = setting(
        "full",
        "how the frozen linear maps beside adapters are held: full, or in 4 bits (QLoRA: NF4 with double quantisation, about 0.52 bytes a number; "
        "needs bitsandbytes, T5 or a BERT-like model, and ZeRO below 3)",
        needs="lora_r",
    )

    @property
    def only(self) -> tuple[str, ...]:
        """The patterns of --train_only."""
        return _between_commas(self.train_only or "")

    @property
    def targets(self) -> tuple[str, ...]:
        """The patterns of --lora_targets."""
        return _between_commas(self.lora_targets)

    @field_validator("train_only", "lora_targets")
    @classmethod
    def _names_something(cls, value: str | None) -> str | None:
        if value is not None and not _between_commas(value):
            raise ValueError("names nothing; give one or more patterns with commas between")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> TrainedSection:
        if self.lora_r and self.train_only:
            raise ValueError("--lora_r freezes the weights that --train_only would train; pass one of them")
        names = ("lora_alpha", "lora_dropout", "lora_targets", "lora_kind", "lora_base")
        alone = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if alone and not self.lora_r:
            raise ValueError(f"--{alone[0]} needs adapters; pass --lora_r with their rank, e.g. 8")
        if self.lora_base != "full" and self.lora_kind == "dora":
            raise ValueError(
                f"--lora_base {self.lora_base} takes --lora_kind lora or rslora; dora computes with whole weights in every pass, which has not "
                "been tried on quantised ones"
            )
        return self


def _between_commas(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


class TrainingSection(Section):
    """Training"""

    affects = "numbers"
    gradient_accumulation_steps: int = setting(1, "steps whose gradients are added up before an update", ge=1)
    micro_batch_size: int | None = setting(
        None,
        "most examples in one forward pass of a rank; changes no number beyond rounding (of padded batches with dropout: other masks, "
        "which the run's header says); by default as many as --micro_batch_tokens allows",
        ge=1,
        affects="speed",
    )
    micro_batch_tokens: int | None = setting(
        None,
        "most tokens in one forward pass of a rank; changes no number, as --micro_batch_size; by default what a trial finds room for on GPUs, 8192 on CPUs",
        ge=1,
        affects="speed",
    )
    deepspeed: str = setting(
        "auto",
        "auto, zero0, zero1, zero2, zero3, or a DeepSpeed JSON FILE; auto is zero2 on several ranks, on one rank zero0 (fp32) or zero1 (bf16), "
        "and on GPUs a higher stage where by estimate these do not fit",
        affects="speed",
    )
    save_steps: int | None = setting(
        None,
        "updates between checkpoints; by default as often as evaluations; the last step is always saved",
        ge=1,
        affects="speed",
    )
    save_total_limit: int | None = setting(
        None,
        "checkpoints to keep (never dropped: the best, the newest); by default all; what a run continues from stays in the newest two",
        ge=1,
        affects="speed",
    )
    save_in_background: bool = setting(
        False,
        "write checkpoints while training goes on, from a copy of weights and optimizer in the first rank's memory (12 bytes a weight and more)",
        affects="speed",
    )
    logging_steps: int = setting(10, "updates between two lines of the log", ge=1, affects="speed")
    skip_nonfinite: int = setting(
        0,
        "updates with a loss or gradient that is not finite to leave out in a whole run; one more ends it",
        ge=0,
        affects="speed",
    )

    @field_validator("deepspeed")
    @classmethod
    def _known_stage(cls, value: str) -> str:
        if value not in ("auto", *ZERO_STAGES) and not value.endswith(".json"):
            hint = did_you_mean(value, ("auto", *ZERO_STAGES))
            raise ValueError(
                f"expected auto, {', '.join(ZERO_STAGES)}, or a .json file such as ds_configs/zero3_offload.json{hint}"
            )
        return value


class EvaluationSection(Section):
    """Evaluation"""

    affects = "numbers"
    slice_by: str | None = setting(None, "also report metrics for each value of this key of the eval rows")
    patience: int | None = setting(
        None,
        "evaluations in a row without a better value of the metric that chooses the best, after which training ends",
        ge=1,
    )
    no_eval_at_start: bool = setting(False, "skip the evaluation before the first step")
    no_eval_at_end: bool = setting(False, "skip the evaluation after the last step (for benchmarks)")


def section_fields(settings: type[BaseModel]) -> dict[str, tuple[str, Any]]:
    """Flat setting name -> (section name, pydantic FieldInfo), in order."""
    found: dict[str, tuple[str, Any]] = {}
    for section_name, section in settings.model_fields.items():
        assert isinstance(section.annotation, type)
        assert issubclass(section.annotation, Section)
        for name, info in section.annotation.model_fields.items():
            assert name not in found, f"setting {name} stands in two sections"
            found[name] = (section_name, info)
    return found


def affected_by(settings: type[BaseModel], name: str) -> Affects:
    """What a setting of these changes."""
    section_name, info = section_fields(settings)[name]
    own = info.json_schema_extra.get("affects") if isinstance(info.json_schema_extra, dict) else None
    section = settings.model_fields[section_name].annotation
    assert isinstance(section, type)
    assert issubclass(section, Section)
    return own or section.affects


def settings_within(field: Any) -> type[BaseModel] | None:
    """The settings that a setting is made of (`--r_drop.alpha`), or None where it has a plain value."""
    parts = get_args(field.annotation) or (field.annotation,)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def field_aliases(field: Any) -> list[str]:
    """The other names a field goes by."""
    return field_extra(field, "aliases")


def field_extra(field: Any, kind: str) -> list[str]:
    """Names that a field declares: its `aliases`, `rivals`, `companions` or what it `needs`."""
    extra = field.json_schema_extra
    return list(extra.get(kind, ())) if isinstance(extra, dict) else []
