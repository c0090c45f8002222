"""How long `workflow serve` takes from its start to its first answer; prints one JSON line.

    python benchmarks/serving_start.py [--like flan-t5-small] [--tokenizer DIR] [--models DIR --name RUN] [--prefix WORDS]

Seconds of wall time since the process was started, and its CPU seconds by then: when it says its port (imports), when it is
ready (the preloaded model), after a first answer of 8 tokens and after a second; and imports alone, in a process of their own.
`--prefix "buildah run NAME --"` starts it elsewhere, on this machine's network; CPU seconds are then left out.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from serving import cpu_seconds, free_port, make_checkpoint

IMPORTS = "import torch, transformers, deepspeed"


def main() -> None:
    """Reads the flags and measures once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", default="flan-t5-small", help="shape of the model with random weights")
    parser.add_argument("--tokenizer", help="folder of a T5 vocabulary")
    parser.add_argument("--models", help="folder of runs as the server's process sees it, instead of a made one")
    parser.add_argument("--name", default="model", help="the run that is preloaded and asked")
    parser.add_argument("--prefix", default="", help="words before python3")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if not given.models:
            make_checkpoint(Path(place) / given.name, given.like, given.tokenizer)
        print(json.dumps(measure(given.models or place, given.name, shlex.split(given.prefix))))


def measure(models: str, name: str, prefix: list[str]) -> dict[str, Any]:
    """The moments by name."""
    python = [*prefix, "python3" if prefix else sys.executable]
    began = time.perf_counter()
    subprocess.run([*python, "-c", IMPORTS], check=True, capture_output=True)
    moments: dict[str, Any] = {"imports_alone": {"s": round(time.perf_counter() - began, 2)}}
    port = free_port()
    command = [*python, "-m", "workflow", "serve", "--models", models, "--preload", name, "--port", str(port)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def note(moment: str) -> None:
        moments[moment] = {"s": round(time.perf_counter() - began, 2)}
        if not prefix:
            moments[moment]["cpu_s"] = cpu_seconds(process.pid)

    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            wait_for(client, process, "/health")
            note("port")
            wait_for(client, process, "/ready")
            note("ready")
            for moment in ("first_answer", "second_answer"):
                body = {"model": name, "prompt": "the cat sat", "max_new_tokens": 8, "min_new_tokens": 8}
                client.post("/generate", json=body).raise_for_status()
                note(moment)
    finally:
        process.terminate()
        process.wait(60)
    return moments


def wait_for(client: httpx.Client, process: subprocess.Popen[bytes], path: str) -> None:
    """Until this answers with 200."""
    while process.poll() is None:
        try:
            if client.get(path).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    sys.exit(f"the server ended with {process.returncode}")


if __name__ == "__main__":
    main()
