"""How fast `workflow serve` answers, against a server that locks around `model.generate`; prints one JSON line a scenario.

    python benchmarks/serving.py [--like flan-t5-small] [--tokenizer DIR] [--clients 1 16 64] [--precision fp32] [--only overload]

Both servers run in one process each, at one thread, on a checkpoint of the shape with random weights; `--tokenizer` names the folder of
a T5 vocabulary, else a small one is trained on made-up text, whose output head is small too. Figures are per CPU second of the
server's process (machines are shared: wall time lies), latencies are wall time.
The gate of the fixed-length scenarios: both servers give the same texts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

NAIVE = """
import sys, threading, torch, uvicorn
from fastapi import FastAPI
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
torch.set_num_threads(1)
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[3])).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
lock, app = threading.Lock(), FastAPI()
labels = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("no", "yes")]

@app.post("/generate")
def generate(body: dict):
    ids = tokenizer(body["prompt"], return_tensors="pt")
    with lock, torch.no_grad():
        out = model.generate(**ids, max_new_tokens=body["max_new_tokens"], min_new_tokens=body["min_new_tokens"], do_sample=False)
    return {"generations": [{"text": tokenizer.decode(out[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)}]}

@app.post("/score")
def score(body: dict):
    ids = tokenizer(body["input"], return_tensors="pt")
    with lock, torch.no_grad():
        out = model.generate(**ids, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True)
    return {"score": float(out.logits[0][0, labels].float().softmax(0)[1])}

@app.get("/ready")
def ready():
    return {}

uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""
WORDS = [
    "the",
    "date",
    "of",
    "march",
    "sum",
    "colour",
    "red",
    "green",
    "blue",
    "seven",
    "yes",
    "no",
    "maybe",
    "table",
    "river",
    "stone",
    "light",
    "paper",
]
PROMPT_WORDS = (20, 60)
FIXED = 32
SCENARIOS = ("generate", "score", "stream", "overload")
MIXED = (4, 64)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_checkpoint(folder: Path, like: str, vocabulary: str | None = None) -> None:
    """A run folder with one checkpoint of the shape."""
    from workflow.models.load import load_tokenizer, quiet_transformers
    from workflow.models.scratch import make_model, train_vocabulary, write_scratch_model
    from workflow.models.shapes import SHAPES

    quiet_transformers()
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=30)) + f" {rng.randrange(10**6)}" for _ in range(4000)]
    tokenizer = load_tokenizer(vocabulary) if vocabulary else train_vocabulary(iter(texts), vocab_size=8000)
    write_scratch_model(folder, make_model(SHAPES[like], tokenizer, seed=0), tokenizer, {})


def cpu_seconds(pid: int) -> float:
    """A process' user and system time, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Server:
    """A server's process, and its CPU seconds."""

    def __init__(self, command: list[str], port: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(1200):
            try:
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            if self.process.poll() is not None:
                sys.exit(f"{' '.join(command[:3])} ... ended with {self.process.returncode}")
            time.sleep(0.1)
        sys.exit("the server is not ready after two minutes")

    @property
    def cpu_s(self) -> float:
        """User and system time of all threads."""
        return cpu_seconds(self.process.pid)

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait(30)


def prompts(count: int, seed: int) -> list[str]:
    """Made-up texts of unlike lengths."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(*PROMPT_WORDS))) for _ in range(count)]


async def load(server: Server, path: str, bodies: list[dict[str, Any]], clients: int) -> dict[str, Any]:
    """So many clients, each sending its next request when the last one is answered."""
    queue = list(enumerate(bodies))[::-1]
    answers: dict[int, Any] = {}
    took: list[float] = []

    async def one(http: httpx.AsyncClient) -> None:
        while queue:
            number, body = queue.pop()
            started = time.perf_counter()
            response = await http.post(path, json=body)
            took.append(time.perf_counter() - started)
            response.raise_for_status()
            answers[number] = response.json()

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as http:
        before, started = server.cpu_s, time.perf_counter()
        await asyncio.gather(*(one(http) for _ in range(clients)))
        cpu, wall = server.cpu_s - before, time.perf_counter() - started
    took.sort()
    return {
        "requests_per_cpu_s": len(bodies) / cpu,
        "requests_per_s": len(bodies) / wall,
        "p50_s": statistics.median(took),
        "p99_s": took[min(len(took) - 1, int(0.99 * len(took)))],
        "answers": [answers[number] for number in range(len(bodies))],
    }


def compare(
    name: str, ours: Server, naive: Server, path: str, bodies: list[Any], clients: int, naive_count: int
) -> None:
    """One scenario on both; the naive server, which does one request at a time, gets fewer of them from as many clients."""
    found = {
        "ours": asyncio.run(load(ours, path, bodies, clients)),
        "naive": asyncio.run(load(naive, path, bodies[: max(naive_count, 2 * clients)], clients)),
    }
    pairs = list(zip(found["ours"].pop("answers"), found["naive"].pop("answers"), strict=False))
    if path == "/score":
        difference = max(abs(mine["score"] - theirs["score"]) for mine, theirs in pairs)
        gate = {"difference": difference, "passed": difference <= (1e-5 if given.precision == "fp32" else 1e-2)}
    else:
        same = sum(mine["generations"][0]["text"] == theirs["generations"][0]["text"] for mine, theirs in pairs)
        gate = {"equal": same, "of": len(pairs), "passed": same == len(pairs) or given.precision != "fp32"}
    ratios = {
        "requests_per_cpu_s": found["ours"]["requests_per_cpu_s"] / found["naive"]["requests_per_cpu_s"],
        "p50": found["naive"]["p50_s"] / found["ours"]["p50_s"],
        "p99": found["naive"]["p99_s"] / found["ours"]["p99_s"],
    }
    report(name, {"clients": clients, "ratios": ratios, "gate": gate, **found})


def report(name: str, values: dict[str, Any]) -> None:
    """One JSON line."""
    import torch
    import transformers

    from workflow.runtime import current_commit

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    head = {"what": name, "shape": given.like, "precision": given.precision}
    print(json.dumps({**head, **values, "versions": versions, "commit": current_commit()}), flush=True)


async def first_tokens(server: Server, bodies: list[dict[str, Any]], clients: int) -> list[float]:
    """Seconds until the first piece of each stream."""
    queue, took = list(bodies), []

    async def one(http: httpx.AsyncClient) -> None:
        while queue:
            started = time.perf_counter()
            async with http.stream("POST", "/v1/completions", json={**queue.pop(), "stream": True}) as response:
                response.raise_for_status()
                first = True
                async for line in response.aiter_lines():
                    if first and line.startswith("data: "):
                        took.append(time.perf_counter() - started)
                        first = False

    async with httpx.AsyncClient(base_url=server.url, timeout=600) as http:
        await asyncio.gather(*(one(http) for _ in range(clients)))
    return sorted(took)


async def post(port: int, path: str, body: Any) -> int:
    """One request on a connection of its own, by hand: thousands that wait would make a client library the bottleneck."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + data)
        status = int((await reader.readline()).split()[1])
        await reader.read()
        return status
    finally:
        writer.close()


async def overload(server: Server, bodies: list[Any], rate: float, seconds: float, rows: int) -> dict[str, Any]:
    """Requests at a rate of their own, whatever becomes of them: what is answered, what is refused and how fast.

    `steady_answers_per_s` leaves out the first `rows` answers, which found an idle server, and ends with the last answer
    in time: answers of one length come in waves, and a wave more or less in the time measured is a tenth of all.
    """
    took: dict[str, list[float]] = {}
    answered: list[float] = []
    port = int(server.url.rsplit(":", 1)[1])

    async def one(body: Any) -> None:
        started = time.perf_counter()
        try:
            status = str(await post(port, "/generate", body))
        except (OSError, IndexError, ValueError) as error:
            status = type(error).__name__
        took.setdefault(status, []).append(time.perf_counter() - started)
        if status == "200":
            answered.append(time.perf_counter() - begin)

    before, begin, tasks = server.cpu_s, time.perf_counter(), []
    while (now := time.perf_counter() - begin) < seconds:
        while len(tasks) < now * rate:
            tasks.append(asyncio.create_task(one(bodies[len(tasks) % len(bodies)])))
        await asyncio.sleep(0.002)
    in_time, cpu = list(answered), (server.cpu_s - before) / seconds
    await asyncio.gather(*tasks)
    found: dict[str, Any] = {"sent": len(tasks), "answered_per_s": len(in_time) / seconds, "cpu_share": cpu}
    if len(in_time) > rows:
        found["steady_answers_per_s"] = (len(in_time) - rows) / (in_time[-1] - in_time[rows - 1])
    for status, values in sorted(took.items()):
        values.sort()
        p99 = values[int(0.99 * (len(values) - 1))]
        found[status] = {"count": len(values), "p50_s": statistics.median(values), "p99_s": p99}
    return found


def main() -> None:
    """Starts both servers on one checkpoint and runs all scenarios."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "models" / "bench" / "checkpoint-1"
        checkpoint.parent.mkdir(parents=True)
        make_checkpoint(checkpoint, given.like, given.tokenizer)
        script = Path(folder) / "naive.py"
        script.write_text(NAIVE)
        ports = free_port(), free_port()
        dtype = {"fp32": "float32", "bf16": "bfloat16"}[given.precision]
        naive = Server([sys.executable, str(script), str(checkpoint), str(ports[0]), dtype], ports[0])
        command = [sys.executable, "-m", "workflow", "serve", "--models", str(Path(folder) / "models")]
        options = ["--port", str(ports[1]), "--preload", "bench", "--precision", given.precision]
        ours = Server([*command, *options], ports[1])
        try:
            scenarios(ours, naive)
        finally:
            ours.stop()
            naive.stop()


def scenarios(ours: Server, naive: Server) -> None:
    """Fixed and mixed lengths, scores, first tokens, overload."""

    def bodies(count: int, lengths: tuple[int, int], seed: int) -> list[dict[str, Any]]:
        rng = random.Random(seed)
        made = []
        for prompt in prompts(count, seed):
            length = rng.randint(*lengths)
            made.append({"prompt": prompt, "max_new_tokens": length, "min_new_tokens": length})
        return made

    scores = [{"input": prompt} for prompt in prompts(given.requests, 3)]
    for server in (ours, naive):  # warm
        asyncio.run(load(server, "/generate", bodies(2, (4, 4), 9), 1))
        asyncio.run(load(server, "/score", scores[:2], 1))
    for clients in given.clients:
        count = max(given.naive_requests, min(given.requests, 4 * clients))
        fixed, mixed = bodies(count, (FIXED, FIXED), 1), bodies(count, MIXED, 2)
        least = given.naive_requests
        if "generate" in given.only:
            compare(f"generate, {FIXED} tokens each", ours, naive, "/generate", fixed, clients, least)
            compare(f"generate, {MIXED[0]}-{MIXED[1]} tokens", ours, naive, "/generate", mixed, clients, least)
        if "score" in given.only:
            compare("score", ours, naive, "/score", scores, clients, least)
        if "stream" in given.only:
            streamed = [
                {"model": "bench", "prompt": body["prompt"], "max_tokens": FIXED, "temperature": 0} for body in fixed
            ]
            took = asyncio.run(first_tokens(ours, streamed, clients))
            late = took[-1 - len(took) // 100]
            report("time to first token", {"clients": clients, "p50_s": statistics.median(took), "p99_s": late})
    if "overload" in given.only:
        most = max(given.clients)
        full = asyncio.run(load(ours, "/generate", bodies(4 * most, (FIXED, FIXED), 4), most))
        rate = 10 * full["requests_per_s"]
        found = asyncio.run(overload(ours, bodies(200, (FIXED, FIXED), 5), rate, given.overload_s, most))
        full.pop("answers")
        report("overload at 10x", {"full_load": full, "rate": rate, **found})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--like", default="flan-t5-small")
    parser.add_argument("--tokenizer", help="folder of a tokenizer")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=SCENARIOS)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--naive_requests", type=int, default=16)
    parser.add_argument("--overload_s", type=float, default=60.0)
    given = parser.parse_args()
    main()
