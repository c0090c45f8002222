"""A model as ONNX graphs, under the file and input names that optimum reads, and what onnxruntime computes from them.

Knows nothing of runs or of what counts as equal. A T5 is two graphs, encoder and decoder, the latter without a cache: every step
computes the whole answer so far (optimum's `ORTModelForSeq2SeqLM(use_cache=False)`). A T5's scale of its logits is in the graph.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutput

from workflow.errors import ModelError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ENCODER, DECODER, WHOLE = "encoder_model.onnx", "decoder_model.onnx", "model.onnx"
SAMPLE_IDS = ((3, 4, 5, 6, 7), (4, 5, 6, 0, 0))
"""Traced with: two rows, one of them padded, as torch would take a size of 1 and a mask of ones for constants."""
SAMPLE_MASK = ((1, 1, 1, 1, 1), (1, 1, 1, 0, 0))
SAMPLE_TARGETS = ((0, 3, 4), (0, 5, 6))
TEXT = {0: "batch", 1: "sequence"}
ANSWER = {0: "batch", 1: "decoder_sequence"}


def missing_packages() -> list[str]:
    """Those of PACKAGES that are not installed; a mere folder of such a name, of no origin, is none."""
    specs = {name: importlib.util.find_spec(name) for name in PACKAGES}
    return [name for name, spec in specs.items() if spec is None or spec.origin is None]


class Encoder(torch.nn.Module):
    """(input_ids, attention_mask) int64 [rows, tokens] -> last_hidden_state [rows, tokens, d_model]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The encoder's states."""
        states: torch.Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states


class Decoder(torch.nn.Module):
    """Decoder and head: (input_ids [rows, targets], encoder_hidden_states, encoder_attention_mask) -> [rows, targets, vocabulary].

    The model's own forward pass with its encoder left out, so that its scale of the logits is the model's own too.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor, encoder_attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """The logits of every position."""
        logits: torch.Tensor = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoder_hidden_states),
            attention_mask=encoder_attention_mask,
            decoder_input_ids=input_ids,
            use_cache=False,
        ).logits
        return logits


class Classifier(torch.nn.Module):
    """(input_ids, attention_mask[, token_type_ids]) int64 [rows, tokens] -> logits [rows, labels]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The logits."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits
        return logits


def write_seq2seq(folder: Path, model: Any) -> None:
    """Writes a T5's two graphs; the model is in fp32 on the CPU, with its whole head."""
    ids, mask, targets = (torch.tensor(rows) for rows in (SAMPLE_IDS, SAMPLE_MASK, SAMPLE_TARGETS))
    states = torch.randn(*ids.shape, model.config.d_model, generator=torch.Generator().manual_seed(0))
    with _traceable(model):
        text = {"input_ids": ids, "attention_mask": mask}
        _write(folder / ENCODER, Encoder(model), text, dict.fromkeys(text, TEXT), "last_hidden_state")
        answer = {"input_ids": targets, "encoder_hidden_states": states, "encoder_attention_mask": mask}
        _write(folder / DECODER, Decoder(model), answer, dict.fromkeys(answer, TEXT) | {"input_ids": ANSWER}, "logits")


def write_classifier(folder: Path, model: Any, *, takes_types: bool) -> None:
    """Writes the one graph of a model with a classification head, in fp32 on the CPU."""
    ids, mask = torch.tensor(SAMPLE_IDS), torch.tensor(SAMPLE_MASK)
    text = {"input_ids": ids, "attention_mask": mask}
    if takes_types:
        text["token_type_ids"] = torch.zeros_like(ids)
    with _traceable(model):
        _write(folder / WHOLE, Classifier(model), text, dict.fromkeys(text, TEXT), "logits")


@contextlib.contextmanager
def _traceable(model: Any) -> Iterator[None]:
    """Evaluation and plain attention: fused kernels have branches on the mask's contents, which a graph cannot hold."""
    was = model.config._attn_implementation
    model.eval().set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(was)


def _write(
    file: Path, module: torch.nn.Module, given: dict[str, torch.Tensor], axes: dict[str, dict[int, str]], output: str
) -> None:
    """Traces and writes one graph; weights of 2 GB, which one file of this format cannot hold, stand beside it. Raises ModelError."""
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                (),
                kwargs=given,
                input_names=list(given),
                output_names=[output],
                dynamic_shapes=axes,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:400]
        raise ModelError(f"torch's ONNX exporter does not take this model ({file.name}): {reason}") from error
    assert program is not None  # it is None of the older exporter only
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    program.save(str(file), external_data=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about itself and packages that it would know operators of."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """onnxruntime's own exceptions have no common class that it makes public."""
    try:
        yield
    except Exception as error:
        raise ModelError(f"onnxruntime does not take what was written: {' '.join(str(error).split())[:400]}") from error


class Graphs:
    """What onnxruntime computes on the CPU from a folder that was written here. Raises ModelError where it cannot."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        files = [file for file in (ENCODER, DECODER, WHOLE) if (folder / file).is_file()]
        with _explained():
            self.sessions = {
                file: onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
                for file in files
            }

    def logits(self, ids: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """[rows, targets, vocabulary] of a T5 that is given decoder inputs [rows, targets]; [rows, labels] of a classifier."""
        if targets is None:
            return self._run(WHOLE, input_ids=ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids))
        states = self._run(ENCODER, input_ids=ids, attention_mask=mask)
        return self._run(DECODER, input_ids=targets, encoder_hidden_states=states, encoder_attention_mask=mask)

    def _run(self, file: str, **given: torch.Tensor) -> torch.Tensor:
        session = self.sessions[file]
        taken = {value.name for value in session.get_inputs()}
        arrays: Sequence[np.ndarray]
        with _explained():
            arrays = session.run(None, {name: value.numpy() for name, value in given.items() if name in taken})
        return torch.from_numpy(arrays[0])
