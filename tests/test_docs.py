"""The documents tell the truth: commands parse, files exist, shipped data is what its generators make."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess

import pytest

from tests.conftest import ROOT
from workflow.cli import COMMANDS
from workflow.config.clf_settings import ClfSettings
from workflow.config.flags import parse
from workflow.config.settings import Seq2SeqSettings
from workflow.server.schemas import GenerateBody, ScoreBody

README = (ROOT / "README.md").read_text(encoding="utf-8")


def readme_commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


def check_program(words: list[str], monkeypatch) -> None:
    """The command's arguments are understood, without running it."""
    entry_points = {"seq2seq.py": Seq2SeqSettings, "clf.py": ClfSettings}
    if words[0] == "python3" and words[1] in entry_points:
        parse(entry_points[words[1]], words[2:], prog=words[1], example="x")
        return
    assert words[0].endswith("workflow")
    assert words[1] in COMMANDS
    from workflow import cli, entry
    from workflow.recipe import check_data, distill, evaluate, init_model, plan, predict, quickstart
    from workflow.server import main

    ran = []
    for module, name in (
        (check_data, "check_data"),
        (init_model, "init_model"),
        (predict, "generate"),
        (quickstart, "quickstart"),
        (distill, "distill"),
        (evaluate, "evaluate"),
        (entry, "in_ranks"),
        (main, "serve"),
        (plan, "plan"),
    ):
        monkeypatch.setattr(module, name, lambda *given, **more: ran.append(given) or 0)
    assert cli.workflow(words[1:]) == 0
    assert ran or words[1] == "config"


def check_body(words: list[str]) -> None:
    """The body of a curl command is good for its route."""
    body = {"generate": GenerateBody, "score": ScoreBody}[words[1].rpartition("/")[2]]
    body.model_validate_json(words[words.index("-d") + 1])


def test_every_command_of_the_readme_is_understood(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    known = 0
    for words in readme_commands():
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif program := {"seq2seq.py", "clf.py"} & set(words):
            check_program(words[words.index(program.pop()) - 1 :], monkeypatch)
        elif words[0] == "docker":
            assert words[words.index("workflow") + 1 :][:2] == ["workflow", "serve"]
        elif words[0].endswith("workflow"):
            check_program(words, monkeypatch)
        elif words[0] == "curl":
            check_body(words)
        else:
            assert words[0] in ("python3", ".venv/bin/python"), words
        known += 1
    assert known > 12


def test_the_readme_is_short_and_its_links_exist():
    assert README.count("\n") <= 180
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_scan_one_liner(tmp_path):
    line = next(words for words in readme_commands() if words[1] == "-c")
    (tmp_path / "mount/data").mkdir(parents=True)
    for name in line[3:]:
        (tmp_path / name).write_text("IN: jump twice OUT: I_JUMP I_JUMP\nIN: look OUT: I_LOOK\n")
    subprocess.run(["python3", *line[1:]], cwd=tmp_path, check=True)
    from workflow.data.sources import find_source

    rows = list(find_source("scan", tmp_path / "mount").rows())
    assert rows[0] == ("train", 0, {"prompt": "jump twice", "completion": "I_JUMP I_JUMP"})
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("script", "made"), [("make_data", "data.json"), ("make_verifier_data", "1226verifier_ft_all.json")]
)
def test_shipped_data_is_what_its_generator_makes(tmp_path, script, made):
    shutil.copy(ROOT / f"mount/data/{script}.py", tmp_path)
    runpy.run_path(str(tmp_path / f"{script}.py"), run_name="__main__")
    assert (tmp_path / made).read_bytes() == (ROOT / "mount/data" / made).read_bytes()


def test_no_eval_prompt_is_trained_on():
    import json

    data = json.loads((ROOT / "mount/data/data.json").read_text())
    assert not {row["prompt"] for row in data["train"]} & {row["prompt"] for row in data["eval"]}
    verifier = json.loads((ROOT / "mount/data/1226verifier_ft_all.json").read_text())
    assert all(0 <= row["target"] <= 1 for split in verifier.values() for row in split)


def test_pins_lie_in_their_ranges():
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    for text in (*project["dependencies"], *project["optional-dependencies"]["dev"]):
        requirement = Requirement(text)
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), text
    assert pins["torch"] == "2.13.0"
