"""The SDK's way to the engine's unix socket, with two of its habits mended (docker 7.2, transport/unixconn.py).

It keeps a pool of connections per *URL*, so nearly every call connects anew; here one pool serves all. And it leaves a
socket open when connecting fails, which is every call while an engine is down. Knows no request.
"""

from __future__ import annotations

import socket
from typing import Any

import docker
from docker.transport import unixconn


class _Connection(unixconn.UnixHTTPConnection):
    def connect(self) -> None:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            end.settimeout(self.timeout)
            end.connect(self.unix_socket)
        except BaseException:
            end.close()
            raise
        self.sock = end


class _Pool(unixconn.UnixHTTPConnectionPool):
    def _new_conn(self) -> Any:
        timeout: Any = self.timeout
        return _Connection(self.base_url, self.socket_path, timeout)


class _Adapter(unixconn.UnixHTTPAdapter):
    def get_connection(self, url: Any, proxies: Any = None) -> Any:
        with self.pools.lock:
            pool = self.pools.get("engine")
            if pool is None:
                pool = _Pool("http+docker://localhost", self.socket_path, self.timeout, maxsize=self.max_pool_size)
                self.pools["engine"] = pool
        return pool


def mend(client: docker.APIClient, *, timeout_s: Any, connections: int) -> None:
    """Give a client that speaks to a unix socket this adapter; others stay as they are."""
    adapter = client.get_adapter(client.base_url)
    if isinstance(adapter, unixconn.UnixHTTPAdapter):
        adapter.close()
        ours = _Adapter(f"http+unix://{adapter.socket_path}", timeout_s, max_pool_size=connections)
        client.mount(client.base_url, ours)
