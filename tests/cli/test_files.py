"""`carrel cp` of directories both ways, `ls`, `diff`: as a person types them."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from orchestrator.client import Client
from tests.place import Place, until

pytestmark = pytest.mark.root


def names(data: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        return {info.name for info in archive}


def test_directories_in_and_out(place: Place, tmp_path: Path) -> None:
    here = tmp_path / "src"
    (here / "sub" / "empty").mkdir(parents=True)
    (here / ".hidden").write_text("h")
    (here / "sub" / "tool").write_text("#!/bin/sh\n")
    (here / "sub" / "tool").chmod(0o755)
    (here / os.fsdecode(b"caf\xe9")).write_text("latin")
    (here / "out").symlink_to("/etc/passwd")
    with Client(place.url, place.token) as client:
        execution = client.submit(command=["sleep", "600"], name="files")
        until(lambda: execution.refresh().state == "RUNNING", "it runs")
        said = place.carrel("cp", str(here), "files:")
        assert said.returncode == 0 and said.stderr.endswith(b"3 files copied\n") and b"left out" in said.stderr
        inside = {one.path: one.mode for one in execution.files.list("src", recursive=True)}
        assert set(inside) == {"src/.hidden", "src/caf\ufffd", "src/sub", "src/sub/empty", "src/sub/tool"}
        assert inside["src/sub/tool"] == "0755"

        packed = place.carrel("cp", "files:src", "-").stdout
        assert names(packed) == {".hidden", os.fsdecode(b"caf\xe9"), "sub", "sub/empty", "sub/tool"}
        place.ok("cp", "-q", "-", "files:again/", stdin=packed)
        place.ok("cp", "-q", "files:again", str(tmp_path / "back"))
        assert {path.relative_to(tmp_path / "back").as_posix() for path in (tmp_path / "back").rglob("*")} == {
            path.relative_to(here).as_posix() for path in here.rglob("*") if path.name != "out"
        }
        assert os.access(tmp_path / "back" / "sub" / "tool", os.X_OK)
        wrong = place.carrel("cp", "-", "files:again/", stdin=b"no tar at all")
        assert wrong.returncode == 125 and b"whole tar" in wrong.stderr

        execution.snapshot(name="then")
        execution.files.write("src/sub/tool", b"#!/bin/sh\ntrue\n")
        execution.files.remove("again", recursive=True)
        watching = place.start("ls", "-w", "files:src")
        watching.saw(b"ready\n")
        execution.files.write("src/new\x1b[31m", b"x")
        watching.saw(b"created src/new")
        assert b"\x1b" not in watching.out
        listed = [json.loads(line)["path"] for line in place.ok("ls", "--json", "--name", "tool", "files").splitlines()]
        assert listed == ["src/sub/tool"]
        assert " again/\n" in place.ok("ls", "--snapshot", "then", "files")
        shown = place.ok("diff", "-p", "files", "then", "--path", "src/sub")
        assert shown == "--- a/src/sub/tool\n+++ b/src/sub/tool\n@@ -1,1 +1,2 @@\n #!/bin/sh\n+true\n"
        execution.delete(force=True)
