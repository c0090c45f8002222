"""Runs come and go: loaded on first use, evicted by memory, swapped for a newer best checkpoint, never half-written."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.conftest import WEIGHT_BYTES, error_of, settings_of, until, write_checkpoint
from workflow.errors import ModelError
from workflow.server.checkpoints import RunFolder, is_whole
from workflow.server.memory import Memory

WEIGHTS = "model.safetensors"


def ask(live, name="echo"):
    return live.post("/generate", {"model": name, "prompt": "red"})


def test_loaded_once_on_first_use(serve, fake):
    live = serve()
    assert fake.loads == []
    with ThreadPoolExecutor(8) as pool:
        assert {future.result().status_code for future in [pool.submit(ask, live) for _ in range(8)]} == {200}
    assert fake.loads == [("echo", 1)]


def test_loading_is_away_from_the_event_loop(serve, fake):
    fake.delay = threading.Event()
    live = serve()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, live)
        until(lambda: "echo" in live.state.registry.lanes)
        assert live.client.get("/health").status_code == 200
        assert {row["name"]: row["state"] for row in live.client.get("/info").json()["models"]}["echo"] == "loading"
        fake.delay.set()
        assert answer.result().status_code == 200


def test_a_new_run_is_there_at_once(serve, runs):
    live = serve()
    error_of(ask(live, "new"), 404)
    write_checkpoint(runs / "new" / "checkpoint-best-ckpt")
    assert ask(live, "new").status_code == 200


def test_memory_evicts_the_run_used_least_recently(serve, runs, fake):
    write_checkpoint(runs / "third" / "checkpoint-5")
    live = serve(memory_bytes=2 * WEIGHT_BYTES)
    ask(live, "echo").raise_for_status()
    ask(live, "other").raise_for_status()
    ask(live, "echo").raise_for_status()
    ask(live, "third").raise_for_status()
    states = {row["name"]: row["state"] for row in live.client.get("/info").json()["models"]}
    assert states == {"echo": "loaded", "other": "available", "third": "loaded"}
    until(lambda: fake.released == ["other"])


def test_a_run_in_use_is_evicted_after_its_answers(serve, fake):
    live = serve(memory_bytes=WEIGHT_BYTES + 10, turn_s=0)
    ask(live, "echo").raise_for_status()
    echo = fake.engines["echo"]
    echo.hold()
    with ThreadPoolExecutor(3) as pool:
        answer = pool.submit(ask, live, "echo")
        until(lambda: len(echo.submitted) == 2)
        waits = pool.submit(ask, live, "other")
        until(lambda: live.state.registry.lanes["echo"].giving_way)
        late = pool.submit(ask, live, "echo")  # which waits for the run's next turn
        until(lambda: live.state.registry.lanes["echo"].queue.num_requests == 2)
        assert fake.loads == [("echo", 1)]
        echo.go()
        assert [future.result().status_code for future in (answer, waits, late)] == [200] * 3
    assert len(echo.submitted) == 2
    assert fake.loads == [("echo", 1), ("other", 1), ("echo", 1)]


def test_busy_runs_take_turns(serve, fake):
    """Memory for one of two runs that are asked without a pause: all are answered, and neither starves."""
    live = serve(memory_bytes=WEIGHT_BYTES + 10, turn_s=0, engine={"step_s": 0.001})

    def many(name):
        return [ask(live, name).status_code for _ in range(8)]

    with ThreadPoolExecutor(6) as pool:
        found = [pool.submit(many, name) for name in ("echo", "other") * 3]
        assert [future.result() for future in found] == [[200] * 8] * 6
    assert {name for name, _ in fake.loads} == {"echo", "other"}
    assert live.state.registry.memory.taken() == WEIGHT_BYTES
    until(lambda: len(fake.released) == len(fake.loads) - 1)


def test_a_run_that_waits_in_vain_leaves_the_other_as_it_was(serve, fake):
    live = serve(memory_bytes=WEIGHT_BYTES + 10, turn_s=0, timeout_s=0.5)
    ask(live, "echo").raise_for_status()
    echo = live.state.registry.lanes["echo"]
    echo.live.users += 1  # somebody reads a stream for ever
    error_of(ask(live, "other"), 504)
    until(lambda: not echo.giving_way)
    ask(live, "echo").raise_for_status()
    echo.live.users -= 1
    assert fake.loads == [("echo", 1)]
    ask(live, "other").raise_for_status()


def test_readiness_tells_of_a_preloaded_run_that_was_evicted(serve, fake):
    live = serve(memory_bytes=WEIGHT_BYTES + 10, turn_s=0, preload=("echo",), refresh_s=1000)
    until(lambda: live.client.get("/ready").status_code == 200)
    ask(live, "other").raise_for_status()
    assert live.client.get("/ready").json() == {"status": "loading"}
    ask(live, "echo").raise_for_status()
    assert live.client.get("/ready").json() == {"status": "ready"}


def test_a_preloaded_run_comes_back(serve, fake):
    live = serve(memory_bytes=WEIGHT_BYTES + 10, turn_s=0, preload=("echo",))
    until(lambda: live.client.get("/ready").status_code == 200)
    ask(live, "other").raise_for_status()
    until(lambda: live.client.get("/ready").status_code == 200)
    assert fake.loads == [("echo", 1), ("other", 1), ("echo", 1)]
    assert not fake.engines["echo"].submitted


def test_a_preloaded_run_is_evicted_last(serve, runs, fake):
    write_checkpoint(runs / "third" / "checkpoint-5")
    live = serve(memory_bytes=2 * WEIGHT_BYTES + 10, preload=("echo",))
    until(lambda: live.client.get("/ready").status_code == 200)
    for name in ("other", "third", "other"):
        ask(live, name).raise_for_status()
    assert live.client.get("/ready").status_code == 200
    assert fake.released == ["other", "third"]


def test_preloaded_runs_must_fit_together(serve, fake):
    live = serve(memory_bytes=2 * WEIGHT_BYTES - 1, preload=("echo", "other"))
    until(lambda: live.server.should_exit)
    assert live.server.exit_code == 2
    assert fake.loads == []


def test_runs_on_their_way_count_too(serve, fake):
    fake.delay = threading.Event()
    live = serve(memory_bytes=WEIGHT_BYTES + 10, turn_s=0)
    memory = live.state.registry.memory
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, live, "echo")
        until(lambda: memory.taken() == WEIGHT_BYTES)
        second = pool.submit(ask, live, "other")
        until(lambda: live.state.registry.lanes.get("other") and live.state.registry.lanes["other"].seats)
        assert memory.taken() == WEIGHT_BYTES
        fake.delay.set()
        assert first.result().status_code == 200
        assert second.result().status_code == 200  # the idle one's place is taken
    assert memory.taken() == WEIGHT_BYTES


def test_a_failed_load_gives_its_room_back(serve, fake):
    fake.failing["echo"] = ModelError("cannot be read")
    live = serve(memory_bytes=WEIGHT_BYTES + 10)
    error_of(ask(live), 400)
    assert live.state.registry.memory.taken() == 0
    ask(live, "other").raise_for_status()


@pytest.mark.parametrize(("precision", "element_bytes"), [("fp32", 4), ("bf16", 2)])
@pytest.mark.parametrize("stored", ["F32", "BF16"])
def test_weights_need_what_they_are_served_in(tmp_path, precision, element_bytes, stored):
    import torch
    from safetensors.torch import save_file

    dtype = {"F32": torch.float32, "BF16": torch.bfloat16}[stored]
    save_file({"a": torch.zeros(3, 5, dtype=dtype), "b": torch.zeros(7, dtype=torch.int64)}, tmp_path / WEIGHTS)
    settings = settings_of(tmp_path, precision=precision, device="cpu")
    assert Memory(settings.models, {}).need(tmp_path) == 15 * element_bytes + 7 * 8


def test_a_run_larger_than_memory(serve):
    live = serve(memory_bytes=10)
    assert error_of(ask(live), 400)["code"] == "model_too_large"


def newer(runs, name="echo", version=2):
    """Puts a newer best checkpoint in place as training does: beside, then renamed."""
    best = runs / name / "checkpoint-best-ckpt"
    write_checkpoint(runs / name / ".tmp-next", version=version)
    best.rename(runs / name / ".tmp-old")
    (runs / name / ".tmp-next").rename(best)
    shutil.rmtree(runs / name / ".tmp-old")


def test_a_newer_best_checkpoint_is_swapped_in(serve, runs, fake):
    live = serve()
    old = live.engine()
    old.endless, old.step_s = True, 0.01
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(live.post, "/generate", {"model": "echo", "prompt": "red", "max_new_tokens": 60})
        until(lambda: len(old.submitted) == 2)
        newer(runs)
        until(lambda: fake.loads == [("echo", 1), ("echo", 2)])
        until(lambda: live.state.registry.lanes["echo"].live.service.engine is not old)
        ask(live).raise_for_status()
        assert len(fake.engines["echo"].submitted) == 1
        assert under_way.result().status_code == 200  # by the old one
    until(lambda: fake.released == ["echo"])


def test_the_old_one_serves_while_the_newer_is_broken(serve, runs, fake):
    live = serve()
    old = live.engine()
    fake.failing["echo"] = ModelError("cannot be read")
    newer(runs)
    until(lambda: live.state.registry.lanes["echo"].failure is not None)
    ask(live).raise_for_status()
    assert len(old.submitted) == 2


def test_the_newest_checkpoint_does_not_take_the_best_one_s_place(serve, runs, fake):
    live = serve()
    live.engine()
    write_checkpoint(runs / "echo" / "checkpoint-7", version=7)
    (runs / "echo" / "checkpoint-best-ckpt").rename(runs / "echo" / ".tmp-old")
    import time

    time.sleep(0.3)
    ask(live).raise_for_status()
    assert fake.loads == [("echo", 1)]


def test_a_checkpoint_that_changes_while_it_is_loaded_is_loaded_again(serve, runs, fake):
    live = serve()
    real = fake.__class__.__call__
    changed = []

    def load(name, path):
        service = real(fake, name, path)
        if not changed:
            changed.append(True)
            newer(runs)
        return service

    live.state.registry._load = load
    ask(live).raise_for_status()
    assert fake.loads == [("echo", 1), ("echo", 2)]


def test_a_run_that_cannot_be_loaded_says_why_and_is_not_tried_each_time(serve, fake):
    fake.failing["echo"] = ModelError("a shape that nobody knows")
    live = serve()
    for _ in range(3):
        assert "nobody knows" in error_of(ask(live), 400)["message"]
    fake.failing.clear()
    error_of(ask(live), 400)
    lane = live.state.registry.lanes["echo"]
    lane.failure = (lane.failure[0], lane.failure[1] - 100, lane.failure[2])
    ask(live).raise_for_status()


def test_an_unexpected_failure_is_told_without_its_details(serve, fake):
    fake.failing["echo"] = RuntimeError("secret path")
    live = serve()
    assert "secret" not in error_of(ask(live), 503)["message"]
    ask(live, "other").raise_for_status()


# ---- what is whole


def test_the_best_then_the_newest_checkpoint(tmp_path):
    for name in ("checkpoint-2", "checkpoint-10"):
        write_checkpoint(tmp_path / "run" / name)
    folder = RunFolder(tmp_path)
    assert folder.find("run").path.name == "checkpoint-10"
    (tmp_path / "run" / "checkpoint-10" / "config.json").write_text("{")
    assert folder.find("run").path.name == "checkpoint-2"
    write_checkpoint(tmp_path / "run" / "checkpoint-best-ckpt")
    assert folder.find("run").path.name == "checkpoint-best-ckpt"
    (tmp_path / "run" / "checkpoint-best-ckpt" / "model.safetensors").unlink()
    assert folder.find("run") is None  # not another one in the best one's place
    write_checkpoint(tmp_path / "plain")
    assert folder.find("plain").path.name == "plain"
    assert folder.names() == ["plain"]


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_checkpoint_that_lacks_a_byte_is_not_there(tmp_path, file):
    whole = write_checkpoint(tmp_path / "run")
    content = (whole / file).read_bytes()
    assert is_whole(whole)
    for length in range(len(content)):
        (whole / file).write_bytes(content[:length])
        assert not is_whole(whole), length
    (whole / file).unlink()
    assert not is_whole(whole)


def test_every_shard_must_be_whole(tmp_path):
    import json

    whole = write_checkpoint(tmp_path / "run")
    (whole / "model.safetensors").rename(whole / "model-1.safetensors")
    (whole / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "model-1.safetensors", "v": "model-2.safetensors"}})
    )
    assert not is_whole(whole)
    shutil.copy(whole / "model-1.safetensors", whole / "model-2.safetensors")
    assert is_whole(whole)


@pytest.mark.parametrize("content", ['{"weight_map": []}', "[]", '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_one_unreadable_run_hides_no_other(tmp_path, content):
    for name in ("good", "odd"):
        (tmp_path / name).mkdir()
        for file, text in (("config.json", '{"model_type": "t5"}'), ("tokenizer.json", "{}")):
            (tmp_path / name / file).write_text(text)
    (tmp_path / "good" / "pytorch_model.bin").write_bytes(b"weights")
    (tmp_path / "odd" / "model.safetensors.index.json").write_text(content)
    folder = RunFolder(tmp_path)
    assert folder.names() == ["good"]
    (tmp_path / "odd" / "manifest.json").write_text(content)
    assert folder.names() == ["good"]
    folder.fault("odd")
