"""The thread that owns an engine, without HTTP."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.server.fake_engine import FakeEngine, FakeLimits
from workflow.errors import ConfigError, EngineFailed, RequestError, RequestTimeout
from workflow.inference.requests import Chunk, GenerateRequest, Result, ScoreRequest
from workflow.inference.sampling import SamplingParams
from workflow.server.admission import Queue
from workflow.server.calls import Call, deadline
from workflow.server.worker import AT_ONCE, Worker


@pytest.fixture
def work(vocabulary):
    """Runs a coroutine function with a fake engine and its worker."""

    def run(scenario, **engine):
        async def main():
            fake, dead = FakeEngine(vocabulary, **engine), []
            worker = Worker(fake, name="test", on_dead=lambda: dead.append(True))
            try:
                return await scenario(worker, fake, dead)
            finally:
                fake.go()
                worker.stop()
                await asyncio.to_thread(worker.join, 5)
                assert not worker.alive

        return asyncio.run(main())

    def request(text, **params):
        ids = vocabulary(text, add_special_tokens=True)["input_ids"]
        return GenerateRequest(ids, SamplingParams(**{"max_new_tokens": 50, **params}))

    run.request = request
    return run


def call(worker, requests, **more):
    left = []
    return Call(worker, requests, lambda: left.append(True), **more), left


def test_outcomes_keep_the_requests_order(work):
    async def scenario(worker, _fake, _dead):
        requests = [work.request("red green blue"), work.request("red"), ScoreRequest([5, 1])]
        async with call(worker, requests)[0] as made:
            return await made.outcomes()

    first, second, third = work(scenario)
    assert isinstance(first, Result)
    assert [made.generations[0].text for made in (first, second)] == ["red green blue", "red"]
    assert isinstance(third, tuple)


def test_chunks_come_before_the_outcome(work):
    async def scenario(worker, _fake, _dead):
        made, left = call(worker, [work.request("red green", n=2)], stream=True)
        async with made:
            return [event async for _, event in made.events()], left

    found, left = work(scenario)
    assert isinstance(found[-1], Result)
    assert all(isinstance(event, Chunk) for event in found[:-1])
    for index in (0, 1):
        assert "".join(event.text for event in found[:-1] if event.index == index) == "red green"
    assert left == [True]


def test_leaving_early_cancels_all_jobs_once(work):
    async def scenario(worker, fake, _dead):
        made, left = call(worker, [work.request("red"), work.request("blue")])
        with pytest.raises(RequestTimeout):
            async with deadline(0.1), made:
                await made.outcomes()
        while len(left) == 0:
            await asyncio.sleep(0.01)
        return len(fake.cancelled), left

    assert work(scenario, endless=True, step_s=0.01) == (2, [True])


def test_a_failed_part_ends_the_others(work):
    async def scenario(worker, fake, _dead):
        made, _ = call(worker, [work.request("red", max_new_tokens=900), work.request("wrong")])
        with pytest.raises(EngineFailed):
            async with made:
                await made.outcomes()
        while fake.has_work:
            await asyncio.sleep(0.01)

    work(scenario, endless=True, step_s=0.01)


def test_what_can_never_run_is_told_and_harms_nobody(work):
    async def scenario(worker, _fake, _dead):
        made, _ = call(worker, [work.request("refused")])
        with pytest.raises(ConfigError):
            async with made:
                await made.outcomes()
        async with call(worker, [work.request("red")])[0] as good:
            await good.outcomes()

    work(scenario)


def test_a_dead_engine_fails_what_it_has_and_what_comes(work):
    async def scenario(worker, _fake, dead):
        for text in ("dies", "red"):
            made, left = call(worker, [work.request(text), work.request("red")])
            with pytest.raises(EngineFailed):
                async with made:
                    await made.outcomes()
            while not left:
                await asyncio.sleep(0.01)
        assert dead == [True]
        assert worker.dead

    work(scenario)


def test_cancelling_what_has_ended_does_nothing(work):
    async def scenario(worker, fake, _dead):
        done = asyncio.Event()
        job = worker.submit(work.request("red"), lambda _: done.set())
        await done.wait()
        worker.cancel(job)
        worker.cancel(job)
        async with call(worker, [work.request("red")])[0] as made:
            await made.outcomes()
        return fake.cancelled

    assert work(scenario) == []


def test_what_is_cancelled_right_before_the_stop_is_told(work):
    async def scenario(worker, fake, _dead):
        made, left = call(worker, [work.request("red")])
        async with made:
            while not fake.has_work:
                await asyncio.sleep(0.01)
            fake.hold()  # so that cancel and stop are taken in together
        worker.stop()
        fake.go()
        await asyncio.to_thread(worker.join, 5)
        await asyncio.sleep(0)
        return left

    assert work(scenario, endless=True, step_s=0.01) == [True]


def test_callbacks_run_on_the_event_loop(work):
    async def scenario(worker, _fake, _dead):
        done, threads = asyncio.Event(), []

        def heard(_event):
            threads.append(threading.current_thread())
            done.set()

        worker.submit(work.request("red"), heard)
        await done.wait()
        return threads[0] is threading.main_thread()

    assert work(scenario)


def test_places():
    queue = Queue(max_requests=2, max_tokens=10, draining=lambda: False)
    first = queue.reserve(4)
    with pytest.raises(RequestError):
        first.correct(100)
    first.correct(5)
    second = queue.reserve(5)
    assert (queue.num_requests, queue.num_tokens) == (2, 10)
    first.release()
    first.release()
    assert (queue.num_requests, queue.num_tokens) == (1, 5)
    second.release()
    assert (queue.num_requests, queue.num_tokens) == (0, 0)
    for seconds in (0.01, 1000):
        for _ in range(100):
            queue.note_duration(seconds)
        assert 1 <= queue.retry_after_s <= 30


def test_answers_of_one_step_leave_room_for_others(work):
    """A connection that becomes readable need not wait until all of a step's answers are written."""

    async def scenario(worker, fake, _dead):
        fake.hold()
        loop, order = asyncio.get_running_loop(), []

        def heard(number):
            def on_event(_event):
                if not order:
                    loop.call_soon(order.append, "other")
                order.append(number)
                if number == 2:
                    raise RuntimeError("one listener's fault")

            return on_event

        loop.set_exception_handler(lambda *_: None)
        for number in range(20):
            worker.submit(ScoreRequest([number, 1]), heard(number))
        fake.limits = FakeLimits(max_rows=20)
        fake.go()
        while len(order) < 21:
            await asyncio.sleep(0.01)
        return order

    order = work(scenario)
    assert [number for number in order if number != "other"] == list(range(20))
    assert order.index("other") <= AT_ONCE


def test_pieces_of_many_streams_keep_their_order(work):
    async def scenario(worker, _fake, _dead):
        made, _ = call(worker, [work.request("red green blue") for _ in range(12)], stream=True)
        async with made:
            return [event async for event in made.events()]

    found = work(scenario)
    for number in range(12):
        mine = [event for which, event in found if which == number]
        assert "".join(event.text for event in mine[:-1]) == "red green blue"
        assert isinstance(mine[-1], Result)
