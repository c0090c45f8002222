"""`workflow serve`.

Knows nothing of HTTP; imports the server, and torch with it, only after the flags are known to be good.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from workflow.config.flags import parse
from workflow.server.settings import ServeSettings, serve_layers

EXAMPLE = "workflow serve --models mount/models --port 8000 --preload quickstart"


def serve(argv: Sequence[str]) -> int:
    """Serves runs over HTTP until SIGTERM."""
    resolved = parse(
        ServeSettings,
        argv,
        prog="workflow serve",
        example=EXAMPLE,
        layers=lambda files, flags: serve_layers(files, flags, os.environ),
    )
    from workflow.server.main import serve as run

    return run(resolved.settings)
