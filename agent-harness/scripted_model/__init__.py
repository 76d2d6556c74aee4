"""A model server that follows a script: for tests, and for seeing an agent work without any key.

README.md has the format.

with ScriptedModel(load(Path("script.json"))) as model:
    print(model.url)  # speaks /v1/messages, /v1/chat/completions, /v1/responses
"""

from scripted_model.script import BadScript, Scripts, load, read
from scripted_model.server import ScriptedModel

__all__ = ["BadScript", "ScriptedModel", "Scripts", "load", "read"]
