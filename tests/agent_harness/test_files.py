"""`read`, `write`, `edit` and `search`: each rule by itself, on real files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from agent_harness.tools import files, search
from agent_harness.tools.shape import ToolError


def edit(path: Path, old: str, new: str) -> bytes:
    files.prepare_edit(path, old, new).apply()
    return path.read_bytes()


def test_an_edit_is_exact_and_touches_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"a\tb  \n\xff\xfe raw\n  c\n")
    path.chmod(0o754)
    assert edit(path, "a\tb  \n", "A\n") == b"A\n\xff\xfe raw\n  c\n"
    assert path.stat().st_mode & 0o777 == 0o754
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_an_edit_keeps_the_ends_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one\r\ntwo\r\nthree\r\n")
    assert edit(path, "one\ntwo", "1\n2") == b"1\r\n2\r\nthree\r\n"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("nowhere", "x", "not in"),
        ("same", "x", "more than once, at lines 1, 3"),
        ("aa", "x", "more than once"),  # it overlaps itself
        ("", "x", "`old` is empty"),
        ("other", "other", "the same"),
    ],
)
def test_an_edit_that_is_not_exact_changes_nothing(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "f"
    path.write_text("same\nother\nsame\naaa\n")
    with pytest.raises(ToolError, match=told):
        files.prepare_edit(path, old, new)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("one")
    (tmp_path / "link").symlink_to("real")
    edit(tmp_path / "link", "one", "two")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "two"


def test_a_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    change = files.prepare_write(tmp_path / "a/b/c", "1\n2\n")
    assert change.before == files.ABSENT and "Wrote" in change.said and "2 lines" in change.said
    change.apply()
    assert change.now() == change.after
    again = files.prepare_write(tmp_path / "a/b/c", "x")
    assert again.before == change.after and "Replaced" in again.said


@pytest.mark.parametrize("name", ["/proc/self/status/x", "/dev/null/x", "x" * 300])
def test_what_cannot_be_written_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(ToolError):
        files.prepare_write(tmp_path / name, "x").apply()


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for done in (lambda: files.read(tmp_path / "pipe", 1, 10), lambda: files.prepare_write(tmp_path / "pipe", "x")):
        with pytest.raises(ToolError, match="is no file"):
            done()


def test_reading_is_bounded_and_says_how_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("".join(f"line {i}\n" for i in range(1, 5001)))
    text = files.read(path, 1, 2000)
    assert text.startswith("     1\tline 1\n") and text.endswith("[3000 more lines; go on with offset 2001]")
    assert files.read(path, 5000, 10) == "  5000\tline 5000"
    with pytest.raises(ToolError, match="has 5000 lines"):
        files.read(path, 5001, 10)
    path.write_text("x" * 1_000_000)
    assert len(files.read(path, 1, 10)) < 3_000


def test_reading_what_is_no_text_a_folder_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ToolError, match="no text"):
        files.read(tmp_path / "binary", 1, 10)
    assert files.read(tmp_path / "empty", 1, 10) == "(an empty file)"
    assert files.read(tmp_path, 1, 10) == "binary\nempty\nfolder/"


@pytest.fixture(params=["ripgrep", "by hand"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """With ripgrep where this machine has it; and with a PATH that has nothing."""
    if request.param == "by hand" or shutil.which("rg") is None:
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_searching(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def one():\n    return 1\n")
    (tmp_path / "b.txt").write_text("one\n" + "z" * 5000 + "one\n")
    (tmp_path / "bin").write_bytes(b"one\0one\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/config").write_text("one\n")
    found = search.search("one", tmp_path, "").splitlines()
    assert found[0] == f"{tmp_path}/a.py:1:def one():" and found[1] == f"{tmp_path}/b.txt:1:one"
    assert not any(".git" in line for line in found) and all(len(line) < 600 for line in found)
    assert search.search(r"^def \w+\(", tmp_path, "*.py") == f"{tmp_path}/a.py:1:def one():"
    assert search.search("", tmp_path, "*.py") == f"{tmp_path}/a.py"
    assert search.search("nothing here", tmp_path, "") == "(no match)"
    with pytest.raises(ToolError):
        search.search("(", tmp_path, "")
    with pytest.raises(ToolError):
        search.search("x", tmp_path / "nowhere", "")
    with pytest.raises(ToolError):
        search.search("", tmp_path, "")


@pytest.mark.usefixtures("way")
def test_a_search_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("one\n" * 100_000)
    text = search.search("one", tmp_path, "")
    assert len(text) < 30_000 and "narrow it down" in text
