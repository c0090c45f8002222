"""The thread that owns one engine: it blocks when idle, takes in what came between two steps, and never sleeps.

Knows nothing of HTTP. Callbacks of jobs run on the event loop: one wake-up of it a step, and a few callbacks at a time,
so that what else arrives does not wait until all of a step's answers are written.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from workflow.errors import ConfigError, DamagedModel, EngineFailed, RequestError
from workflow.inference.interface import Engine
from workflow.inference.requests import Chunk, GenerateRequest, Job, Outcome, Result, ScoreRequest

logger = logging.getLogger("workflow.server")

OnEvent = Callable[[Chunk | Outcome], None]
AT_ONCE = 4
"""Events told before the event loop looks at its connections again; an answer takes it two milliseconds to write."""


@dataclass(frozen=True)
class _Command:
    """What the event loop asks of the thread: a job to run or to end, or to stop (no job)."""

    job: Job | None
    cancel: bool = False


class Worker:
    """Drives an engine. `submit`, `cancel` and `stop` may be called from the event loop; they never wait."""

    def __init__(
        self, engine: Engine, *, name: str, on_dead: Callable[[], None], on_stop: Callable[[], None] = lambda: None
    ) -> None:
        self.engine = engine
        self.dead = False
        self._loop = asyncio.get_running_loop()
        self._on_dead = on_dead
        self._on_stop = on_stop
        self._inbox: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._running: set[Job] = set()
        self._step_since: float | None = None
        self._told_stuck: float | None = None
        self._told_damaged = False
        self._published: list[tuple[OnEvent, Chunk | Outcome]] = []
        self._untold: deque[tuple[OnEvent, Chunk | Outcome]] = deque()  # on the event loop
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread can still answer."""
        return self._thread.is_alive() and not self.dead

    def stuck(self, timeout_s: float) -> bool:
        """Whether a step takes longer than so many seconds; the log is told once a step."""
        since = self._step_since
        if since is None or time.monotonic() - since < timeout_s:
            return False
        if self._told_stuck != since:
            self._told_stuck = since
            logger.critical("%s: a step takes longer than %g s", self._thread.name, timeout_s)
        return True

    def submit(self, request: GenerateRequest | ScoreRequest, on_event: OnEvent, *, stream: bool = False) -> Job:
        """Sends a request; `on_event` is called on the event loop with chunks, if asked for, and once with the outcome."""
        job = Job(request, on_done=lambda outcome: self._done(job, on_event, outcome))
        if stream:
            job.on_chunk = lambda chunk: self._published.append((on_event, chunk))
        self._inbox.put(_Command(job))
        return job

    def cancel(self, job: Job) -> None:
        """Ends a job between two steps, if it has not ended."""
        self._inbox.put(_Command(job, cancel=True))

    def stop(self) -> None:
        """Lets the thread end; only when no job is left."""
        self._inbox.put(_Command(None))

    def join(self, timeout_s: float) -> None:
        """Waits for the thread's end."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._serve()
            self._on_stop()
        except BaseException as error:
            logger.critical("the engine died", exc_info=error)
            self.dead = True
            self._bury()

    def _serve(self) -> None:
        busy = False
        try:
            while self._take_in(wait=not busy):
                self._publish()
                busy = self._step() if self.engine.has_work else False
                self._publish()
        finally:
            self._publish()  # of what was cancelled right before the stop, too

    def _step(self) -> bool:
        self._step_since = time.monotonic()
        try:
            return self.engine.step()
        finally:
            self._step_since = None

    def _take_in(self, *, wait: bool) -> bool:
        """Every command that is there, or, waiting, the next ones; False to stop."""
        try:
            command = self._inbox.get(block=wait)
            while True:
                if command.job is None:
                    return False
                self._obey(command.job, cancel=command.cancel)
                command = self._inbox.get_nowait()
        except queue.Empty:
            return True

    def _obey(self, job: Job, *, cancel: bool) -> None:
        if cancel:
            if job in self._running:
                self.engine.cancel(job)
            return
        self._running.add(job)
        try:
            self.engine.submit(job)
        except (ConfigError, RequestError) as error:
            job.on_done(error)
        except ValueError as error:
            job.on_done(ConfigError(str(error)))
        except Exception as error:
            logger.exception("the engine refused a request")
            job.on_done(error)

    def _done(self, job: Job, on_event: OnEvent, outcome: Outcome) -> None:
        if job in self._running:
            self._running.discard(job)
            self._published.append((on_event, self._sound(outcome)))

    def _sound(self, outcome: Outcome) -> Outcome:
        """The outcome, or DamagedModel where it holds what is no number; the log is told why once."""
        numbers = outcome if isinstance(outcome, tuple) else outcome.scores or () if isinstance(outcome, Result) else ()
        if not all(map(math.isfinite, numbers)):
            outcome = DamagedModel()
        if isinstance(outcome, DamagedModel) and not self._told_damaged:
            self._told_damaged = True
            logger.critical("%s: %s", self._thread.name, outcome)
        return outcome

    def _publish(self) -> None:
        if self._published:
            events, self._published = self._published, []
            self._on_loop(lambda: self._hear(events))

    def _hear(self, events: list[tuple[OnEvent, Chunk | Outcome]]) -> None:
        waiting = bool(self._untold)
        self._untold.extend(events)
        if not waiting:
            self._tell()

    def _tell(self) -> None:
        try:
            for _ in range(min(AT_ONCE, len(self._untold))):
                on_event, event = self._untold.popleft()
                on_event(event)
        finally:
            if self._untold:
                self._loop.call_soon(self._tell)

    def _on_loop(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closed: nobody listens any more
            logger.debug("nobody listens")

    def _bury(self) -> None:
        """Fails everything that the dead engine had, and what still arrives."""
        gone = EngineFailed("the engine died; the server is restarting", code="engine_dead")
        for job in list(self._running):
            job.on_done(gone)
        self._on_loop(self._on_dead)
        self._publish()
        while (command := self._inbox.get()).job is not None:
            if not command.cancel:
                self._running.add(command.job)
                command.job.on_done(gone)
            self._publish()
