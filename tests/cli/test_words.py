"""What people type, understood or refused with what would be: durations, sizes, pairs, tasks, places. No server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator import profile
from orchestrator.cli import console, cp, endings, fetching, gathering, logs, units
from orchestrator.cli.program import run
from orchestrator.cli.transcript import Transcript
from orchestrator.cli.usage import UsageError
from orchestrator.client import Client
from orchestrator.errors import BadInput, CarrelError
from orchestrator.events import Event
from orchestrator.execution import Execution, Outcome, OutcomeKind, Reason, Spec
from orchestrator.lifecycle import ExecutionState
from orchestrator.wire.record import Record


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172_800), ("500ms", 0.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert units.duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1x", "-5m", "5m junk", "m"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="for example"):
        units.duration_s(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512m", 512 << 20), ("2g", 2 << 30), ("1.5GiB", 3 << 29), ("1048576", 1 << 20), ("64kb", 65_536)],
)
def test_sizes(text: str, size: int) -> None:
    assert units.size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1m", "2x", "2gg"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="for example"):
        units.size_bytes(text)


def test_moments() -> None:
    assert units.moment("2025-01-31T08:15:00Z") == datetime(2025, 1, 31, 8, 15, tzinfo=UTC)
    ago = datetime.now(UTC) - units.moment("10m")
    assert timedelta(minutes=9) < ago < timedelta(minutes=11)
    with pytest.raises(UsageError, match="no moment"):
        units.moment("yesterday")


def test_pairs_and_files_of_them(tmp_path: Path) -> None:
    assert units.pairs(["A=1", "B=x=y", "A=2", "C="], "-e") == {"A": "2", "B": "x=y", "C": ""}
    with pytest.raises(UsageError, match="KEY=VALUE"):
        units.pairs(["A"], "-e")
    file = tmp_path / "env"
    file.write_text('# comment\n\nA=1 # not a comment\nB="quoted"\n')
    assert units.env_file(file) == {"A": "1 # not a comment", "B": '"quoted"'}
    file.write_text("A=1\noops\n")
    with pytest.raises(UsageError, match=r"env:2"):
        units.env_file(file)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "none of them"),
        (["run", "a", "b"], "-- a b"),
        (["run", "task", "--", "ls"], "a TASK and -- CMD"),
        (["run", "--"], "no command after --"),
        (["run", ""], "the task is empty"),
        (["run", "-f", "/nowhere/at/all"], "No such file"),
        (["run", "--harness", "bash", "--", "ls"], "--harness"),
        (["run", "-d", "--rm", "x"], "-d goes without"),
        (["run", "-m", "much", "x"], "is not a size"),
        (["run", "--timeout", "soon", "x"], "is not a duration"),
        (["run", "-e", "A", "x"], "KEY=VALUE"),
        (["run", "--bogus"], "No such option"),
        (["bogus"], "No such command"),
        (["exec", "x"], "give a command"),
        (["exec", "x", "--json", "--", "ls"], "options go before EXECUTION"),
        (["cp", "a", "b"], "EXECUTION:PATH"),
        (["cp", "x:a", "y:b"], "EXECUTION:PATH"),
        (["send", "x"], "give a TEXT"),
        (["update", "x"], "at least one of"),
        (["events", "x", "--after", "1", "-n", "2"], "two different places"),
    ],
)
def test_what_is_not_understood_exits_2_and_says_what_would_be(
    arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    out, err = capfd.readouterr()
    assert out == "" and said in err and "see `carrel" in err


def test_the_overview_names_every_verb_and_each_has_a_file(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    shown = capfd.readouterr().out
    folder = Path(console.__file__).parent
    for verb in shown[shown.index("Commands:") :].splitlines()[1:]:
        if verb.startswith("  ") and verb.strip() and not verb.strip().startswith(("An ", "(")):
            name = verb.split()[0]
            assert (folder / f"{'exec_' if name == 'exec' else name}.py").exists(), name
            assert run([name, "--help"]) == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert "_CARREL_COMPLETE" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "at", "expected"),
    [("carrel in", 1, {"inspect", "intents"}), ("carrel run --t", 2, {"--timeout"}), ("carrel sto", 1, {"stop"})],
)
def test_verbs_and_options_are_completed(words: str, at: int, expected: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator"],
        env={**os.environ, "COMP_WORDS": words, "COMP_CWORD": str(at), "_CARREL_COMPLETE": "complete_bash"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert set(done.stdout.split()) == expected, done.stderr


def test_foreign_text_steers_no_terminal() -> None:
    assert console.printable("a\x1b]0;evil\x07b\r\n\u202ec") == r"a\x1b]0;evil\x07b\x0d\x0a\u202ec"
    assert console.printable("\ud800") == "?"
    assert console.printable("abcdef", most=4) == "abc…"


def test_a_json_line_is_one_line_to_every_reader(capsys: pytest.CaptureFixture[str]) -> None:
    said = {"text": "".join(map(chr, (*range(0x100), 0x2028, 0x2029, 0x202E, 0x1F600)))}
    console.json_line(json.dumps(said, ensure_ascii=False))
    told = capsys.readouterr().out
    assert len(told.splitlines()) == 1 and "\x9b" not in told
    assert json.loads(told) == said


# -- files up and down -----------------------------------------------------------------------------------------------


def test_a_directory_goes_up_whole_links_out_of_it_do_not(tmp_path: Path) -> None:
    tree = tmp_path / "proj"
    (tree / ".git").mkdir(parents=True)
    (tree / "sub").mkdir()
    (tree / ".git" / "config").write_text("x")
    (tree / "sub" / "a.py").write_text("x")
    (tree / "inside").symlink_to("sub/a.py")
    (tree / "outside").symlink_to("/etc/hostname")
    (tree / "folder").symlink_to("/etc")
    (tree / "nowhere").symlink_to("gone")
    said: list[str] = []
    found = {path for _, path in gathering.gather([str(tree)], say=said.append)}
    assert found == {"proj/.git/config", "proj/sub/a.py", "proj/inside"}
    assert len(said) == 1 and "outside" in said[0] and "nowhere" in said[0]


@pytest.mark.parametrize(
    ("wish", "path"),
    [
        ("proj", "proj/a"),
        ("proj:", "a"),
        ("proj:.", "a"),
        ("proj:x/y", "x/y/a"),
        ("proj:/workspace/z", "z/a"),
        (".", "proj/a"),
    ],
)
def test_where_a_directory_goes(wish: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proj").mkdir()
    (tmp_path / "proj" / "a").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert [to for _, to in gathering.gather([wish], say=None)] == [path]


@pytest.mark.parametrize(
    ("wish", "path"), [("f.txt", "f.txt"), ("f.txt:g", "g"), ("f.txt:d/", "d/f.txt"), ("a:b", "a:b"), ("a:b:c", "c")]
)
def test_where_a_file_goes(wish: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.txt").write_text("x")
    (tmp_path / "a:b").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert [to for _, to in gathering.gather([wish], say=None)] == [path]


@pytest.mark.parametrize("wish", ["nothing", "f.txt:../x", "f.txt:/etc/passwd", "/dev/null", ""])
def test_what_does_not_go_up(wish: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as bad:
        gathering.gather([wish], say=None)
    assert bad.value.field == "--upload" and bad.value.data["remedy"]


@pytest.mark.parametrize(("wish", "field"), [("f.txt:/x", "DST"), ("nothing:x", "SRC")])
def test_what_cp_refuses_is_named_as_cp_has_it(
    wish: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=f"^{field}: ") as bad:
        gathering.gather([wish], say=None, names=cp.NAMES)
    assert bad.value.field == field and "SRC:DST" not in bad.value.data["remedy"]


def test_a_start_that_was_refused_is_said_and_a_harness_that_spoke_itself_is_not_repeated() -> None:
    def said(exit_code: int | None) -> str:
        outcome = Outcome(OutcomeKind.FAILED, Reason.BAD_CONFIGURATION, "no content", exit_code)
        made = Execution("exe_a", Spec(), ExecutionState.FINISHED, datetime.now(UTC), outcome=outcome)
        return endings.complaint(Record.of(made))[0]

    assert "no content" in said(None)
    assert said(78) == ""


def test_two_files_for_one_place_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    with pytest.raises(BadInput, match="both become"):
        gathering.gather([f"{tmp_path}/a:x", f"{tmp_path}/b:x"], say=None)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", ".", "a\0b"])
def test_nothing_is_written_outside(name: str, tmp_path: Path) -> None:
    with pytest.raises(CarrelError):
        fetching.inside(tmp_path, name)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(CarrelError, match="link"):
        fetching.inside(tmp_path, "link/x")
    assert fetching.inside(tmp_path, "a/b") == tmp_path / "a" / "b"


# -- output ----------------------------------------------------------------------------------------------------------


def _event(seq: int, stream: str, body: bytes) -> Event:
    return Event(seq, "output", datetime(2025, 1, 1, tzinfo=UTC), 1, "harness", {"stream": stream}, body)


def test_output_keeps_its_streams_apart_and_in_order() -> None:
    events = [
        _event(1, "stdout", b"a"),
        _event(2, "stdout", b"\xff"),
        _event(3, "stderr", b"e"),
        _event(4, "stdout", b"b"),
    ]
    both = frozenset({"stdout", "stderr"})
    assert list(Transcript(both).pieces(events)) == [(1, b"a\xff"), (2, b"e"), (1, b"b")]
    assert list(Transcript(frozenset({"stderr"})).pieces(events)) == [(2, b"e")]


@pytest.mark.parametrize(
    ("pieces", "lines", "expected"),
    [
        ([b"a\nb\nc\n"], 2, b"b\nc\n"),
        ([b"a\nb\nc"], 2, b"b\nc"),
        ([b"a\n", b"b", b"b\n", b"c\n"], 2, b"bb\nc\n"),
        ([b"a\n", b"b\n"], 5, b"a\nb\n"),
        ([b"a\n", b"\n", b"\n"], 2, b"\n\n"),
        ([b"a\n"], 0, b""),
        ([], 3, b""),
        ([b"a\nb\n", b""], 1, b"b\n"),
    ],
)
def test_the_last_lines_are_lines_not_events(pieces: list[bytes], lines: int, expected: bytes) -> None:
    assert b"".join(body for _, body in logs.last_lines([(1, body) for body in pieces], lines)) == expected


# -- whom we talk to -------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("CARREL_URL", "CARREL_TOKEN", "CARREL_PROFILE", "CARREL_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("CARREL_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "admin-token").write_text("admin\n")
    return tmp_path


@pytest.mark.usefixtures("home")
def test_the_local_server_with_its_own_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARREL_PORT", "8999")
    assert profile.target(None, None) == profile.Target("http://127.0.0.1:8999", "admin", "the local server")
    with Client() as client, Client(token="mine") as other:
        assert (client.address.url, client.token) == ("http://127.0.0.1:8999", "admin")
        assert (other.address.url, other.token) == ("http://127.0.0.1:8999", "mine")


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("http://127.0.0.1:1", "admin"),
        ("http+unix:///run/c.sock", "admin"),
        ("https://carrel.example", ""),
        ("http://127.0.0.1.evil.example", ""),
    ],
)
def test_the_admin_token_goes_to_this_machine_only(url: str, token: str) -> None:
    assert profile.target(url, None).token == token


def test_a_profile_is_kept_private_and_its_token_goes_to_its_address_only(home: Path) -> None:
    path = profile.save_profile("work", "https://carrel.example", "secret")
    assert path.stat().st_mode & 0o777 == 0o600
    assert profile.target(None, None) == profile.Target("https://carrel.example", "secret", "profile work")
    assert profile.target("https://other.example", "work").token == ""
    profile.save_profile("play", "https://play.example", "s2")
    assert profile.target(None, None).url == "https://play.example"
    assert profile.target(None, "work").token == "secret"
    with pytest.raises(BadInput, match="no profile"):
        profile.target(None, "nobody")
    path.chmod(0o644)
    with pytest.raises(BadInput) as bad:
        profile.target(None, None)
    assert "0600" in bad.value.data["limit"]


def test_the_environment_beats_the_profile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile.save_profile("work", "https://carrel.example", "secret")
    monkeypatch.setenv("CARREL_TOKEN", "mine")
    assert profile.target(None, None).token == "mine"
    monkeypatch.setenv("CARREL_URL", "https://third.example")
    assert profile.target(None, None) == profile.Target("https://third.example", "mine", "--url or CARREL_URL")


@pytest.mark.usefixtures("home")
def test_at_last_is_remembered_for_each_server() -> None:
    with pytest.raises(BadInput, match="nothing was run"):
        profile.last("http://a")
    profile.remember("http://a", "exe_1")
    profile.remember("http://b", "exe_2")
    profile.remember("http://a", "exe_3")
    assert (profile.last("http://a"), profile.last("http://b")) == ("exe_3", "exe_2")
