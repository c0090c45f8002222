"""An engine that echoes prompts, a token a step and sample, and can be held, slowed, failed and killed.

Knows nothing of models.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from workflow.errors import ConfigError
from workflow.inference.requests import Chunk, GenerateRequest, Generation, Result, TokenLogprob


@dataclass(frozen=True)
class FakeLimits:
    max_rows: int = 4
    max_encode_tokens: int = 512


@dataclass
class Running:
    tokens: list[list[int]]
    made: list[list[int]]


@dataclass
class FakeEngine:
    """`hold()` keeps steps from ending until `go()`; prompts with the words `wrong` and `dies` do what they say."""

    tokenizer: object
    limits: FakeLimits = field(default_factory=FakeLimits)
    step_s: float = 0.0
    can_generate: bool = True
    can_score: bool = True
    endless: bool = False
    nan: bool = False

    def __post_init__(self):
        self.free = threading.Event()
        self.free.set()
        self.waiting, self.running, self.submitted, self.cancelled = [], {}, [], []
        self.num_steps = 0
        self.thread_names = set()

    @property
    def has_work(self):
        return bool(self.waiting or self.running)

    def hold(self):
        self.free.clear()

    def go(self):
        self.free.set()

    def submit(self, job):
        self.thread_names.add(threading.current_thread().name)
        self.submitted.append(job.request)
        if "refused" in self.text(job):
            raise ConfigError("this can never run")
        self.waiting.append(job)

    def cancel(self, job):
        self.cancelled.append((job, self.num_steps))
        if job in self.waiting:
            self.waiting.remove(job)
        self.running.pop(job, None)
        job.on_done(RuntimeError("cancelled"))

    def step(self):
        if not self.has_work:
            return False
        self.free.wait(20)
        if self.step_s:
            time.sleep(self.step_s)
        self.num_steps += 1
        while self.waiting and len(self.running) < self.limits.max_rows:
            self.admit(self.waiting.pop(0))
        for job in list(self.running):
            self.decode(job)
        return True

    def admit(self, job):
        text = self.text(job)
        if "dies" in text:
            raise RuntimeError("the engine is broken")
        if "wrong" in text:
            job.on_done(RuntimeError("secret details"))
        elif isinstance(job.request, GenerateRequest):
            params = job.request.params
            body = [token for token in job.request.token_ids if token != self.tokenizer.eos_token_id]
            body = (body * 1000)[: params.max_new_tokens] if self.endless else body[: params.max_new_tokens]
            self.running[job] = Running([body for _ in range(params.n)], [[] for _ in range(params.n)])
        else:
            job.on_done(self.logits(job.request))

    def logits(self, request):
        if self.nan:
            return tuple(float("nan") for _ in request.label_tokens or (0, 1))
        labels = request.label_tokens or (0, 1)
        return tuple(float((sum(request.token_ids) * (label + 3)) % 7 - 3) for label in labels)

    def decode(self, job):
        state, params = self.running[job], job.request.params
        done = True
        for index, (tokens, made) in enumerate(zip(state.tokens, state.made, strict=True)):
            if len(made) < len(tokens):
                before = self.shown(made)
                made.append(tokens[len(made)])
                self.tell(job, Chunk(index, self.shown(made)[len(before) :], self.logprobs(job, made[-1:]), len(made)))
                done = False
            elif not done or len(made) == len(tokens):
                continue
        if done:
            reason = "length" if len(state.tokens[0]) >= params.max_new_tokens else "stop"
            end = [self.tokenizer.eos_token_id] if reason == "stop" else []
            for index, made in enumerate(state.made):
                self.tell(job, Chunk(index, "", self.logprobs(job, end), len(made + end), reason))
            del self.running[job]
            job.on_done(Result(tuple(self.generation(job, made, end, reason) for made in state.made), None))

    def generation(self, job, made, end, reason):
        return Generation(tuple(made), self.shown(made), reason, self.logprobs(job, made + end), len(made + end))

    def tell(self, job, chunk):
        if job.on_chunk is not None:
            job.on_chunk(chunk)

    def logprobs(self, job, tokens):
        wanted = job.request.params.logprobs
        if wanted is None:
            return ()
        return tuple(
            TokenLogprob(token, -0.5, tuple((other, -0.5 - other) for other in range(wanted))) for token in tokens
        )

    def shown(self, tokens):
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def text(self, job):
        return self.tokenizer.decode(list(job.request.token_ids), skip_special_tokens=True)
