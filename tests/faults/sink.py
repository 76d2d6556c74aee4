"""`python -m tests.faults.sink ADDRESS PORT FILE`: an HTTP server that appends the path of every request to a file, on
disk before it answers. An effect outside every workspace: what is in the file happened, as often as it stands there.
"""

from __future__ import annotations

import http.server
import os
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    file: int

    def do_GET(self) -> None:
        os.write(self.file, self.path.encode() + b"\n")
        os.fsync(self.file)
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    address, port, file = sys.argv[1:]
    Handler.file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    server = http.server.ThreadingHTTPServer((address, int(port)), Handler)
    print("listening", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
