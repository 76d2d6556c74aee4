"""The HTTP server: routes, key, faults, chunks on the wire. Knows what a format module offers, and no format.

On 127.0.0.1, a thread a connection. A stream goes out as one HTTP chunk an event; one that is cut has no last chunk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs, unquote, urlsplit

from scripted_model.answer import Answer, compose
from scripted_model.asked import Asked, BadRequest, digest
from scripted_model.body import TooLarge, UnreadableBody, read_body
from scripted_model.choosing import Chosen, choose
from scripted_model.counts import Counts
from scripted_model.formats import COUNT_TOKENS, FORMATS, Format, error, input_tokens, models
from scripted_model.script import Fault, Scripts

SECRET_HEADERS: Final = {"authorization", "x-api-key", "api-key", "cookie", "proxy-authorization"}


class ScriptedModel:
    """Serves from `start` (or `with`) to `close`, in threads of its own. `key`: demanded of every model request.
    `counts`: what was asked and delivered."""

    def __init__(self, scripts: Scripts, *, key: str = "", port: int = 0) -> None:
        """Listens at once. Raises OSError for a port that is taken."""
        self.scripts = scripts
        self.key = key
        self.counts = Counts()
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", port), _Exchange, self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="scripted-model", daemon=True
        )

    @property
    def url(self) -> str:
        """Without /v1."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends every connection, also those that hang. Idempotent."""
        self.closing.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._server.hang_up()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], handler: type[_Exchange], model: ScriptedModel) -> None:
        self.model = model
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes in the middle is no error of ours; anything else is, and is printed."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "scripted-model"
    sys_version = ""
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: `/_requests` tells."""

    # ---- routes

    def do_HEAD(self) -> None:
        self._send(200 if self.path == "/" else 404, b"")

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        counts = self.server.model.counts
        if url.path == "/_stats":
            self._json(200, counts.stats())
        elif url.path == "/_requests":
            after = parse_qs(url.query).get("after", ["0"])[0]
            self._json(200, counts.requests(int(after) if after.isdigit() else 0))
        elif url.path == "/":
            self._json(200, {"about": "a model server that follows a script", "scripts": self._names()})
        elif url.path == "/v1/models" or url.path.startswith("/v1/models/"):
            if self._has_key():
                self._models(unquote(url.path.removeprefix("/v1/models").removeprefix("/")))
        else:
            self._error(404, f"there is nothing at GET {url.path}")

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        try:
            raw = read_body(self.headers, self.rfile)
        except (UnreadableBody, TooLarge) as wrong:
            self.close_connection = True
            self._turn_away(413 if isinstance(wrong, TooLarge) else 400, str(wrong))
            return
        if path == "/_reset":
            self.server.model.counts.reset()
            self._send(204, b"")
        elif path in FORMATS or path == COUNT_TOKENS:
            self._model(path, raw)
        else:
            self._error(404, f"there is nothing at POST {path}")

    def _model(self, path: str, raw: bytes) -> None:
        counts = self.server.model.counts
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        told = {
            name.lower(): _fingerprint(value) if name.lower() in SECRET_HEADERS else value
            for name, value in self.headers.items()
        }
        counts.keep(len(raw), {"path": path, "headers": told, "body": body})
        if not self._has_key():
            return
        try:
            if not isinstance(body, dict):
                raise BadRequest("the body must be a JSON object")
            if path not in FORMATS:
                self._json(200, {"input_tokens": input_tokens(body)})
                return
            asked = FORMATS[path].read(body)
            chosen = choose(self.server.model.scripts, asked)
            answer = compose(chosen, asked)
        except BadRequest as wrong:
            self._turn_away(400, str(wrong))
            return
        name = digest(path, body)
        counts.begin(name, chosen.script.name, chosen.number)
        self._answer(FORMATS[path], asked, chosen, answer, name)

    # ---- answering

    def _answer(self, format: Format, asked: Asked, chosen: Chosen, answer: Answer, name: str) -> None:
        counts = self.server.model.counts
        fault = chosen.turn.fault
        if fault is not None and not counts.fault_is_due(name, fault.times):
            fault = None
        if fault is not None and fault.status is not None:
            counts.end(name, "refused")
            retry = {} if fault.retry_after_s is None else {"retry-after": f"{fault.retry_after_s:g}"}
            self._json(fault.status, format.error(fault.status, "the script says so"), retry)
            return
        usage, endings = answer.usage, list[str]()

        def ended(ending: str) -> None:
            if not endings:
                endings.append(ending)
                counts.end(name, ending, input_tokens=usage.all_input, output_tokens=usage.output_tokens)

        try:
            if fault is not None and fault.hang:
                self._hang()
                ended("cut")
            else:
                self._deliver(format, asked, chosen, answer, fault, ended)
        except OSError:
            self.close_connection = True  # the client went
        finally:
            ended("abandoned")

    def _deliver(
        self,
        format: Format,
        asked: Asked,
        chosen: Chosen,
        answer: Answer,
        fault: Fault | None,
        ended: Callable[[str], None],
    ) -> None:
        """Says how it ended before its last bytes go out: whoever has the answer finds it counted."""
        ids = {"request-id": answer.id("req_"), "x-request-id": answer.id("req_")}
        if asked.stream:
            pieces = list(format.events(asked, answer))
            ids |= {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        else:
            body = json.dumps(format.whole(asked, answer), ensure_ascii=False).encode()
            pieces = [body[: len(body) // 2], body[len(body) // 2 :]]
            ids |= {"content-type": "application/json"}
        self._wait(chosen.turn.first_s)
        self.send_response(200)
        for header, value in ids.items():
            self.send_header(header, value)
        if asked.stream:
            self.send_header("transfer-encoding", "chunked")
        else:
            self.send_header("content-length", str(sum(map(len, pieces))))
        self.end_headers()
        for number, piece in enumerate(pieces):
            if fault is not None and number == fault.cut_after_chunks:
                self.close_connection = True
                ended("cut")
                return
            if fault is not None and number == fault.hang_after_chunks:
                self._hang()
                ended("cut")
                return
            if fault is not None and number == fault.error_after_chunks and asked.stream:
                ended("cut")
                self._chunk(format.broken(asked, answer))
                break
            self._wait(chosen.turn.chunk_s)
            if number == len(pieces) - 1:
                ended("whole")
            if asked.stream:
                self._chunk(piece)
            else:
                self.wfile.write(piece)
        if asked.stream:
            self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, piece: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def _wait(self, duration_s: float) -> None:
        if duration_s and self.server.model.closing.wait(duration_s):
            raise ConnectionAbortedError

    def _hang(self) -> None:
        """Until the client goes, or the server closes."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            while self.connection.recv(65536):
                pass

    # ---- small things

    def _has_key(self) -> bool:
        key = self.server.model.key
        given = self.headers.get("x-api-key") or (self.headers.get("authorization") or "").removeprefix("Bearer ")
        if not key or given == key:
            return True
        self._turn_away(401, "the API key is not the one this server was started with" if given else "no API key")
        return False

    def _names(self) -> list[str]:
        return sorted(self.server.model.scripts.by_name)

    def _models(self, name: str) -> None:
        self._json(200, models(name, "anthropic-version" in self.headers))

    def _turn_away(self, status: int, message: str) -> None:
        self.server.model.counts.turned_away()
        self._error(status, message)

    def _error(self, status: int, message: str) -> None:
        anthropic = self.path.startswith("/v1/messages") or "anthropic-version" in self.headers
        self._json(status, error(status, message, anthropic))

    def _json(self, status: int, content: object, headers: Mapping[str, str] | None = None) -> None:
        more = {"content-type": "application/json", **(headers or {})}
        self._send(status, json.dumps(content, ensure_ascii=False).encode(), more)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            for header, value in (headers or {}).items():
                self.send_header(header, value)
            if status != 204:
                self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)


def _fingerprint(secret: str) -> str:
    """Enough to tell two keys apart, and not the key."""
    return "sha256:" + hashlib.sha256(secret.encode()).hexdigest()[:12]
