"""Reads a nanoGPT checkpoint (`ckpt.pt`) as the body of a GPT-2: the same numbers under transformers' names.

Knows nothing of tokenizers (a `ckpt.pt` holds none, so the configuration names no special tokens) or of heads.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow.errors import ModelError
from workflow.models.load import refuse_pointers

if TYPE_CHECKING:
    import torch
    from transformers import GPT2Config

CHECKPOINT_FILE = "ckpt.pt"
WRAPPERS = ("_orig_mod.", "module.")
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
FIELDS = (*SIZES, "bias", "dropout")
# The output head is tied to the embeddings; the causal mask is a buffer of nanoGPT's without flash attention.
NOT_USED = re.compile(r"lm_head\.weight|transformer\.h\.\d+\.attn\.bias")
LAYER = re.compile(r"transformer\.h\.(\d+)\.")
ACTIVATION = "activation_function"
LINEAR = re.compile(r".*\.(c_attn|c_proj|c_fc)\.weight")
MAX_NAMED = 20


def is_nanogpt(path: Path) -> bool:
    """Whether a path means a nanoGPT checkpoint: a file ending in .pt, or a folder with ckpt.pt and no config.json."""
    if path.is_dir():
        return (path / CHECKPOINT_FILE).is_file() and not (path / "config.json").exists()
    return path.suffix == ".pt"


def read_nanogpt(path: Path) -> tuple[GPT2Config, dict[str, torch.Tensor], list[str]]:
    """The configuration, the body's weights, fp32, named as in GPT2ForSequenceClassification, and notes of what was assumed.

    Every tensor of the file is used or known not to be; a model without biases gets zeros for them. Files are read
    with `weights_only` alone, so no code of a checkpoint is run. Raises ModelError.
    """
    import torch

    file = path / CHECKPOINT_FILE if path.is_dir() else path
    arguments, found, notes = _parts(file, _load(file))
    layout = _layout(arguments)
    needed = {name: shape for name, shape in layout.items() if arguments["bias"] or not name.endswith(".bias")}
    _check_weights(file, found, needed)
    weights = {}
    for name, shape in layout.items():
        weight = found[name] if name in needed else torch.zeros(shape)
        # GPT-2's Conv1D keeps its weights the other way round than nn.Linear.
        weights[name] = (weight.t() if LINEAR.fullmatch(name) else weight).to(torch.float32).clone().contiguous()
    return _config(arguments), weights, notes


def _load(file: Path) -> Any:
    import torch

    if not file.is_file():
        raise ModelError(f"{file}: no such file; pass a nanoGPT ckpt.pt, or the folder that holds it")
    refuse_pointers(file)
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns of odd pickles before it refuses them
            # Mapped, the optimizer's two thirds of the file are never read.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except MemoryError:
        raise
    except Exception as error:  # torch raises many kinds: EOFError, KeyError, RuntimeError, UnpicklingError
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise ModelError(
                f"{file}: refused, since reading it would run code of the file ({refused[1]}); if you trust its origin, "
                "save it again with torch.save and only tensors, numbers and texts in it"
            ) from None
        raise ModelError(
            f"{file}: cannot be read; it is cut short, damaged, or no file of torch.save; copy it again"
        ) from error


def _parts(file: Path, content: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor], list[str]]:
    """The checked `model_args`, the weights by their names without wrappers, and what was assumed."""
    import torch

    if not isinstance(content, dict):
        raise ModelError(f"{file}: no nanoGPT checkpoint: it holds a {type(content).__name__}, not a dict")
    for key in ("model", "model_args"):
        if not isinstance(content.get(key), Mapping):
            raise ModelError(f"{file}: no nanoGPT checkpoint: no dict under {key!r} (it has {_some(content)})")
    weights: dict[str, torch.Tensor] = {}
    for key, value in content["model"].items():
        name = _unwrapped(str(key))
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"{file}: model: {key!r} is a {type(value).__name__}, not a tensor")
        if name in weights:
            raise ModelError(f"{file}: model: {name!r} stands there twice, wrapped and unwrapped; keep one")
        weights[name] = value
    if ACTIVATION in content["model_args"]:
        raise ModelError(
            f"{file}: model_args holds {ACTIVATION}, which nanoGPT has not; a changed architecture cannot be read"
        )
    arguments, notes = completed(content["model_args"], weights)
    return _arguments(file, arguments), weights, notes


def _unwrapped(name: str) -> str:
    """A weight's name without what torch.compile and data parallelism put before it."""
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def completed(arguments: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, Any], list[str]]:
    """`model_args` with what early versions did not write, as the weights and those versions have it; notes of that.

    Without `bias` a checkpoint is of an early version, whose norms and linear maps all had biases, and whose activation was
    GPT-2's approximation.
    """
    found: dict[str, Any] = {}
    if "bias" not in arguments:
        found |= {
            "bias": any(name.endswith(".bias") and not NOT_USED.fullmatch(name) for name in weights),
            ACTIVATION: "gelu_new",
        }
    if "dropout" not in arguments:
        found["dropout"] = 0.0
    for table, row_field in (("wte", "vocab_size"), ("wpe", "block_size")):
        weight = weights.get(f"transformer.{table}.weight")
        if weight is not None and weight.dim() == 2:
            sizes = {row_field: weight.shape[0], "n_embd": weight.shape[1]}
            found |= {field: size for field, size in sizes.items() if field not in arguments}
    layers = {int(match[1]) for name in weights if (match := LAYER.match(name))}
    if layers and "n_layer" not in arguments:
        found["n_layer"] = max(layers) + 1
    if not found:
        return dict(arguments), []
    text = ", ".join(f"{field} {value}" for field, value in found.items())
    return {**arguments, **found}, [
        f"model_args of this early nanoGPT checkpoint lacks some values; taken to be {text}"
    ]


def _arguments(file: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    if missing := [field for field in FIELDS if field not in arguments]:
        raise ModelError(
            f"{file}: model_args lacks {', '.join(missing)}; nanoGPT's train.py writes {', '.join(FIELDS)}"
        )
    if unknown := [str(field) for field in arguments if field not in (*FIELDS, ACTIVATION)]:
        raise ModelError(
            f"{file}: model_args holds {_some(unknown)}, which nanoGPT has not; a changed architecture cannot be read"
        )
    for field in SIZES:
        if type(arguments[field]) is not int or arguments[field] < 1:
            raise ModelError(f"{file}: model_args: {field} must be a positive whole number, not {arguments[field]!r}")
    if arguments["n_embd"] % arguments["n_head"]:
        raise ModelError(
            f"{file}: model_args: n_embd {arguments['n_embd']} is not divisible by n_head {arguments['n_head']}"
        )
    if type(arguments["bias"]) is not bool:
        raise ModelError(f"{file}: model_args: bias must be True or False, not {arguments['bias']!r}")
    if type(arguments["dropout"]) not in (int, float) or not 0 <= arguments["dropout"] < 1:
        raise ModelError(f"{file}: model_args: dropout must be a number in [0, 1), not {arguments['dropout']!r}")
    return dict(arguments)


def _layout(arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight that a nanoGPT of these sizes uses, biases included."""
    width = arguments["n_embd"]
    norms = ["transformer.ln_f"]
    linears: dict[str, tuple[int, int]] = {}
    for layer in range(arguments["n_layer"]):
        block = f"transformer.h.{layer}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        linears |= {
            f"{block}.attn.c_attn": (3 * width, width),
            f"{block}.attn.c_proj": (width, width),
            f"{block}.mlp.c_fc": (4 * width, width),
            f"{block}.mlp.c_proj": (width, 4 * width),
        }
    return {
        "transformer.wte.weight": (arguments["vocab_size"], width),
        "transformer.wpe.weight": (arguments["block_size"], width),
        **{f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")},
        **{f"{linear}.weight": shape for linear, shape in linears.items()},
        **{f"{linear}.bias": shape[:1] for linear, shape in linears.items()},
    }


def _check_weights(file: Path, found: Mapping[str, torch.Tensor], needed: Mapping[str, tuple[int, ...]]) -> None:
    """Every tensor is there, is known, and has the shape that `model_args` say."""
    problems = []
    if missing := [name for name in needed if name not in found]:
        problems.append(f"the weights lack {_some(missing)}")
    if unknown := [name for name in found if name not in needed and not NOT_USED.fullmatch(name)]:
        problems.append(f"a nanoGPT of these model_args has no {_some(unknown)}")
    if misshapen := [
        f"{name} ({'x'.join(map(str, found[name].shape))}, not {'x'.join(map(str, shape))})"
        for name, shape in needed.items()
        if name in found and tuple(found[name].shape) != shape
    ]:
        problems.append(f"of another shape than model_args say: {_some(misshapen)}")
    if whole := [name for name in needed if name in found and not found[name].is_floating_point()]:
        problems.append(f"not floating-point numbers: {_some(whole)}")
    if problems:
        raise ModelError(f"{file}: its weights are not those of its model_args: {'; '.join(problems)}")


def _config(arguments: Mapping[str, Any]) -> GPT2Config:
    from transformers import GPT2Config

    dropout = float(arguments["dropout"])
    return GPT2Config(
        vocab_size=arguments["vocab_size"],
        n_positions=arguments["block_size"],
        n_embd=arguments["n_embd"],
        n_layer=arguments["n_layer"],
        n_head=arguments["n_head"],
        # By default the exact one, as nn.GELU(); GPT-2's own is an approximation.
        activation_function=arguments.get(ACTIVATION, "gelu"),
        layer_norm_epsilon=1e-5,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=None,
        eos_token_id=None,
    )


def _some(names: Iterable[object]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:MAX_NAMED]) + (f" and {len(shown) - MAX_NAMED} more" if len(shown) > MAX_NAMED else "")
