"""What a package exports is what its `__all__` says: no more, no less."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import pytest

PACKAGES = [
    importlib.import_module(name) for name in ("orchestrator", "sandbox_init", "agent_harness", "scripted_model")
]
MODULES = [package.__name__ for package in PACKAGES] + [
    found.name
    for package in PACKAGES
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not found.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_all_is_true(name: str) -> None:
    module = importlib.import_module(name)
    declared = getattr(module, "__all__", None)
    if declared is not None:
        assert [missing for missing in declared if not hasattr(module, missing)] == []
    if hasattr(module, "__path__"):
        public = {
            export
            for export, value in vars(module).items()
            if not export.startswith("_") and export != "annotations" and not isinstance(value, ModuleType)
        }
        assert public == set(declared or ())
