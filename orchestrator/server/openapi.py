"""Writes the OpenAPI document: `python -m orchestrator.server.openapi > orchestrator/openapi.json`."""

from __future__ import annotations

import json

from orchestrator.server.app import bare_app


def text() -> str:
    """As it is committed."""
    return json.dumps(bare_app().openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(text(), end="")
