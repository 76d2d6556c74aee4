"""The public conformance suite of Durable Streams, pinned in package-lock.json, against a real server."""

from __future__ import annotations

import pytest

from tests.conformance import suite


@pytest.mark.timeout(600)
async def test_every_default_test_of_the_public_suite_passes() -> None:
    result = await suite.run()
    assert list(result.failures) == []
    assert list(result.skipped) == []
    assert result.passed == suite.DEFAULT_TESTS
    print(result)
