"""The scripted model as one of the providers, served by this process: an agent works where nobody has a key.

Knows neither settings nor gateway. Of the name `scripted`; where there is no other provider it answers to every name.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Final

from orchestrator.errors import BadInput
from orchestrator.models import ModelApi, ModelPolicy, Price, Provider
from scripted_model import BadScript, ScriptedModel, Scripts, load

NAME: Final = "scripted"
DEMO: Final = "demo"


@contextmanager
def with_scripted_model(policy: ModelPolicy, script: str) -> Iterator[ModelPolicy]:
    """The policy with the scripted model in it, which is served until the end. `script`: a file, or DEMO. Raises
    BadInput."""
    key = secrets.token_hex(16)  # as any provider has one; whoever else is on this machine needs none of its answers
    with ScriptedModel(_scripts(script), key=key) as model:
        only = not policy.providers
        # By chat first: there a thought comes along without being asked for.
        apis = (ModelApi.CHAT, ModelApi.MESSAGES, ModelApi.RESPONSES)
        provider = Provider(NAME, model.url, apis, key, ("*",) if only else (NAME,))
        yield replace(
            policy,
            providers=(provider, *policy.providers),
            prices={NAME: Price(0, 0), **policy.prices},
            default_model=policy.default_model or (NAME if only else ""),
        )


def _scripts(script: str) -> Scripts:
    try:
        if script == DEMO:
            with resources.as_file(resources.files("scripted_model") / "demo.json") as path:
                return load(path)
        return load(Path(script).expanduser())
    except BadScript as wrong:
        raise BadInput(
            str(wrong),
            field="scripted_model",
            limit="a script's file (agent-harness/scripted_model/README.md), or `demo`",
            remedy="correct it there, or take `scripted_model` out of the settings",
        ) from None
