"""`carrel-adapter NAME`: one of the adapters, until its program's work is over. The exit code is the harness's."""

from __future__ import annotations

import sys


def main() -> int:
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name == "mini-swe-agent":
        from adapters.mini import run

        return run()
    from adapters.conductor import conduct

    if name == "claude":
        from adapters.claude import Claude

        return conduct(name, Claude)
    if name == "codex":
        from adapters.codex import Codex

        return conduct(name, Codex)
    if name == "pi":
        from adapters.pi import Pi

        return conduct(name, Pi)
    print("usage: carrel-adapter claude | codex | pi | mini-swe-agent", file=sys.stderr)
    return 78


if __name__ == "__main__":
    sys.exit(main())
