"""`workflow serve`: the app on a socket, from the first request to an orderly end.

SIGTERM, SIGHUP or Ctrl-C starts a drain: new requests get 503 on connections that are still taken, accepted ones are
answered, then the process exits with 0; with 1 where an engine died or an answer was lost, with 130 at a second Ctrl-C.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from workflow.server.open_files import QuietAccept, backlog, max_connections, open_file_limit, raise_open_file_limit
from workflow.server.settings import ServeSettings

INTERRUPTED = 130
"""The exit code of who was interrupted, as shells have it."""
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
        self._loop.set_exception_handler(QuietAccept())
        await super().startup(sockets)  # type: ignore[arg-type]
        for server in self.servers:
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                logger.info("listening on http://%s:%d", host, port, extra={"host": host, "port": port})

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGHUP drains too, unless whoever started the server has it ignored (nohup)."""
        hears = (
            threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
        )
        before = signal.signal(signal.SIGHUP, self.handle_exit) if hears else None
        try:
            with super().capture_signals():
                yield
        finally:
            if hears:
                signal.signal(signal.SIGHUP, before)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """The first signal drains, the second one ends at once."""
        if self.state.draining and sig == signal.SIGINT:
            os._exit(INTERRUPTED)  # at once: threads that load or compute would keep an orderly end waiting
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
    hooks: list[Server] = []
    app = create_app(
        settings,
        make_loader(settings),
        on_dead=lambda: hooks[0].died(),
        on_unready=lambda: hooks[0].unready(),
    )
    set_up_logs()  # not before: what is wrong with the flags is told in plain words
    raise_open_file_limit()
    sys.setswitchinterval(SWITCH_S)
    server = make_server(app, settings)
    hooks.append(server)
    server.run()
    return server.exit_code


def make_server(app: FastAPI, settings: ServeSettings) -> Server:
    """The server of an app."""
    most = open_file_limit()
    bounds = settings.bounds
    fitting = max_connections(bounds.max_connections, most)
    if fitting < bounds.max_connections:
        logger.warning("%d open files are allowed (ulimit -n): at most %d connections are taken", most, fitting)
        bounds = bounds.model_copy(update={"max_connections": fitting})
    config = uvicorn.Config(
        app,
        host=settings.server.host,
        port=settings.server.port,
        http=protocol_class(bounds, app.state.door),
        timeout_keep_alive=settings.server.keep_alive_s,
        backlog=backlog(fitting, most),
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
