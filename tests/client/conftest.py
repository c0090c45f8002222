"""Both clients behind one face, so that every test is one of both."""

from __future__ import annotations

import asyncio

import pytest

from tests.server.conftest import fake, live, runs, serve  # noqa: F401
from workflow import AsyncClient, Client


class Blocking:
    """An asynchronous client whose methods wait."""

    def __init__(self, *given, **options):
        self.runner = asyncio.Runner()
        self.client = AsyncClient(*given, **options)

    def __getattr__(self, name):
        method = getattr(self.client, name)
        if name == "generate_stream":
            return lambda *given, **more: self.stream(method(*given, **more))
        return lambda *given, **more: self.runner.run(method(*given, **more))

    def __repr__(self):
        return repr(self.client)

    def stream(self, pieces):
        try:
            while True:
                yield self.runner.run(anext(pieces))
        except StopAsyncIteration:
            return
        finally:
            self.runner.run(pieces.aclose())

    def close(self):
        self.runner.run(self.client.aclose())
        self.runner.close()

    def sleep_by(self, sleep):
        async def asleep(seconds):
            sleep(seconds)

        self.client._sleep = asleep


class Plain(Client):
    def sleep_by(self, sleep):
        self._sleep = sleep


@pytest.fixture(params=[Plain, Blocking], ids=["sync", "async"])
def connect(request, monkeypatch):
    """Makes clients: connect(live.url, max_retries=2)."""
    monkeypatch.delenv("WORKFLOW_API_KEY", raising=False)
    made = []

    def make(*given, **options):
        made.append(request.param(*given, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(connect, live):  # noqa: F811
    return connect(live.url)
