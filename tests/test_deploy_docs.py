"""Documents and compose files of deployment, security and migration: every command is read by the program's own parsers."""

from __future__ import annotations

import ast
import re
import shlex

import pytest
import yaml

from tests.conftest import ROOT
from tests.manifests import K8S
from workflow.cli import COMMANDS, workflow
from workflow.commands.parsing import CommandParser
from workflow.config.clf_settings import ClfSettings
from workflow.config.flags import parse
from workflow.config.settings import Seq2SeqSettings
from workflow.server.settings import ServeSettings, serve_layers

SETTINGS = {"seq2seq": Seq2SeqSettings, "clf": ClfSettings}
DEPLOY = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


class ParsedError(Exception):
    """A command's arguments were understood."""


def understood(words: list[str], monkeypatch) -> bool:
    """Whether a command exists; its arguments must be good where it does."""
    if words[0] == "python3":
        name = words[1].removesuffix(".py")
        parse(SETTINGS[name], drop_files(words[2:]), prog=words[1], example="x")
        return True
    assert words[0].endswith("workflow")
    if words[1] not in COMMANDS:
        return False
    if words[1] == "serve":
        parse(
            ServeSettings, words[2:], prog="x", example="x", layers=lambda files, flags: serve_layers(files, flags, {})
        )
        return True
    if words[1] in SETTINGS:
        return understood(["python3", f"{words[1]}.py", *words[2:]], monkeypatch)
    if words[1] == "config":
        return words[2] in ("show", "schema")
    if (
        words[1] == "data"
        and words[2] != "check"
        and "check" in COMMANDS["data"].text
        and words[2] not in COMMANDS["data"].text
    ):
        return False
    whole, known = CommandParser.parse_args, CommandParser.parse_known_args

    def parse_args(self, *given, **more):
        with monkeypatch.context() as inner:
            inner.setattr(CommandParser, "parse_known_args", known)
            whole(self, *given, **more)
        raise ParsedError

    def parse_known_args(self, *given, **more):
        """Of commands that hand the rest to a program's own parser."""
        known(self, *given, **more)
        raise ParsedError

    with monkeypatch.context() as patch, pytest.raises(ParsedError):
        patch.setattr(CommandParser, "parse_args", parse_args)
        patch.setattr(CommandParser, "parse_known_args", parse_known_args)
        workflow(words[1:])
    return True


def drop_files(words: list[str]) -> list[str]:
    """Without `--config FILE`: placeholders name no files."""
    if "--config" not in words:
        return words
    at = words.index("--config")
    return [*words[:at], *words[at + 2 :]]


def commands_in(text: str) -> list[list[str]]:
    """The programs among the lines of a document's blocks, without prompts, comments and shell."""
    blocks = re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL)
    lines = [line.removeprefix("srun --ntasks=1 ") for block in blocks for line in block.splitlines()]
    return [shlex.split(line) for line in lines if re.match(r"(\S*workflow|python3|docker|ctl|kubectl|make) ", line)]


def test_every_command_of_deployment_is_understood(monkeypatch):
    seen = set()
    for words in commands_in(DEPLOY):
        seen.add(words[0].rpartition("/")[2])
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif words[:2] == ["docker", "run"]:
            program = words[words.index("workflow") + 1 :]
            assert understood(program, monkeypatch)
            if "-v" in words:
                app = re.findall(r"^WORKDIR (\S+)$", DOCKERFILE, re.MULTILINE)[-1]
                assert words[words.index("-v") + 1].endswith(f":{app}/mount")
        elif words[0] == "ctl":
            shell, flag, script = shlex.split(words[words.index("--command") + 1])
            assert (shell, flag) == ("bash", "-c")
            assert understood(shlex.split(script.partition("; ")[2]), monkeypatch)
        elif words[0] == "kubectl":
            for word in words:
                assert not word.startswith("k8s/") or (ROOT / word / "kustomization.yaml").is_file()
        elif words[0] != "docker":
            assert understood(words, monkeypatch), words
    assert seen == {"workflow", "python3", "docker", "ctl", "kubectl", "make"}


def test_overlays_and_components_are_the_documented_ones():
    rows = re.findall(r"^\| `([\w-]+)` \|", DEPLOY, re.MULTILINE)
    assert sorted(rows) == sorted(path.name for path in (K8S / "overlays").iterdir())
    for component in (K8S / "components").iterdir():
        assert f"`{component.name}`" in DEPLOY, component.name


@pytest.mark.parametrize("name", ["deploy", "security", "migrating", "preemption", "many_nodes"])
def test_links_and_files_exist(name):
    text = (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target
    for target in re.findall(r"`(k8s/[\w./-]+)`", text):
        assert (ROOT / target.replace("NAME", "train")).exists(), target


def test_every_threat_has_a_test_that_exists():
    rows = re.findall(r"^\| .* \| `(tests/\S+)::(\w+)` \|$", (ROOT / "docs/security.md").read_text(), re.MULTILINE)
    assert len(rows) > 10
    for file, name in rows:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in names, f"{file} has no {name}"


def test_compose_runs_what_the_program_understands(monkeypatch):
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    train, serve = services["train"], services["serve"]
    assert understood(train["command"], monkeypatch)
    given = train["command"][2:]
    grace_s = float(train["stop_grace_period"].removesuffix("s"))
    assert grace_s > parse(Seq2SeqSettings, given, prog="x", example="x").settings.run.grace_s
    read = parse(
        ServeSettings, serve["command"][2:], prog="x", example="x",
        layers=lambda files, flags: serve_layers(files, flags, {"WORKFLOW_SERVE_HOST": "0.0.0.0"}),
    ).settings  # fmt: skip
    assert grace_s > read.server.grace_s > read.queue.timeout_s
    assert serve["ports"] == [f"127.0.0.1:{read.server.port}:{read.server.port}"]
    app = re.findall(r"^WORKDIR (\S+)$", DOCKERFILE, re.MULTILINE)[-1]
    assert train["volumes"] == [f"./mount:{app}/mount"]
    assert serve["volumes"] == [f"./mount:{app}/mount:ro"]
    for service in (train, serve):
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["tmpfs"][0].startswith("/tmp")
    gpu = yaml.safe_load((ROOT / "compose.gpu.yaml").read_text())["services"]
    assert gpu.keys() == services.keys()


def test_the_right_hand_sides_of_migration_are_understood(monkeypatch):
    text = (ROOT / "docs/migrating.md").read_text(encoding="utf-8")
    rights = [row.split("|")[2] for row in re.findall(r"^\| .* \|$", text, re.MULTILINE)]
    found = [code for right in rights for code in re.findall(r"`((?:workflow|python3) [^`]+)`", right)]
    assert len(found) > 20
    for code in found:
        assert understood(shlex.split(code), monkeypatch), code


def test_every_flag_of_the_two_programs_is_mapped():
    """The flags that the original programs had, as the contract lists them."""
    text = (ROOT / "docs/migrating.md").read_text(encoding="utf-8")
    seq2seq = """model_init_name model_init_path data_name data training_run_name warmup_steps max_steps num_epochs train_batch_size
        eval_batch_size gradient_accumulation_steps save_steps eval_steps temperature n_samples no_train debug overwrite_output_dir
        pred_dir seed"""
    clf = "model_pretrain_name ft_head_first pred_save_path scores_only max_length save_best_metric"
    for name in f"{seq2seq} {clf}".split():
        assert f"--{name}" in text, name
