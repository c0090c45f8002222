"""Which weights of a model train: all, or those that patterns name (BitFit: Ben Zaken et al. 2022), the others frozen.

Knows nothing of optimizers or adapters.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from typing import Any

from workflow.errors import ConfigError
from workflow.models.load import head_names
from workflow.models.load_report import some
from workflow.models.quantised import num_weights


def train_only(model: Any, patterns: Collection[str], *, always: Collection[str] = ()) -> None:
    """Freezes all but what patterns name: `bias`, `norm`, `head`, or globs over names of parameters; and `always`.

    Raises ConfigError for a pattern that matches nothing.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen = set()
    for pattern in patterns:
        matches = _matcher(model, pattern)
        found = [name for name in parameters if matches(name)]
        if not found:
            raise ConfigError(
                f"--train_only {pattern}: matches no parameter of this {model.config.model_type}; near are: {some(_near(pattern, parameters))}"
            )
        chosen.update(found)
    chosen.update(always)
    # By parameter, not by name: a tied head goes by several.
    kept = {id(parameters[name]) for name in chosen}
    for parameter in parameters.values():
        parameter.requires_grad_(id(parameter) in kept)


def _matcher(model: Any, pattern: str) -> Callable[[str], bool]:
    if pattern == "bias":
        return lambda name: name.endswith(".bias")
    if pattern == "norm":
        norms = {name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()}
        return lambda name: name.rpartition(".")[0] in norms
    if pattern == "head":
        heads = {*head_names(model)}
        return lambda name: name in heads
    forms = [f"{start}{pattern}{end}" for start in ("", "*.") for end in ("", ".*")]  # a module means what it holds
    return lambda name: any(fnmatchcase(name, form) for form in forms)


def _near(pattern: str, names: Collection[str]) -> list[str]:
    """Names that look like a pattern; the first ones where none does."""
    plain = pattern.replace("*", "")
    holding = [name for name in names if plain and plain in name]
    return holding or difflib.get_close_matches(plain, names, n=5, cutoff=0.4) or list(names)


def share_text(model: Any) -> str:
    """`0.3 M of 77.0 M parameters (0.4 %)`."""
    total = num_weights(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"{trained:,} of {total:,} parameters ({trained / total:.2%})"
