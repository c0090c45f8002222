"""Every strategy there is, in the order in which they compose.

To add one: its settings (`config/strategy_settings.py`), its file here, its line below, its test (docs/strategies.md).
"""

from __future__ import annotations

from typing import Any

from workflow.config.strategy_settings import StrategiesSection
from workflow.strategies.base import Strategy
from workflow.strategies.composed import Composed
from workflow.strategies.freeze import Freeze
from workflow.strategies.grouped_layerwise_lrd import GroupedLayerwiseLrd
from workflow.strategies.label_smoothing import LabelSmoothing
from workflow.strategies.layerwise_lrd import LayerwiseLrd
from workflow.strategies.r_drop import RDrop
from workflow.strategies.reinit import Reinit
from workflow.strategies.static_sparsity import StaticSparsity
from workflow.strategies.weight_averaging import Ema, Swa

STRATEGIES: dict[str, Any] = {
    "reinit": Reinit,
    "layerwise_lrd": LayerwiseLrd,
    "grouped_layerwise_lrd": GroupedLayerwiseLrd,
    "freeze": Freeze,
    "label_smoothing": LabelSmoothing,
    "r_drop": RDrop,
    "static_sparsity": StaticSparsity,
    "swa": Swa,
    "ema": Ema,
}


def compose(settings: StrategiesSection) -> Composed:
    """Those that the settings turn on."""
    chosen: list[Strategy] = [
        strategy(given) for name, strategy in STRATEGIES.items() if (given := getattr(settings, name)) is not None
    ]
    return Composed(chosen)
