"""`make uninstall` takes from the data directory what is ours, by name. Run in a copy, where no engine is in reach."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: All it needs; no docker, no apt-get: nothing of this machine is in its reach.
TOOLS = (
    "bash",
    "cat",
    "comm",
    "cut",
    "dirname",
    "du",
    "find",
    "flock",
    "grep",
    "id",
    "ls",
    "rm",
    "rmdir",
    "sed",
    "sort",
    "tail",
    "tr",
)


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    tools, data = tmp_path / "bin", tmp_path / "data"
    tools.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found, name
        (tools / name).symlink_to(found)
    shutil.copytree(ROOT / ".ci", tmp_path / "checkout" / ".ci")
    (tmp_path / "checkout" / "build").mkdir()

    def uninstall() -> str:
        for name in ("slots/sbx_a/vol", "blobs", "redis", "logs"):
            (data / name).mkdir(parents=True)
        (data / "admin-token").write_text("secret")
        done = subprocess.run(
            [".ci/uninstall"],
            cwd=tmp_path / "checkout",
            env={"PATH": str(tools), "HOME": str(tmp_path), "CARREL_DATA_DIR": str(data)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    data.mkdir()
    (data / "thesis.txt").write_text("years of work")
    assert "thesis.txt" in uninstall()
    assert [path.name for path in data.iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "checkout" / "build").exists()
    (data / "thesis.txt").unlink()
    uninstall()
    assert not data.exists()
