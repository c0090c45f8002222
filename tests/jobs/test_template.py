"""The strict formatter: every place of a shell script, YAML, and everything that is refused."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from workflow.errors import TemplateError
from workflow.jobs.fields import Site
from workflow.jobs.job import Job
from workflow.jobs.slurm import SlurmExecutor
from workflow.jobs.template import Template, check_shell

NASTY = 'it\'s "quoted" $(touch x) `y` ${HOME} \\ !\n#;& é {brace}'
BASH = shutil.which("bash")


def fill(text: str, name: str = "t.sh", /, *, asked=(), **fields) -> str:
    return Template(name, text).fill(fields, given=asked)


def run(script: str) -> str:
    done = subprocess.run([BASH], input=script, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize(
    "text",
    [
        "printf %s {value}",
        'printf %s "{value}"',
        "printf %s '{value}'",
        'printf %s "$(printf %s {value})"',
        'printf %s $(printf %s "{value}" | cat > f; cat f) >/dev/null; cat f; # it\'s "open\n',
        "printf %s {value} # {value}",
        'bash -c "printf %s {args}"',
        "bash -c 'printf %s {args}'",
        'f() {{ printf %s "$1"; }}; f {value}',
        'x=({args}); printf %s "${x[0]}"',
        "printf %s \\\n  {value}",
        "cat <<< '' | tr -d '\\n'; printf %s {value}",
    ],
)
def test_a_value_is_itself_wherever_it_stands(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(fill(text, value=NASTY, args=[NASTY])) == NASTY
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(BASH is None, reason="needs bash")
@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"])), max_size=4))
def test_lists_come_back(values):
    printed = run(fill("for one in {args}; do printf '%s\\0' \"$one\"; done", args=values))
    assert printed.split("\0")[:-1] == [value.replace("\r\n", "\n") for value in values]


def test_the_shell_s_own_variables_stay():
    text = 'a=${HOME} b=${X:-${Y}} c=${#z[@]} "${d}" $e {{literal}} {name}'
    assert fill(text, name="n") == 'a=${HOME} b=${X:-${Y}} c=${#z[@]} "${d}" $e {literal} n'


def test_an_optional_field_takes_its_line_with_it():
    text = "#SBATCH --partition={partition?}\n#SBATCH --time={time?}\necho {name}\n"
    assert fill(text, partition=None, time="1:00", name="n") == "#SBATCH --time=1:00\necho n\n"


def test_a_comment_is_never_left():
    assert fill("# {name}\necho done\n", name="a\nrm -r b") == "# a\\nrm -r b\necho done\n"
    assert fill("#SBATCH --comment={name}\n", name="two words\nthree") == "#SBATCH --comment='two words\\nthree'\n"


def test_every_problem_is_told_at_once():
    with pytest.raises(TemplateError) as caught:
        fill(
            "#!/bin/bash\n{args} {job_nam}\n{a.b} {c!r} {d:>3} {}\necho { x\n`{args}`\n$'{args}'\ncat <<E\n{args}\nE\n{partition}\n",
            "mine.sh",
            asked=["image", "args"],
            args=["x"],
            job_name="n",
            partition=None,
            image="i",
        )
    told = str(caught.value)
    for line in (
        "mine.sh: 11 problems",
        "line 2: {job_nam} has no value; did you mean",
        "line 3: '{a.b}': a field is a plain name such as {job_name}; a brace is written {{ or }}",
        "line 3: '{c!r}",
        "line 3: '{d:>3}",
        "line 4: '{ x': a field",
        "line 5: {args} stands within backticks",
        "line 6: {args} stands within $'...'",
        "line 8: {args} stands in a here-document",
        "line 10: {partition} has no value here; pass --partition, or write {partition?}",
        "image was given, and the template has no {image}",
    ):
        assert line in told, told


def test_yaml_cannot_be_broken_by_a_value():
    text = "a: '{value}'\nb: [x, '{args}', y]\nc: {number}\nd: 'n={number}'\ne: '{absent?}'\nf: {{g: '{absent?}'}}\nkeep: {{}}\n"
    text = text.replace("{{", "{").replace("}}", "}")
    value = "x: y\n- z # '\" {brace} ${V}"
    read = yaml.safe_load(fill(text, "t.yaml", value=value, args=[value, "--b"], number=3, absent=None))
    assert read == {"a": value, "b": ["x", value, "--b", "y"], "c": 3, "d": "n=3", "keep": {}}


def test_kubernetes_does_not_expand_values():
    text = "args: ['{args}', '$(POD)', 'say {value}']\n"
    read = yaml.safe_load(fill(text, "t.yaml", args=["$(POD)", "$x", "$$"], value="$(Y)"))
    assert read == {"args": ["$$(POD)", "$x", "$$$$", "$(POD)", "say $$(Y)"]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: {job_name}-x\n", "quote a field within text"),
        ("a: '{b.c}'\n", "a: '{': a field is a plain name"),
        ("a: '{other}'\n", "a: {other} has no value; pass --field other=VALUE"),
    ],
)
def test_yaml_s_problems(text, told):
    with pytest.raises(TemplateError, match=r"t\.yaml: ") as caught:
        fill(text, "t.yaml", job_name="n")
    assert told in str(caught.value)


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_bash_reads_what_was_filled():
    check_shell("if true; then echo yes; fi\n", name="good.sh")
    with pytest.raises(TemplateError, match=r"bad\.sh: bash cannot read"):
        check_shell("if true; then echo yes\n", name="bad.sh")


def test_a_template_of_slurm_s_jobs_may_have_further_fields(tmp_path):
    template = Template("team.sh", "#!/bin/bash\n# of {team}\nexec {program} {args}\n")
    job = Job("one", tmp_path / "points" / "one", "clf", ("--lr", "1"))

    def written(**named):
        site = Site(named=named, given=frozenset(named))
        return SlurmExecutor(tmp_path, site=site, template=template).write([job])

    assert [path.name for path in written(team="nlp", partition="a100")] == ["array.sh"]
    assert "# of nlp" in job.script.read_text()
    assert "--partition=a100" in (tmp_path / "array.sh").read_text()
    with pytest.raises(TemplateError, match="tema was given"):
        written(team="nlp", tema="nlp")
