"""`workflow serve`: the app on a socket, from the first request to an orderly end.

Knows nothing of routes. SIGTERM starts a drain: new requests get 503 on connections that are still taken, accepted
ones are answered, then the process exits with 0; with 1 where an engine died or an answer was lost.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from workflow.errors import ConfigError
from workflow.server.app import create_app
from workflow.server.checkpoints import RunFolder
from workflow.server.desk import ServerState
from workflow.server.error_table import logger
from workflow.server.http_protocol import protocol_class
from workflow.server.loading import make_loader
from workflow.server.logs import set_up_logs
from workflow.server.settings import ServeSettings

DEAD_S = 2.0
"""How long a server with a dead engine still says so to who asks for its health."""
GIVE_UP_S = 0.2
"""How long clients have to take the word that they will not be answered."""
SWITCH_S = 0.0005
"""How long the event loop may keep an engine waiting for the interpreter between two of its thousand calls a step; 5 ms is
Python's habit, and under a burst of requests the engine would stand still."""


class Server(uvicorn.Server):
    """uvicorn's server, which drains before it closes its socket."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self.state = state
        self.exit_code = 0
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: object = None) -> None:
        """Listens, and says where."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)  # type: ignore[arg-type]
        for server in self.servers:
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                logger.info("listening on http://%s:%d", host, port, extra={"host": host, "port": port})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """The first signal drains, the second one ends at once."""
        if self.state.draining and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
            return
        logger.info("signal %d: draining", sig)
        self.state.draining = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.begin_end)
        else:
            self.should_exit = True

    def died(self) -> None:
        """An engine died: whoever can be answered is answered, then the process fails."""
        self.exit_code = 1
        self.begin_end(linger_s=DEAD_S)

    def unready(self) -> None:
        """What was to be preloaded cannot be."""
        self.exit_code = 2
        self.state.draining = True
        self.begin_end()

    def begin_end(self, *, linger_s: float = 0.0) -> None:
        """Starts the end, once."""
        if self._drain is None:
            self._drain = asyncio.get_running_loop().create_task(self._end(linger_s))

    async def _end(self, linger_s: float) -> None:
        started = time.monotonic()
        grace_s = self.state.settings.server.grace_s
        while self.state.num_open and time.monotonic() < started + grace_s:
            await asyncio.sleep(0.02)
        if self.state.num_open:
            logger.error("%d requests are not answered within the grace time", self.state.num_open)
            self.exit_code = self.exit_code or 1
            self.state.given_up.set()
            await asyncio.sleep(GIVE_UP_S)
        await asyncio.sleep(max(0.0, started + linger_s - time.monotonic()))
        self.should_exit = True


def serve(settings: ServeSettings) -> int:
    """Serves until a signal. Returns the exit code. Raises ConfigError for what cannot be served."""
    _check(settings)
    set_up_logs()
    sys.setswitchinterval(SWITCH_S)
    hooks: list[Server] = []
    app = create_app(
        settings,
        make_loader(settings),
        on_dead=lambda: hooks[0].died(),
        on_unready=lambda: hooks[0].unready(),
    )
    server = make_server(app, settings)
    hooks.append(server)
    server.run()
    return server.exit_code


def make_server(app: FastAPI, settings: ServeSettings) -> Server:
    """The server of an app."""
    config = uvicorn.Config(
        app,
        host=settings.server.host,
        port=settings.server.port,
        http=protocol_class(settings.bounds, app.state.door),
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=1,  # the drain has waited already
    )
    return Server(config, app.state.server)


def _check(settings: ServeSettings) -> None:
    if not settings.folder.is_dir():
        raise ConfigError(
            f"--models {settings.folder}: no such folder; train a run, or name the folder that holds runs"
        )
    folder = RunFolder(settings.folder)
    for name in (*settings.models.preload, *filter(None, [settings.models.default_model])):
        if folder.find(name) is None:
            why = f": {fault}" if (fault := folder.fault(name)) else ""
            raise ConfigError(f"no run named {name!r} with a whole checkpoint under {settings.folder}{why}")
