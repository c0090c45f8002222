"""The card of a checkpoint (`README.md`): what it is, what it was trained on, how good it is, how to load it, what it cannot.

Knows nothing of tasks or models; is given facts. The front matter is what model hubs read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workflow.evaluation.metrics import Metric
from workflow.pages import card_code
from workflow.pages.markup import measured

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_METRICS = {
    "exact_match": "exact_match",
    "bleu": "sacrebleu",
    "chrf": "chrf",
    "rougeL": "rouge",
    "accuracy": "accuracy",
    "f1_macro": "f1",
    "precision_macro": "precision",
    "recall_macro": "recall",
    "auc": "roc_auc",
    "mcc": "matthews_correlation",
    "spearman": "spearmanr",
    "pearson": "pearsonr",
    "brier": "brier_score",
}
"""Our metrics by the hub's names for them."""


@dataclass(frozen=True)
class CardFacts:
    """Everything a card says. `metrics` is None where this step was not evaluated; `kind` is texts, labels or head.

    labels: a T5's first answer token is read, at `label_tokens`; head: a classification head.
    """

    run: str
    step: int
    kind: str
    start: str
    start_is_hub: bool
    data: str
    data_hash: str
    rows: Mapping[str, int]
    family: str
    size: str
    metrics: Mapping[str, Metric] | None
    best_metric: str
    truncated: Sequence[str] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    problem: str = "binary"
    labels: Sequence[str] = ()
    label_tokens: Sequence[int] = ()
    range: tuple[float, float] = (0.0, 1.0)
    template: str | None = None
    max_length: int = 0
    keep: str = "end"
    max_new_tokens: int = 0
    left_out: Sequence[int] = ()
    """Tokens that are no part of answers, where these keep special tokens."""
    has_adapters: bool = False
    average: str = ""
    """What these weights are the average of, where they are one."""
    calibration: str = ""
    version: str = ""


def card(facts: CardFacts) -> str:
    """The whole file."""
    parts = [
        f"# {_plain(facts.run)}, {'averaged to ' if facts.average else ''}step {facts.step}",
        _what(facts),
        "## Metrics\n\n" + _metrics(facts),
        "## How to load it\n\n" + _loading(facts),
        *(["## How scores are computed\n\n" + _scores(facts)] if facts.kind != "texts" else []),
        "## Limits\n\n" + _limits(facts),
    ]
    return f"---\n{front_matter(facts)}---\n\n" + "\n\n".join(parts) + "\n"


def front_matter(facts: CardFacts) -> str:
    """YAML. The licence is left out: the start model's and the data's decide it, and they are not known here."""
    import yaml

    is_text = facts.kind == "texts"
    pipeline = "text2text-generation" if is_text else "text-classification"
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": pipeline,
        "tags": ["workflow", facts.family],
    }
    if facts.start_is_hub and HUB_NAME.fullmatch(facts.start):
        values["base_model"] = facts.start
    known = {name: found for name, found in (facts.metrics or {}).items() if found.value is not None}
    if names := [HUB_METRICS[name] for name in known if name in HUB_METRICS]:
        values["metrics"] = names
    if known:
        results = [
            {"type": HUB_METRICS.get(name, name), "name": name, "value": found.value} for name, found in known.items()
        ]
        dataset = {"name": facts.data, "type": "json"}
        result = {"task": {"type": pipeline}, "dataset": dataset, "metrics": results}
        values["model-index"] = [{"name": facts.run, "results": [result]}]
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _what(facts: CardFacts) -> str:
    rows = ", ".join(f"{count:,} {split} rows" for split, count in facts.rows.items() if count)
    does = {"texts": "It answers prompts with texts."}.get(facts.kind, f"It scores inputs ({facts.problem} targets).")
    adapters = (
        "\nIt was trained by adapters, which these weights hold merged; `adapter/` has them apart, as `peft` reads them."
        if facts.has_adapters
        else ""
    )
    average = f"\nThese weights are no checkpoint of the training but {facts.average}." if facts.average else ""
    training = ", ".join(f"{name} {_value(value)}" for name, value in facts.training.items())
    return (
        f"A {facts.family} model of {facts.size}, fine-tuned with `workflow` {facts.version}. {does}{adapters}{average}\n\n"
        f"- Started from: {_code(facts.start)}\n"
        f"- Data: {_code(facts.data)} ({rows}), hash `{facts.data_hash}`\n"
        f"- Training: {training}"
    )


def _metrics(facts: CardFacts) -> str:
    if facts.metrics is None:
        which = "average" if facts.average else "model"
        return f"The {which} of step {facts.step} was not evaluated: there were no eval rows, or no evaluation was due at this step."
    lines = ["| metric | value | 95 % interval | rows |", "|---|---|---|---|"]
    for name, found in facts.metrics.items():
        interval = f"{measured(found.low)} to {measured(found.high)}" if found.low is not None else "-"
        value = measured(found.value) if found.value is not None else f"not defined: {found.reason}"
        shown = f"**{name}**" if name == facts.best_metric else name
        lines.append(f"| {shown} | {value} | {interval} | {found.n:,} |")
    return (
        "\n".join(lines)
        + f"\n\nOn the eval rows, after {facts.step} updates; {facts.best_metric} chooses the best step"
        + (", among those of the training's own weights." if facts.average else ".")
    )


def _loading(facts: CardFacts) -> str:
    makers: dict[str, Callable[..., str]] = {
        "texts": card_code.texts,
        "labels": card_code.labels,
        "head": card_code.head,
    }
    code = makers[facts.kind]
    made = code(
        labels=facts.labels,
        label_tokens=facts.label_tokens,
        problem=facts.problem,
        low=facts.range[0],
        high=facts.range[1],
        max_new_tokens=facts.max_new_tokens,
        left_out=facts.left_out,
    )
    template = ""
    if facts.template is not None:
        template = f"\n\nInputs were wrapped in this template, and must be here too:\n\n```\n{facts.template}\n```"
    return f"```python\n{made}```{template}"


def _scores(facts: CardFacts) -> str:
    names = ", ".join(_code(label) for label in facts.labels)
    if facts.kind == "labels":
        tokens = ", ".join(
            f"{_code(label)} = {token}" for label, token in zip(facts.labels, facts.label_tokens, strict=True)
        )
        text = (
            f"A softmax over the raw logits of the label words at the first decoder position; their tokens: {tokens}."
        )
        text += " A pair of texts is written as `sentence1: ... sentence2: ...`."
    else:
        text = {
            "regression": "The head's one output is the number itself.",
            "multilabel": f"A sigmoid of each of the head's outputs, in the order {names}.",
        }.get(facts.problem, f"A softmax over the head's outputs, in the order {names}.")
    if facts.problem == "binary":
        text += f" The score is the share of {_code(facts.labels[1])}"
        low, high = facts.range
        text += "." if (low, high) == (0.0, 1.0) else f", mapped from [0, 1] to [{low:g}, {high:g}]."
    return text


def _limits(facts: CardFacts) -> str:
    lines = [
        "Which languages the data is in was not determined, and nothing was measured on other data than the eval rows.",
        f"Inputs beyond {facts.max_length:,} tokens were cut; their {facts.keep} was kept.",
        *facts.truncated,
        *([f"Answers stop after {facts.max_new_tokens:,} tokens."] if facts.kind == "texts" else []),
        *(
            [
                "Answers keep special tokens that completions hold: `answer_tokens.json` has them, and the blanks beside them."
            ]
            if facts.left_out
            else []
        ),
        *([facts.calibration] if facts.calibration else []),
        "No licence is stated: those of the start model and of the data apply.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _code(value: str) -> str:
    """As code, whatever backticks the text has itself."""
    shown = " ".join(str(value).split())
    fence = "`" * (max((len(run) for run in re.findall(r"`+", shown)), default=0) + 1)
    return f"{fence} {shown} {fence}" if "`" in shown else f"{fence}{shown}{fence}"


def _plain(value: str) -> str:
    return re.sub(r"([\\`*_<>\[\]])", r"\\\1", value)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
