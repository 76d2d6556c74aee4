"""Removal of trees that do not want to go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.workspaces.removal import remove_tree

WRITER = """
import os, sys
print("ready", flush=True)
made = 0
while os.path.isdir(sys.argv[1]) and made < 3000:
    try:
        os.makedirs(f"{sys.argv[1]}/a/b{made}")
        open(f"{sys.argv[1]}/a/b{made}/f", "w").close()
    except OSError:
        pass
    made += 1
"""


def test_links_are_cut_not_followed(short_dir: Path) -> None:
    outside = short_dir / "outside"
    (outside / "kept").mkdir(parents=True)
    tree = short_dir / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "link").symlink_to(outside)
    (tree / "deep" / "link").symlink_to("../../outside/kept")
    (tree / "file").hardlink_to(_file(outside / "file"))
    assert remove_tree(tree)
    assert not tree.exists()
    assert (outside / "kept").is_dir() and (outside / "file").read_text() == "x"


def test_a_link_in_the_trees_own_place_is_not_followed(short_dir: Path) -> None:
    (short_dir / "outside").mkdir()
    _file(short_dir / "outside" / "file")
    (short_dir / "tree").symlink_to("outside")
    with pytest.raises(NotADirectoryError):
        remove_tree(short_dir / "tree")
    assert (short_dir / "outside" / "file").exists()


def test_absent_is_removed(short_dir: Path) -> None:
    assert remove_tree(short_dir / "never")


def test_folders_without_permissions(short_dir: Path) -> None:
    """Matters where the worker is not root."""
    tree = short_dir / "tree"
    (tree / "shut" / "inner").mkdir(parents=True)
    _file(tree / "shut" / "inner" / "file")
    (tree / "shut").chmod(0)
    assert remove_tree(tree) and not tree.exists()


def test_while_somebody_still_writes(short_dir: Path) -> None:
    tree = short_dir / "tree"
    tree.mkdir()
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tree)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        while not remove_tree(tree):
            pass  # says so, leaves a smaller tree, and may be asked again
        writer.wait()
        assert remove_tree(tree)
        assert not tree.exists()
    finally:
        writer.kill()
        writer.wait()
        if writer.stdout is not None:
            writer.stdout.close()


@pytest.mark.root
def test_what_cannot_go_is_said_and_the_rest_goes(short_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = short_dir / "tree"
    for name in ("a", "mounted", "z"):
        (tree / name / "inner").mkdir(parents=True)
        _file(tree / name / "file")
    point = tree / "mounted" / "inner"
    subprocess.run(["mount", "-t", "tmpfs", "carrel-test", str(point)], check=True)
    moved = point
    try:
        assert not remove_tree(tree)
        assert "could not remove" in caplog.text
        assert not (tree / "a").exists() and not (tree / "z").exists()
        moved = next(path for path in [tree, *tree.rglob("*")] if os.path.ismount(path))
    finally:
        subprocess.run(["umount", str(moved)], check=True)
    assert remove_tree(tree)


def _file(path: Path) -> Path:
    path.write_text("x")
    return path
