"""`python -m scripted_model --script FILE`: serves until SIGTERM or Ctrl-C; its first line says where."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from scripted_model.script import BadScript, load
from scripted_model.server import ScriptedModel


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripted_model", description=__doc__)
    parser.add_argument("--script", type=Path, action="append", default=[], help="a JSON file; may be given again")
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--key", default="", help="the key that every model request must bring")
    given = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        model = ScriptedModel(load(*given.script), key=given.key, port=given.port)
    except BadScript as wrong:
        print(wrong, file=sys.stderr)
        return 2
    except OSError as failure:
        print(f"port {given.port}: {failure}", file=sys.stderr)
        return 1
    with model:
        print(model.url, flush=True)
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
