"""Programs that run inside a sandbox. Standard library only; knows nothing of the orchestrator but the contract."""
