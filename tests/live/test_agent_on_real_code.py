"""Acceptance: the bundled agent repairs a real public project (h11, a planted bug), runs its tests and leaves a patch;
so does a program that a person declared in a file of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripted_model import ScriptedModel, read
from tests.place import Place
from tests.real_project import REPAIR, check_patch, lay_broken, turns

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(300), pytest.mark.xdist_group("agent")]

KEY = "sk-of-the-real-code"
OWN = """
about = "asks the model one question, as a ten-line program would"
argv = ["/bin/sh", "/state/ask.sh", "{model}"]
resume_argv = ["/bin/echo", "again"]
stdin = "none"
api = "openai-chat"

[env]
ASK_AT = "{gateway}/v1/chat/completions"

[[files]]
path = "~/.netrc-like"
mode = 0o600
text = "Authorization: Bearer {token}"

[[files]]
path = "/state/ask.sh"
text = '''
body=$(jq -n --arg model "$1" --arg task "$TASK" '{model: $model, messages: [{role: "user", content: $task}]}')
answer=$(curl -s -H @$HOME/.netrc-like -H 'Content-Type: application/json' -d "$body" "$ASK_AT")
echo "$answer" | jq -r .choices[0].message.content
stat -c %a $HOME/.netrc-like
'''
"""


@pytest.fixture(scope="module")
def place(sandbox_image: str) -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    (folder / "harnesses").mkdir()
    (folder / "harnesses" / "mine.toml").write_text(OWN)
    models = folder / "models.toml"
    script = {"scripts": {"repair": {"turns": turns("")}, "own": {"turns": [{"text": "Forty-two."}]}}}
    with ScriptedModel(read(script), key=KEY) as model:
        apis = '["anthropic-messages", "openai-chat"]'
        models.write_text(f'[providers.script]\nbase_url = "{model.url}"\napis = {apis}\nkey_env = "SCRIPT_KEY"\n')
        settings = (f"models_file={models}", "default_model=scripted", f"harness_dir={folder / 'harnesses'}")
        made = Place(folder, settings=(f"image={sandbox_image}", *settings), environment={"SCRIPT_KEY": KEY})
        try:
            made.serve()
            yield made
        finally:
            made.close()


def test_the_bundled_agent_repairs_a_real_project(place: Place, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    lay_broken(tmp_path / "up")
    upload = ("--upload", f"{tmp_path / 'up'}/.:.")
    place.ok("run", "-d", "--harness", "agent", "--name", "repair", *upload, "[[script:repair]] Mend it.")
    done = place.carrel("wait", "repair")
    assert done.returncode == 0, place.events("repair")[-10:]
    place.ok("artifacts", "get", "repair", "fix.patch", "-o", str(tmp_path))
    (tmp_path / "fresh").mkdir()
    check_patch(tmp_path / "fix.patch", tmp_path / "fresh")
    told = place.events("repair")
    ended = [one["data"] for one in told if one["type"] == "tool_call_update" and one["data"]["status"] == "completed"]
    assert len({one["id"] for one in ended}) == len(REPAIR)
    assert place.record("repair")["spend"]["calls"] == len(REPAIR) + 1


def test_a_harness_of_ones_own_is_one_file(place: Place) -> None:
    assert "mine" in place.ok("harnesses")
    place.ok("run", "-d", "--harness", "mine", "--name", "own", "[[script:own]] What is the answer?")
    assert place.carrel("wait", "own").returncode == 0, place.events("own")
    assert place.ok("logs", "own") == "Forty-two.\n600\n"
