"""The app: routes, errors and what stands around them, joined.

Knows nothing of sockets and signals (`main`), nor of how a run is loaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from workflow import __version__
from workflow.server.access import Keys
from workflow.server.desk import ServerState
from workflow.server.door import Door
from workflow.server.error_table import add_handlers, logger
from workflow.server.middleware import Access, BodyGate, Envelope
from workflow.server.paths import HeadAsGet, Prefix, root_path
from workflow.server.registry import Registry
from workflow.server.routes import generating, openai, operations, scoring
from workflow.server.service import LoadService
from workflow.server.settings import ServeSettings

DESCRIPTION = "Runs under the mount: texts from seq2seq.py's, scores from clf.py's. Every error has one shape: {error: {message, type, param, code}}."


def _nothing() -> None:
    return None


def create_app(
    settings: ServeSettings,
    load: LoadService,
    *,
    on_dead: Callable[[], None] = _nothing,
    on_unready: Callable[[], None] = _nothing,
) -> FastAPI:
    """The app. `on_dead` is called when an engine has died, `on_unready` when a run to preload cannot be loaded."""
    state = ServerState(settings)

    def died() -> None:
        state.dead = state.draining = True
        on_dead()

    state.registry = Registry(settings, load, draining=lambda: state.draining, on_dead=died)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(state.registry.keep_fresh()), asyncio.create_task(_preload(state, on_unready))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            state.registry.close()

    app = FastAPI(
        title="workflow serve",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # FastAPI's page loads its scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    keys = Keys(settings.access.api_key_file)
    app.state.server, app.state.door = state, Door(state, keys, _queued_paths())
    for module in (generating, scoring, openai, operations):
        app.include_router(module.router)
    add_handlers(app)
    _surround(app, state, keys)
    return app


def _queued_paths() -> set[str]:
    """Where requests for an engine are posted to; every other route answers at once."""
    routes = [route for module in (generating, scoring, openai) for route in module.router.routes]
    return {route.path for route in routes if isinstance(route, APIRoute) and "POST" in (route.methods or ())}


def _surround(app: FastAPI, state: ServerState, keys: Keys) -> None:
    """Each middleware stands around those before it."""
    access = state.settings.access
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyGate, bounds=state.settings.bounds)
    app.add_middleware(Access, keys=keys, protect_all=access.protect_all)
    if access.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=[*access.cors_origins], allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(Envelope, state=state)
    if prefix := root_path(state.settings):
        app.add_middleware(Prefix, prefix=prefix)


async def _preload(state: ServerState, on_unready: Callable[[], None]) -> None:
    try:
        await state.registry.preload()
    except Exception as error:
        logger.critical("a run to preload cannot be loaded: %s", error)
        on_unready()
