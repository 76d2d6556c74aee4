"""A harness declared in one file: what may stand there, and what an error says; and what is shipped."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import orchestrator
from orchestrator.catalogue import load_catalogue, shipped
from orchestrator.catalogue.declaration import FIELDS
from orchestrator.errors import BadInput
from orchestrator.execution import Spec
from orchestrator.harnesses import BUILT_IN, PLACEHOLDERS, Harness, HarnessFile, argv_of, fill, harness_of

WHOLE = """
name = "mine"
about = "a program of my own"
image = "mine:1"
argv = ["/usr/bin/mine", "--model", "{model}", "{task}"]
resume_argv = ["/usr/bin/mine", "--continue"]
stdin = "jsonl"
output = "jsonl"
interrupt = "SIGUSR1"
reads_task = false
api = "openai-chat"

[env]
MINE_URL = "{gateway}/v1"

[[files]]
path = "~/.mine/config.json"
mode = 0o600
text = '{"key": "{token}", "literal": "{{token}}", "deep": {"a": {}}}'

[[files]]
path = "/state/mine/x"
text = "x"
"""


def folder(tmp_path: Path, text: str, name: str = "mine") -> Path:
    (tmp_path / f"{name}.toml").write_text(text)
    return tmp_path


def test_every_field_of_a_declaration(tmp_path: Path) -> None:
    catalogue = load_catalogue(folder(tmp_path, WHOLE))
    assert catalogue.get("mine") == Harness(
        name="mine",
        about="a program of my own",
        image="mine:1",
        argv=("/usr/bin/mine", "--model", "{model}", "{task}"),
        resume_argv=("/usr/bin/mine", "--continue"),
        stdin="jsonl",
        output="jsonl",
        interrupt=signal.SIGUSR1,
        reads_task=False,
        resumes=True,
        api="openai-chat",
        env={"MINE_URL": "{gateway}/v1"},
        files=(
            HarnessFile(
                "/state/home/.mine/config.json",
                '{"key": "{token}", "literal": "{{token}}", "deep": {"a": {}}}',
                0o600,
            ),
            HarnessFile("/state/mine/x", "x"),
        ),
    )
    assert {harness.name for harness in catalogue} == {"mine"} | {harness.name for harness in shipped()}


def test_argv_alone_is_enough(tmp_path: Path) -> None:
    assert load_catalogue(folder(tmp_path, 'argv = ["mine"]')).get("mine") == Harness("mine", ("mine",))


def test_a_declaration_of_ones_own_replaces_a_shipped_one(tmp_path: Path) -> None:
    catalogue = load_catalogue(folder(tmp_path, 'argv = ["/opt/other"]', "agent"))
    assert catalogue.get("agent").argv == ("/opt/other",)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("argv = [", "the file"),
        ("", "argv"),
        ("argv = []", "argv"),
        ('argv = [""]', "argv"),
        ('argv = "mine"', "argv"),
        ('argv = ["mine", 1]', "argv"),
        ('argv = ["mine", "\\u0000"]', "argv"),
        ('argv = ["x"]\nname = "other"', "name"),
        ('argv = ["x"]\nargs = 1', "args"),
        ('argv = ["x"]\nabout = 1', "about"),
        ('argv = ["x"]\nresume_argv = []', "resume_argv"),
        ('argv = ["x"]\nstdin = "json"', "stdin"),
        ('argv = ["x"]\noutput = "text"', "output"),
        ('argv = ["x"]\ninterrupt = "SIGNOT"', "interrupt"),
        ('argv = ["x"]\ninterrupt = 99', "interrupt"),
        ('argv = ["x"]\nresumes = "yes"', "resumes"),
        ('argv = ["x"]\napi = "openai"', "api"),
        ('argv = ["x"]\nimage = "a b"', "image"),
        ('argv = ["x"]\nenv = "A=1"', "env"),
        ('argv = ["x"]\n[env]\n"A B" = "1"', "env.A B"),
        ('argv = ["x"]\n[env]\nA = 1', "env.A"),
        ('argv = ["x"]\nfiles = ["/state/x"]', "files"),
        ('argv = ["x"]\n[[files]]\npath = "/etc/passwd"\ntext = ""', "files[0].path"),
        ('argv = ["x"]\n[[files]]\npath = "/state/../etc/passwd"\ntext = ""', "files[0].path"),
        ('argv = ["x"]\n[[files]]\npath = "/state/x"', "files[0]"),
        ('argv = ["x"]\n[[files]]\npath = "/state/x"\ntext = ""\nmode = 0o7777', "files[0].mode"),
        ('argv = ["x", "{modle}"]', "argv[1]"),
        ('argv = ["x"]\n[env]\nA = "{nothing}"', "env.A"),
        ('argv = ["x"]\n[[files]]\npath = "/state/x"\ntext = "{nothing}"', "files./state/x"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(BadInput) as raised:
        load_catalogue(folder(tmp_path, text))
    said = raised.value
    assert said.data["field"] == f"mine.toml: {field}"
    assert str(tmp_path / "mine.toml") in said.message
    assert said.data["limit"] and said.data["remedy"]


@pytest.mark.parametrize("name", ["bash", "command"])
def test_the_built_in_ones_are_nobody_elses(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="is built in"):
        load_catalogue(folder(tmp_path, 'argv = ["x"]', name))


@pytest.mark.parametrize("name", ["Upper", "a_b", "x" * 65])
def test_a_name_is_one_a_person_can_type(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="1 to 64"):
        load_catalogue(folder(tmp_path, 'argv = ["x"]', name))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no directory"):
        load_catalogue(tmp_path / "missing")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="cannot be read"):
        load_catalogue(tmp_path)


def test_an_unknown_harness_names_those_there_are() -> None:
    with pytest.raises(BadInput) as raised:
        shipped().get("nope")
    assert raised.value.data["limit"] == " | ".join(harness.name for harness in shipped())


def test_placeholders() -> None:
    values = {"model": "m{task}", "task": "do {this}"}
    assert fill("{model} {{model}} {x} {} { model } {Model}", values) == "m{task} {model} {x} {} { model } {Model}"


def test_a_task_too_long_for_an_argument() -> None:
    mine = Harness("mine", ("mine", "{task}"))
    mine.check(Spec(task="x" * 100_000))
    with pytest.raises(BadInput, match="as an argument"):
        mine.check(Spec(task="é" * 100_000))
    Harness("mine", ("mine",)).check(Spec(task="x" * 500_000))


def test_a_spec_carries_its_declaration() -> None:
    mine = Harness("mine", ("mine",), resume_argv=("mine", "--continue"))
    spec = Spec(harness="mine", declared=mine)
    assert harness_of(spec) is mine
    assert argv_of(spec) == ("mine",)
    assert argv_of(spec, resumed=True) == ("mine", "--continue")
    assert harness_of(Spec(harness="bash")) is BUILT_IN["bash"]
    with pytest.raises(BadInput):
        harness_of(Spec(harness="mine"))


def test_the_example_in_the_page_is_one_that_can_be_read_and_every_field_is_there(tmp_path: Path) -> None:
    page = (Path(orchestrator.__file__).parent / "docs" / "operate" / "harnesses.md").read_text()
    (example,) = [part.split("```")[0] for part in page.split("```toml\n")[1:]]
    mine = load_catalogue(folder(tmp_path, example)).get("mine")
    assert mine.resumes and mine.files[0].path == "/state/home/.mine/config.json"
    fields = {word for row in page.splitlines() if row.startswith("| `") for word in row.split("|")[1].split("`")[1::2]}
    assert set(FIELDS) - {"name"} <= fields
    assert all(f"`{{{known}}}`" in page for known in PLACEHOLDERS)
