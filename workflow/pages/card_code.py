"""The code of a card: a few lines of plain transformers that load a checkpoint and use it as it was trained.

Knows nothing of cards. A test runs each of them in a checkpoint's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_TEXTS = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSeq2SeqLM.from_pretrained(folder)
prompt = "Your prompt"
inputs = tokenizer(prompt, return_tensors="pt")
ids = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens={max_new_tokens})
{answer}
print(answer)
"""
_LABELS = """\
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSeq2SeqLM.from_pretrained(folder)
labels, tokens = {labels}, {tokens}
text = "Your input"
inputs = tokenizer(text, return_tensors="pt")
start = torch.tensor([[model.config.decoder_start_token_id]])
with torch.no_grad():
    outputs = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, decoder_input_ids=start)
probabilities = outputs.logits[0, 0, tokens].softmax(-1)
"""
_HEAD = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder)
labels = {labels}
text, pair = "Your input", None  # pair: the second text of two
inputs = tokenizer(text, pair, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits[0]
"""


def texts(*, max_new_tokens: int, left_out: Sequence[int], **_: Any) -> str:
    """Of a model that answers prompts; ends with `answer`. `left_out` are no part of texts; without any, no special token is."""
    answer = "answer = tokenizer.decode(ids[0], skip_special_tokens=True)"
    if left_out:
        tokens = f"[token for token in ids[0].tolist() if token not in {sorted(left_out)}]"
        answer = f"answer = tokenizer.decode({tokens})  # answers keep other special tokens"
    return _TEXTS.format(max_new_tokens=max_new_tokens, answer=answer)


def labels(
    *, labels: Sequence[str], label_tokens: Sequence[int], problem: str, low: float, high: float, **_: Any
) -> str:
    """Of a T5 whose answer's first token is read; ends with `score`."""
    return _LABELS.format(labels=list(labels), tokens=list(label_tokens)) + _score(problem, low, high)


def head(*, labels: Sequence[str], problem: str, low: float, high: float, **_: Any) -> str:
    """Of a model with a classification head; ends with `score`."""
    code = _HEAD.format(labels=list(labels) if problem != "regression" else ["score"])
    if problem == "regression":
        return code + "score = float(logits[0])\nprint(score)\n"
    squash = "sigmoid()" if problem == "multilabel" else "softmax(-1)"
    return f"{code}probabilities = logits.{squash}\n" + _score(problem, low, high)


def _score(problem: str, low: float, high: float) -> str:
    if problem != "binary":
        return "score = dict(zip(labels, probabilities.tolist()))\nprint(score)\n"
    mapped = "" if (low, high) == (0.0, 1.0) else f"score = {low!r} + ({high!r} - {low!r}) * score\n"
    return f"score = float(probabilities[1])  # of labels[1]\n{mapped}print(score)\n"
