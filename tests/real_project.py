"""A real public project for tests: h11 from its source distribution, pytest and its wheels; and h11 with a planted bug.
Fetched once into build/cache, for every test process."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
SDIST: Final = "h11-0.16.0.tar.gz"
SHA256: Final = "4e35b956cf45792e4caa5885e69fba00bdbc6ffafbfa020300e549b208ee5ff1"
NAME: Final = SDIST.removesuffix(".tar.gz")

BROKEN_FILE: Final = "h11/_headers.py"
RIGHT: Final = 'in found_raw_value.split(b",")'
WRONG: Final = 'in found_raw_value.split(b";")'
IN: Final = f"cd /workspace/{NAME}"  # absolute: some agents keep the directory between two commands
PYTEST: Final = "PYTHONPATH=/workspace/site python3 -m pytest h11 -q -p no:cacheprovider"
#: What an agent does about it, as commands where `h11-0.16.0` and `wheels` lie in /workspace; each with what the next
#: one's request must show of its output. None takes long: some agents leave a slow one to itself.
REPAIR: Final = (
    (
        "cd /workspace && for wheel in wheels/*.whl; do unzip -q -o $wheel -d site; done"
        f" && {IN} && git init -q && git add h11"
        " && git -c user.name=a -c user.email=a@b commit -q -m before && echo ready",
        "ready",
    ),
    (f"{IN} && {PYTEST} 2>&1 | tail -4", "[0-9]+ failed"),
    (f"{IN} && grep -n 'split(b' h11/_headers.py", "249:"),
    (f"""{IN} && sed -i 's/split(b";")/split(b",")/' h11/_headers.py && git diff --stat""", "1 file changed"),
    (f"{IN} && {PYTEST} 2>&1 | tail -2", "[0-9]+ passed"),
    (
        f'mkdir -p "$ARTIFACTS_DIR" && {IN} && git diff > "$ARTIFACTS_DIR/fix.patch"'
        ' && wc -l "$ARTIFACTS_DIR/fix.patch"',
        "fix.patch",
    ),
)


def fetch() -> tuple[Path, list[Path]]:
    """(the source distribution, pytest and its wheels)."""
    folder = ROOT / "build" / "cache" / "h11"
    folder.mkdir(parents=True, exist_ok=True)
    wheels, sdist = folder / "wheels", folder / SDIST
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not sdist.exists():
            _pip("download", "--no-deps", "--no-binary", "h11", "--dest", str(folder), "h11==0.16.0")
        if not any(wheels.glob("pytest-*.whl")):
            # For the image's Python, whatever runs this test: pure wheels only.
            _pip(
                "download", "--only-binary=:all:", "--python-version", "3.11", "--implementation", "py", "--abi",
                "none", "--platform", "any", "--dest", str(wheels), "pytest",
            )  # fmt: skip
    assert hashlib.sha256(sdist.read_bytes()).hexdigest() == SHA256
    return sdist, sorted(wheels.glob("*.whl"))


def lay_broken(folder: Path) -> None:
    """`h11-0.16.0/h11` with the planted bug, and `wheels`, into an empty folder: what is uploaded."""
    sdist, wheels = fetch()
    with tarfile.open(sdist) as archive:
        members = [one for one in archive if one.isfile() and one.name.startswith(f"{NAME}/h11/")]
        archive.extractall(folder, members, filter="data")
    file = folder / NAME / BROKEN_FILE
    text = file.read_text()
    assert text.count(RIGHT) == 1
    file.write_text(text.replace(RIGHT, WRONG))
    (folder / "wheels").mkdir()
    for wheel in wheels:
        (folder / "wheels" / wheel.name).write_bytes(wheel.read_bytes())


def turns(finish: str) -> list[dict[str, Any]]:
    """A scripted model's turns that repair it. `finish`: the command that ends the work, "" = words alone do."""
    found: list[dict[str, Any]] = []
    expect = ""
    for command, shows in REPAIR:
        found.append({"text": f"Now {command.split()[0]}.", "run": command} | ({"expect": expect} if expect else {}))
        expect = shows
    done: dict[str, Any] = {"text": "The header was split at the wrong character.", "expect": expect}
    return [*found, done | ({"run": finish} if finish else {})]


def check_patch(patch: Path, folder: Path) -> None:
    """It turns the broken file into the right one, byte for byte. `folder`: an empty one."""
    lay_broken(folder)
    subprocess.run(["git", "apply", str(patch)], cwd=folder / NAME, check=True, timeout=60)
    with tarfile.open(fetch()[0]) as archive:
        right = archive.extractfile(f"{NAME}/{BROKEN_FILE}")
        assert right is not None
        assert (folder / NAME / BROKEN_FILE).read_bytes() == right.read()


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    subprocess.run(command, check=True, timeout=300)
