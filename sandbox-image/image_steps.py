"""What building any of our images is made of: files as a context and as a digest, the engine's build, said aloud. Knows
no image.

Talks to the engine through its API, classic builder (engine 20.10 has no buildx, and a newer client with it is easily
confused).
"""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import docker
import docker.errors

BUILD_TIMEOUT_S = 1800


class Missing(Exception):
    """Something outside this folder is not there. The text names the remedy."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def files_of(folder: Path, name: str) -> dict[str, Path]:
    """Name in the build's context → file."""
    return {
        f"{name}/{path.relative_to(folder).as_posix()}": path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def digest(base: str, files: Mapping[str, Path]) -> str:
    """12 hex digits of the content and the base's id or name."""
    total = hashlib.sha256(base.encode())
    for name, path in files.items():
        data = path.read_bytes()
        total.update(b"%s %d\n" % (name.encode(), len(data)))
        total.update(data)
    return total.hexdigest()[:12]


def has_image(engine: docker.DockerClient, name: str) -> bool:
    try:
        engine.images.get(name)
    except docker.errors.ImageNotFound:
        return False
    return True


def build(
    engine: docker.DockerClient,
    files: Mapping[str, Path],
    tag: str,
    arguments: Mapping[str, str],
    *,
    no_cache: bool,
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """`extra`: in the context as well, and no part of any digest. Raises docker.errors.BuildError with the failing
    step's words."""
    steps = engine.api.build(
        fileobj=_context({name: path.read_bytes() for name, path in files.items()} | dict(extra or {})),
        custom_context=True,
        tag=tag,
        buildargs=dict(arguments),
        rm=True,
        forcerm=True,
        nocache=no_cache,
        decode=True,
        timeout=BUILD_TIMEOUT_S,
    )
    tail: list[str] = []
    for step in steps:
        if "error" in step:
            raise docker.errors.BuildError("\n".join([*tail[-30:], step["error"]]), iter(()))
        for line in str(step.get("stream", "")).splitlines():
            tail.append(line)
            if line.startswith("Step "):
                say(f"image: {line[:160]}")


def _context(files: Mapping[str, bytes]) -> io.BytesIO:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755 if name.startswith("bin/") else 0o644
            tar.addfile(entry, io.BytesIO(data))
    packed.seek(0)
    return packed
