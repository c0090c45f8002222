"""What a configuration and transformers' report of a load say of a checkpoint, as errors and notes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from workflow.errors import ModelError


def check_unquantised(name: str, config: Any) -> None:
    """Raises ModelError for a configuration that says how its weights were quantised."""
    if found := getattr(config, "quantization_config", None):
        method = found.get("quant_method", "unknown") if isinstance(found, dict) else type(found).__name__
        raise ModelError(
            f"{name}: a quantised checkpoint (quantization_config of config.json: {method}); name the one that it was made "
            "from, in fp32, bf16 or fp16"
        )


def check_report(name: str, model: Any, report: dict[str, Any], *, may_be_new: Collection[str] = ()) -> list[str]:
    """What transformers found in the files beyond a model's weights, as notes; `may_be_new` weights may be others, or missing.

    Raises ModelError for other weights that transformers made anew.
    """
    mismatched = {
        found[0]: shapes(found[0], tuple(found[1]), tuple(found[2])) for found in sorted(report["mismatched_keys"])
    }
    if odd := [text for key, text in mismatched.items() if key not in may_be_new]:
        raise ModelError(f"{name}: weights and config.json disagree about shapes: {some(odd)}")
    if missing := sorted(key for key in report["missing_keys"] if key not in may_be_new):
        raise ModelError(
            f"{name}: the weights lack {len(missing)} tensors of its {model.config.model_type}: {some(missing)}"
        )
    unexpected = sorted(report["unexpected_keys"])
    return [f"{len(unexpected)} tensors of the checkpoint are not used: {some(unexpected)}"] if unexpected else []


def shapes(key: str, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """`shared.weight is 64x32 in the files, 96x32 by config.json`."""
    in_file, by_config = ("x".join(map(str, shape)) or "a single number" for shape in (found, expected))
    return f"{key} is {in_file} in the files, {by_config} by config.json"


def some(names: list[str]) -> str:
    """The first few names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
