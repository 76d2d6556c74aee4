"""`python -m orchestrator` is `carrel`."""

from orchestrator.cli import main

main()
