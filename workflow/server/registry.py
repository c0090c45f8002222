"""Runs by name: loaded on first use, evicted when memory is short, replaced when a newer best checkpoint appears.

Knows nothing of HTTP or of how a run is loaded. Lives on the event loop; only files and loading go to a thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from workflow.errors import ConfigError, ModelUnavailable, RequestError, UnknownModel, WorkflowError, did_you_mean
from workflow.server.admission import Queue
from workflow.server.checkpoints import Checkpoint, RunFolder
from workflow.server.lanes import Lane, Live, Seat
from workflow.server.memory import Memory
from workflow.server.service import LoadService, Service
from workflow.server.settings import ServeSettings
from workflow.server.worker import Worker

logger = logging.getLogger("workflow.server")

T = TypeVar("T")
NUM_TRIES = 3
KNOWN_S = 1.0
"""How old the list of runs may be in an error text, so that wrong names do not keep the disk busy."""
AT_HAND_S = 10.0
"""How old it may be where it only tells which run a request without a name is for."""
LOOK_S = 0.25
"""Between two looks whether a run in use has had its turn."""
FAILURE_S = 10.0
"""How long a run that could not be loaded is not tried again, unless its files change."""


class Registry:
    """All runs of a folder."""

    def __init__(
        self, settings: ServeSettings, load: LoadService, *, draining: Callable[[], bool], on_dead: Callable[[], None]
    ) -> None:
        self.settings = settings
        self.folder = RunFolder(settings.folder)
        self.lanes: dict[str, Lane] = {}
        self.memory = Memory(settings.models, self.lanes)
        self._load = load
        self._draining = draining
        self._on_dead = on_dead
        self._known: tuple[float, list[str]] = (-KNOWN_S, [])
        self._turns = asyncio.Lock()
        self._changed = asyncio.Event()
        self._loader = ThreadPoolExecutor(1, "loader")
        self._files = ThreadPoolExecutor(2, "files")

    @property
    def healthy(self) -> bool:
        """Whether every engine's thread lives, and none has been at one step for too long."""
        workers = [lane.live.worker for lane in self.lanes.values() if lane.live is not None]
        stuck = [worker.stuck(self.settings.engine.step_timeout_s) for worker in workers]
        return all(worker.alive for worker in workers) and not any(stuck)

    async def names(self) -> list[str]:
        """The runs that can be served."""
        found = await self._on_disk(self.folder.names)
        return sorted({*found, *(name for name, lane in self.lanes.items() if lane.live is not None)})

    async def find(self, name: str) -> Checkpoint | None:
        """A run's checkpoint on disk."""
        return await self._on_disk(lambda: self.folder.find(name))

    async def lane(self, name: str | None) -> Lane:
        """The lane of a run, or of the default one. Raises UnknownModel, or RequestError where the name must be said."""
        name = await self._default() if name is None else name
        lane = self.lanes.get(name)
        if lane is None:
            if await self.find(name) is None:
                raise UnknownModel(await self._unknown(name), param="model")
            lane = self.lanes.setdefault(name, Lane(name, self._queue()))
        lane.used_s = time.monotonic()
        return lane

    def lane_at_hand(self, name: str | None) -> Lane | None:
        """The lane of a run, or of the default one, where that can be told without a look at the disk."""
        name = self.settings.models.default_model if name is None else name
        if name is None and len(self._known[1]) == 1 and time.monotonic() < self._known[0] + AT_HAND_S:
            name = self._known[1][0]
        return self.lanes.get(name) if name is not None else None

    @asynccontextmanager
    async def use(self, lane: Lane) -> AsyncIterator[Live]:
        """The loaded run, which stays until the block ends, even if a newer one takes its place."""
        live = await self._user_of(lane)
        try:
            yield live
        finally:
            live.leave()
            self._changed.set()

    async def _user_of(self, lane: Lane) -> Live:
        """What is loaded, with one user more; at once, or when it is this run's turn."""
        if lane.open and lane.live is not None:
            lane.live.users += 1
            return lane.live
        seat = Seat()
        lane.seats.append(seat)
        try:
            while seat.live is None:
                await self.load(lane)
        except BaseException:
            if seat.live is not None:
                seat.live.leave()
                self._changed.set()
            else:
                lane.seats.remove(seat)
            raise
        return seat.live

    async def load(self, lane: Lane) -> Live:
        """Loads a run, once for all who wait."""
        if lane.loading is None:
            lane.loading = asyncio.create_task(self._load_lane(lane))
            lane.loading.add_done_callback(_heard)
        return await asyncio.shield(lane.loading)

    @property
    def preloaded(self) -> bool:
        """Whether every run that was to be preloaded is loaded now."""
        lanes = [self.lanes.get(name) for name in self.settings.models.preload]
        return all(lane is not None and lane.live is not None for lane in lanes)

    async def preload(self) -> None:
        """Loads what is to be loaded before the server is ready. Raises ConfigError where it does not fit together."""
        names = dict.fromkeys(self.settings.models.preload)
        checkpoints = [found for name in names if (found := await self.find(name)) is not None]
        budget = self.memory.budget
        needs = await self._on_disk(lambda: sum(self.memory.need(found.path) for found in checkpoints)) if budget else 0
        if needs > budget:
            raise ConfigError(
                f"--preload {' '.join(names)}: the runs need {needs:,} bytes together, --memory_bytes is {budget:,}"
            )
        for name in names:
            await self.load(await self.lane(name))

    async def _bring_back(self) -> None:
        """Loads preloaded runs again that were evicted, once that disturbs nobody."""
        for name in self.settings.models.preload:
            lane = self.lanes.get(name)
            if lane is None or lane.live is not None or lane.loading is not None:
                continue
            found = await self.find(name)
            if found is None or (lane.failure is not None and lane.failure[0] == found):
                continue
            need = await self._on_disk(lambda path=found.path: self.memory.need(path))  # type: ignore[misc]
            if lane.loading is None and self.memory.make_room(lane, need, unused_s=self.settings.models.turn_s or 1e-9):
                await self.load(lane)

    async def refresh(self) -> None:
        """Replaces every loaded run of which a newer whole checkpoint stands on disk."""
        for lane in [lane for lane in self.lanes.values() if lane.live is not None and lane.loading is None]:
            found = await self.find(lane.name)
            if lane.live is None or found is None or found.fingerprint == lane.live.checkpoint.fingerprint:
                continue
            if found.path != lane.live.checkpoint.path and not _supersedes(found, lane.live.checkpoint):
                continue
            try:
                await self.load(lane)
            except Exception as error:
                logger.warning("run %s: the newer checkpoint cannot be loaded: %s", lane.name, error)

    async def keep_fresh(self) -> None:
        """Refreshes for ever."""
        while True:
            await asyncio.sleep(self.settings.models.refresh_s)
            if not self.healthy:
                continue  # the log says why
            try:
                await self.refresh()
                await self._bring_back()
            except Exception:
                logger.exception("looking for newer checkpoints failed")

    def close(self) -> None:
        """Ends all threads."""
        for lane in self.lanes.values():
            if lane.live is not None:
                lane.live.users = 0
                lane.live.retire()
        self._loader.shutdown(wait=False, cancel_futures=True)
        self._files.shutdown(wait=False, cancel_futures=True)

    def _queue(self) -> Queue:
        bounds = self.settings.queue
        return Queue(max_requests=bounds.max_requests, max_tokens=bounds.max_queued_tokens, draining=self._draining)

    async def _default(self) -> str:
        if self.settings.models.default_model is not None:
            return self.settings.models.default_model
        names = await self._lately_known()
        if len(names) != 1:
            raise RequestError(f"say which model: {_some(names)}", param="model", code="model_required")
        return names[0]

    async def _lately_known(self) -> list[str]:
        """The names of a moment ago: a burst of requests must not mean a burst of looks at the disk."""
        if time.monotonic() > self._known[0] + KNOWN_S:
            self._known = (time.monotonic(), await self.names())
        return self._known[1]

    async def _unknown(self, name: str) -> str:
        names = await self._lately_known()
        shown = ascii(name[:100])
        if fault := await self._on_disk(lambda: self.folder.fault(name)):
            return f"the run {shown} cannot be served: {fault}; its checkpoint is being copied, or was copied in part or changed"
        return f"no run named {shown} that can be served{did_you_mean(name[:100], names)}; there are: {_some(names)}"

    async def _on_disk(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, work)

    async def _load_lane(self, lane: Lane) -> Live:
        """The newest checkpoint of a run, in the place of what was loaded of it, for all who wait."""
        try:
            live = await self._newest(lane)
            lane.seat(live)
            return live
        finally:
            lane.loading = None
            lane.coming_bytes = 0
            self._changed.set()

    async def _newest(self, lane: Lane) -> Live:
        found = await self.find(lane.name)
        if found is None:
            raise UnknownModel(f"the run {lane.name!r} has no whole checkpoint any more", param="model")
        self._raise_again(lane, found)
        if self.memory.budget:
            await self._get_room(lane, found)
        if lane.live is not None and lane.live.checkpoint.fingerprint == found.fingerprint:
            return lane.live  # it was to give way, and need not any more
        started = time.monotonic()
        try:
            service, loaded = await asyncio.get_running_loop().run_in_executor(
                self._loader, self._load_whole, lane.name, found
            )
        except Exception as error:
            lane.failure = (found, time.monotonic(), error)
            raise
        worker = Worker(service.engine, name=lane.name, on_dead=self._on_dead, on_stop=service.release)
        before = lane.live
        lane.live, lane.failure = Live(service, loaded, worker, ThreadPoolExecutor(1, f"texts {lane.name}")), None
        if before is not None:
            before.retire()
        _log_loaded(lane.name, loaded, time.monotonic() - started)
        return lane.live

    async def _get_room(self, lane: Lane, found: Checkpoint) -> None:
        """Waits until a run fits into memory: those that wait come one after the other, and those in use give way to them, so
        that each gets its turn."""
        need = await self._on_disk(lambda: self.memory.need(found.path))
        async with self._turns:
            try:
                while not self.memory.make_room(lane, need):
                    if not lane.seats and lane.name not in self.settings.models.preload:
                        raise ModelUnavailable("nobody waits for the run any more")
                    self.memory.ask_for_room(lane, need)
                    self._changed.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.wait(), LOOK_S)
            finally:
                self.memory.nobody_gives_way()

    def _load_whole(self, name: str, found: Checkpoint) -> tuple[Service, Checkpoint]:
        """Loads until the files are the same before and after. In the loader's thread."""
        for _ in range(NUM_TRIES):
            try:
                service = self._load(name, found.path)
                error = None
            except WorkflowError as caught:
                # Clients are told of runs by name; where they lie is the server's own affair.
                told = str(caught).replace(str(found.path), name)
                error = RequestError(told, param="model", code="model_unfit")
            except Exception as caught:
                logger.exception("run %s cannot be loaded", name)
                error = ModelUnavailable(f"the run {name!r} could not be loaded: {type(caught).__name__}")
            now = self.folder.find(name)
            if now == found:
                if error is not None:
                    raise error
                return service, found
            if error is None:
                service.release()
            if now is None:
                break
            found = now
        raise ModelUnavailable(f"the run {name!r} is being written; try again in a moment")

    def _raise_again(self, lane: Lane, found: Checkpoint) -> None:
        if lane.failure is not None:
            checkpoint, when, error = lane.failure
            if checkpoint == found and time.monotonic() - when < FAILURE_S:
                raise error


def _log_loaded(name: str, checkpoint: Checkpoint, seconds: float) -> None:
    more = {"checkpoint": str(checkpoint.path), "duration_ms": round(1000 * seconds)}
    logger.info("run %s loaded", name, extra=more)


def _heard(task: asyncio.Task[Live]) -> None:
    if not task.cancelled():
        task.exception()  # told to those who waited; nobody need have waited until the end


def _supersedes(new: Checkpoint, old: Checkpoint) -> bool:
    """Whether another folder of a run takes over: not the newest one, while the best is being renamed."""
    return not (old.path.name == "checkpoint-best-ckpt" and new.path.name != old.path.name)


def _some(names: list[str]) -> str:
    return (", ".join(names[:10]) + (", ..." if len(names) > 10 else "")) or "none"
