"""Where the sandbox image is made from: the checkout's `sandbox-image/`, or the wheel's copy of it. Builds nothing."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import BadInput


def image_context() -> Path:
    """The folder with `build`, Dockerfile, seccomp.json. Raises BadInput(field="installation") when it is missing."""
    here = Path(__file__).parent
    for folder in (here.parent / "sandbox-image", here / "_image"):
        if (folder / "seccomp.json").is_file():
            return folder
    raise BadInput(
        "the sandbox image's folder is missing from this installation",
        field="installation",
        limit="sandbox-image/ beside orchestrator/, or the wheel's copy of it",
        remedy="install carrel again",
    )
