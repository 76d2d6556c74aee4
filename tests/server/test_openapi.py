"""The committed OpenAPI document is the one the app makes, and describes what it should."""

from __future__ import annotations

import json
from pathlib import Path

import orchestrator
from orchestrator.server.door import OPEN_PATHS
from orchestrator.server.openapi import text

COMMITTED = Path(orchestrator.__file__).parent / "openapi.json"


def test_the_committed_document_is_the_app_s() -> None:
    assert COMMITTED.read_text() == text(), (
        "the API changed: run `python -m orchestrator.server.openapi > orchestrator/openapi.json` and commit it"
    )


def test_every_operation_says_what_it_needs_and_how_it_refuses() -> None:
    paths = json.loads(text())["paths"]
    assert len(paths) > 15
    for path, verbs in paths.items():
        for method, operation in verbs.items():
            assert operation["responses"]["default"]["content"].keys() == {"application/problem+json"}, (method, path)
            assert ("security" in operation) == (path not in OPEN_PATHS), (method, path)
            assert operation.get("summary"), (method, path)
