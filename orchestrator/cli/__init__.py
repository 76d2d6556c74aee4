"""The command line: `carrel VERB …`, one file per verb.

    carrel run 'echo hello'            carrel run -- python3 -c 'print(1)'
    carrel ps                          carrel logs -f @last
    carrel send @last 'go on'          carrel stop @last

Data goes to stdout, everything else to stderr. Exit codes: the process's own; 125 ours, 124 timeout, 130 Ctrl-C,
2 usage.
"""

from __future__ import annotations

import collections.abc


def main(arguments: collections.abc.Sequence[str] | None = None) -> None:
    """The entry point of the script `carrel`. Ends the process with its exit code."""
    # Imported here: `import orchestrator.cli` stays free of the libraries.
    from orchestrator.cli.program import run

    raise SystemExit(run(arguments))


__all__ = ["main"]
