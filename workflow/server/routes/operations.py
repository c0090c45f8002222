"""What operators and people look at: /health, /ready, /metrics, /info, /docs, and the page at /.

Knows nothing of requests' content.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from workflow import __version__
from workflow.server.answers import ERRORS
from workflow.server.checkpoints import Checkpoint
from workflow.server.desk import ServerState, state_of
from workflow.server.docs_page import docs_page
from workflow.server.lanes import Lane
from workflow.server.pages import html_response
from workflow.server.paths import root_path
from workflow.server.schemas import ErrorAnswer, InfoAnswer, ModelRow, StateAnswer

router = APIRouter(tags=["operations"], responses={401: ERRORS[401]})

PAGE = "page.html"
NOT_NOW: dict[int | str, dict[str, Any]] = {503: {"model": StateAnswer, "description": "not now"}}


@router.get("/health", response_model=StateAnswer, responses=NOT_NOW)
async def health(request: Request) -> Response:
    """Whether the server lives: 503 when an engine's thread is dead, or at one step for too long."""
    state = state_of(request)
    alive = not state.dead and state.registry.healthy
    return _state("ok" if alive else "dead", ok=alive)


@router.get("/ready", response_model=StateAnswer, responses=NOT_NOW)
async def ready(request: Request) -> Response:
    """Whether to send requests here: 503 while a run to preload is not loaded, at the start or after its eviction, while shutting down, and when dead."""
    state = state_of(request)
    if state.dead or not state.registry.healthy:
        return _state("dead", ok=False)
    if state.draining:
        return _state("draining", ok=False)
    preloaded = state.registry.preloaded
    return _state("ready" if preloaded else "loading", ok=preloaded)


@router.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
)
async def metrics(request: Request) -> Response:
    """Counters and histograms for Prometheus, under vLLM's names."""
    state = state_of(request)
    for lane in state.registry.lanes.values():
        service = lane.live.service if lane.live is not None else None
        state.metrics.occupied(
            lane.name,
            requests=lane.queue.num_requests,
            rows=service.engine.limits.max_rows if service is not None else 0,
            loaded_bytes=service.memory_bytes if service is not None else 0,
        )
    return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/info", response_model=InfoAnswer)
async def info(request: Request) -> object:
    """The runs, what each can do, and this server's bounds."""
    state = state_of(request)
    rows = [await _row(state, name) for name in await state.registry.names()]
    settings = state.settings
    sections = (settings.bounds, settings.queue, settings.engine)
    bounds = {name: value for section in sections for name, value in section.model_dump(mode="json").items()}
    return InfoAnswer(version=__version__, models=rows, default_model=settings.models.default_model, bounds=bounds)


@router.get("/", response_class=HTMLResponse, responses={404: {"model": ErrorAnswer, "description": "no page"}})
async def page(request: Request) -> Response:
    """A page to try the runs on."""
    file = resources.files("workflow.server") / PAGE
    if not file.is_file():
        return await docs(request)
    return html_response(file.read_text(encoding="utf-8"))


@router.get("/docs", response_class=HTMLResponse)
async def docs(request: Request) -> Response:
    """This page: every operation with its fields and examples. The same for programs is /openapi.json."""
    return html_response(docs_page(request.app.openapi(), "localhost:8000" + root_path(state_of(request).settings)))


def _state(status: str, *, ok: bool) -> Response:
    return JSONResponse({"status": status}, 200 if ok else 503, headers={"cache-control": "no-store"})


async def _row(state: ServerState, name: str) -> ModelRow:
    lane = state.registry.lanes.get(name)
    if lane is not None and lane.live is not None:
        return _loaded_row(state, lane, lane.live.checkpoint)
    found = await state.registry.find(name)
    return ModelRow(
        name=name,
        state="loading" if lane is not None and lane.loading is not None else "available",
        checkpoint=found.path.name if found else "",
        task="score" if found and found.scores else "generate",
    )


def _loaded_row(state: ServerState, lane: Lane, checkpoint: Checkpoint) -> ModelRow:
    assert lane.live is not None
    service = lane.live.service
    texts = service.texts
    return ModelRow(
        name=lane.name,
        state="loaded",
        checkpoint=checkpoint.path.name,
        task="score" if texts.own_scoring else "generate",
        can_generate=service.engine.can_generate,
        can_score=service.engine.can_score,
        problem=texts.scoring.problem,
        labels=[*texts.scoring.labels],
        template=texts.scoring.template,
        calibrated=texts.calibration is not None,
        max_prompt_tokens=min(service.max_prompt_tokens, state.settings.engine.max_prompt_tokens),
        default_new_tokens=service.default_new_tokens,
        memory_bytes=service.memory_bytes,
        device=service.device,
        precision=service.precision,
        requests=lane.queue.num_requests,
    )
