"""The engine's stage, for a restore that a worker goes on with."""

from tests.engine.conftest import here as here
