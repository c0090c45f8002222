"""Where settings come from, and what the command says before it serves."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.server.conftest import write_checkpoint
from workflow.commands.serving import serve
from workflow.config.cascade import resolve
from workflow.config.sections import section_fields
from workflow.errors import ConfigError
from workflow.server.access import Keys
from workflow.server.settings import ServeSettings, environment_values, serve_layers


def settings(environment=None, flags=None, files=()):
    return resolve(ServeSettings, serve_layers(files, flags or {}, environment or {})).settings


def test_every_setting_has_a_variable_and_a_text():
    for name, (_, field) in section_fields(ServeSettings).items():
        assert field.description, name
        several = isinstance(field.default, tuple)
        assert environment_values({f"WORKFLOW_SERVE_{name.upper()}": "5"}) == {name: ["5"] if several else "5"}


def test_files_then_environment_then_flags(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("port: 1\nmax_n: 1\ntimeout_s: 1\n")
    found = settings({"WORKFLOW_SERVE_PORT": "2", "WORKFLOW_SERVE_MAX_N": "2"}, {"port": "3"}, [file])
    assert (found.server.port, found.bounds.max_n, found.queue.timeout_s) == (3, 2, 1)


def test_several_values_in_a_variable():
    assert settings({"WORKFLOW_SERVE_PRELOAD": "a, b,"}).models.preload == ("a", "b")


def test_misspelt_variables_are_told():
    with pytest.raises(ConfigError, match='did you mean "WORKFLOW_SERVE_MAX_PROMPTS"'):
        settings({"WORKFLOW_SERVE_MAX_PROMTS": "5"})
    with pytest.raises(ConfigError, match="environment"):
        settings({"WORKFLOW_SERVE_PORT": "tcp://10.0.0.1:80"})


def test_what_kubernetes_adds_for_services_is_none_of_ours():
    names = ("A_SERVICE_HOST", "A_SERVICE_PORT", "A_SERVICE_PORT_HTTP", "A_PORT", "A_PORT_80_TCP", "A_PORT_80_TCP_ADDR")
    assert environment_values({f"WORKFLOW_SERVE_{name}": "x" for name in names}) == {}


def test_models_are_the_mount_s_unless_named(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKFLOW_MOUNT", str(tmp_path))
    assert settings().folder == tmp_path / "models"
    assert settings(flags={"mount": "/a"}).folder.as_posix() == "/a/models"
    assert settings(flags={"models": "/b"}).folder.as_posix() == "/b"


def test_help_loads_no_torch():
    code = "import sys; from workflow.cli import workflow\ntry: workflow(['serve', '-h'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("False")
    assert "--max_body_bytes" in done.stdout


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--modles", "x"], "did you mean"),
        (["--port", "99999"], "--port"),
        (["--models", "nowhere"], "no such folder"),
        (["--preload", "nowhere"], "nowhere"),
        (["--default_model", "nowhere"], "nowhere"),
        (["--api_key_file", "nowhere"], "nowhere"),
        (["--max_n", "0"], "--max_n"),
    ],
)
def test_the_command_refuses_before_it_serves(tmp_path, flags, told):
    write_checkpoint(tmp_path / "models" / "echo")
    given = flags if "--models" in flags else ["--models", str(tmp_path / "models"), *flags]
    with pytest.raises(ConfigError, match=told):
        serve(given)


def test_key_files(tmp_path):
    (tmp_path / "keys").write_text("# none\n\n")
    with pytest.raises(ConfigError, match="no key"):
        Keys(tmp_path / "keys")
    assert Keys(None).accept(None)


def test_a_file_of_keys_may_start_with_a_byte_order_mark(tmp_path):
    (tmp_path / "keys").write_text("secret\n", encoding="utf-8-sig")
    assert Keys(tmp_path / "keys").accept("Bearer secret")
