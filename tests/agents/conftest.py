"""For each CLI agent: its image, a server with a scripted model behind it, and what a person does there.

An agent whose program cannot be had from its registry fails, with the reason in words.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from scripted_model import ScriptedModel, read
from tests.agents.desk import Desk
from tests.agents.scripts import scripts
from tests.place import ROOT, Place

AGENTS: Final = ("claude", "codex", "pi", "mini-swe-agent")
KEY: Final = "sk-of-the-agents-tests"
EVERY_API: Final = '["anthropic-messages", "openai-chat", "openai-responses"]'
BUILD_S: Final = 1500


@functools.cache
def image_of(name: str) -> tuple[str, str]:
    """(tag, "") or ("", why there is none)."""
    base = ["--base", os.environ["BASE"]] if os.environ.get("BASE") else []
    built = subprocess.run(
        [sys.executable, ROOT / "sandbox-image" / "build", *base, "--harness", name],
        capture_output=True, text=True, timeout=BUILD_S, check=False,
    )  # fmt: skip
    if built.returncode:
        return "", f"{name} cannot be installed: {' | '.join(built.stderr.splitlines()[-6:])}"
    return built.stdout.strip(), ""


@pytest.fixture(scope="session", params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in AGENTS])
def desk(request: pytest.FixtureRequest) -> Iterator[Desk]:
    name = str(request.param)
    image, why = image_of(name)
    if not image:
        pytest.fail(why)
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    models = folder / "models.toml"
    with ScriptedModel(read(scripts(name)), key=KEY) as model:
        models.write_text(f'[providers.script]\nbase_url = "{model.url}"\napis = {EVERY_API}\nkey_env = "SCRIPT_KEY"\n')
        settings = (f"image={image}", "lease_s=5", f"models_file={models}", "default_model=scripted")
        place = Place(folder, settings=settings, environment={"SCRIPT_KEY": KEY})
        try:
            place.serve()
            yield Desk(name, image, place, model)
        finally:
            place.close()
