"""The image of one CLI agent: ours, its program out of its registry, and the adapter that speaks to it.

Knows of an agent that it has a folder in `harnesses/`; the Dockerfile there does the rest. This machine's certificates
and the registries it names in its environment are lent to the stage that fetches, and stay out of the image.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker

from image_steps import Missing, build, digest, files_of, has_image, say

HERE = Path(__file__).resolve().parent
HARNESSES = HERE / "harnesses"
NAME = "carrel/sandbox-{}"
LENT = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "NPM_CONFIG_REGISTRY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
#: Where programs are told which certificates to trust; the first that is set counts.
CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")


def known() -> list[str]:
    """The agents that have an image of their own."""
    return sorted(path.parent.name for path in HARNESSES.glob("*/Dockerfile"))


def harness_image(engine: docker.DockerClient, name: str, base: str, *, force: bool) -> str:
    """Build it on the image `base` unless this content was built before. Its tag. Raises Missing, BuildError."""
    if name not in known():
        raise Missing(f"there is no image for the harness {name!r}: name one of {', '.join(known())}")
    files = _files(name)
    repository = NAME.format(name)
    tag = f"{repository}:{digest(base, files)}"
    with _alone(name):
        if has_image(engine, tag) and not force:
            say(f"image: {tag} is there already, on {base}")
        else:
            say(f"image: building {tag} on {base} (its program comes from its registry: a minute or more)")
            arguments = {"BASE": base, **{name: os.environ[name] for name in LENT if os.environ.get(name)}}
            build(engine, files, tag, arguments, no_cache=force, extra={"host/ca.crt": _certificates()})
            # Only of this harness: another's build may be standing on its own at this moment.
            engine.images.prune(filters={"dangling": True, "label": f"carrel.stage=fetch-{name}"})
        engine.images.get(tag).tag(repository, "latest")
    return tag


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """One build of this harness at a time, of this user: who is done first takes away what the second stands on.
    Raises Missing where the lock cannot be opened."""
    path = Path(tempfile.gettempdir()) / f"carrel-image-{name}-{os.geteuid()}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise Missing(f"{path} cannot be locked ({problem.strerror}): remove it, or set TMPDIR") from problem
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"image: another build for {name} is under way; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _files(name: str) -> dict[str, Path]:
    own = HARNESSES / name
    program = {called: path for called, path in files_of(own, "program").items() if path.name != "Dockerfile"}
    return {
        "Dockerfile": own / "Dockerfile",
        "fetch/fetch": HARNESSES / "fetch",
        "fetch/node.txt": _beside("locks/node.txt", "orchestrator/locks/node.txt"),
        **program,
        **files_of(_beside("_image/adapters", "agent-harness/adapters"), "adapters"),
        **files_of(HARNESSES / "bin", "bin"),
    }


def _beside(installed: str, checkout: str) -> Path:
    """Of the checkout this folder lies in, or of the wheel that carries it."""
    for path in (HERE.parent / checkout, HERE.parent / installed):
        if path.exists():
            return path
    raise Missing(f"{checkout} is not in this installation: install carrel again")


def _certificates() -> bytes:
    for variable in CERTIFICATES:
        if path := os.environ.get(variable):
            try:
                return Path(path).read_bytes()
            except OSError as problem:
                print(f"image: ${variable}: {problem}", file=sys.stderr)
    return b""
