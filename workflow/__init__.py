"""workflow: fine-tune T5-family models from a JSON file of examples, evaluate them honestly, and use them.

Knows nothing but its version; the clients of `workflow serve` are imported when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What is imported late, so that `import workflow` costs nothing."""
    if name in ("AsyncClient", "Client"):
        from workflow import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
