"""Calls to the Docker engine: blocking ones, in bounded threads, with a time limit each, and its answers sorted.

The rule of sorting (P6): only the engine's own "no such" is absence. No connection, a time-out and an answer of 5xx
mean that the state is *unknown*. Knows nothing of sandboxes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import docker
import requests
import urllib3
from docker import errors as docker_errors
from docker.utils import kwargs_from_env

from orchestrator.drivers.engine_socket import mend
from orchestrator.errors import CarrelError, DiskFull, EngineUnavailable, Infeasible

P = ParamSpec("P")
T = TypeVar("T")

#: Docker 20.10's, the version all this was tried with. An engine that speaks it no more (29 begins at 1.44) is spoken
#: to in the oldest it does.
API_VERSION: Final = "1.41"

#: Words of the OCI runtime in an answer of 5xx: the engine itself is well, this one container could not be started.
_START_FAILURES: Final = ("oci runtime", "failed to create shim", "failed to create task", "failed to start shim")
_OTHER_VERSION: Final = "client version"  # "client version 1.41 is too old", "… is too new"
_FULL: Final = ("no space left on device", "disk quota exceeded")


class NoSuch(CarrelError):
    """The engine's positive 404. `data`: text."""

    code = "engine_no_such"


class Refused(CarrelError):
    """The engine's 4xx, or its runtime's failure: this request cannot succeed as it is. `data`: status, text."""

    code = "engine_refused"

    def __init__(self, text: str, *, status: int) -> None:
        super().__init__(text, status=status, text=text)
        self.text = text
        self.status = status


class EngineCalls:
    """One engine. `quick` for questions, `slow` for what makes or changes something.

    The time limit is per socket operation, in seconds, and is what gives a hung engine's threads back; so at most
    `threads` wait on it at once, the others queue.
    """

    def __init__(self, base_url: str = "", *, threads: int = 8, quick_s: float = 15, slow_s: float = 90) -> None:
        self._base_url = base_url
        self._threads = threads
        self._limits_s = {"quick": quick_s, "slow": slow_s}
        self._clients: dict[str, docker.APIClient] = {}
        self._version = ""  # not asked yet
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="engine")

    async def quick(self, call: Callable[Concatenate[docker.APIClient, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Ask something. Raises NoSuch, Refused, EngineUnavailable, Infeasible, DiskFull."""
        return await self._run("quick", call, *args, **kwargs)

    async def slow(self, call: Callable[Concatenate[docker.APIClient, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make or change something. Raises as `quick`; after EngineUnavailable it may or may not have happened."""
        return await self._run("slow", call, *args, **kwargs)

    async def run(self, work: Callable[[], T]) -> T:
        """Other blocking work that belongs to a call (files under /proc and /sys), in the same threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def stream_client(self) -> docker.APIClient:
        """A client of its own for a long stream (its pool of connections must not starve the calls')."""
        with sorted_errors():
            return self._make(self._limits_s["quick"])

    def close(self) -> None:
        """End the threads as their calls return; close the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for client in self._clients.values():
            client.close()

    async def _run(
        self, kind: str, call: Callable[Concatenate[docker.APIClient, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        def blocking() -> T:
            try:
                with sorted_errors():
                    return call(self._client(kind), *args, **kwargs)
            except Refused as error:
                if _OTHER_VERSION not in error.text.lower():
                    raise
                self._version = ""  # another engine than before: ask it anew
                self._clients.clear()
                raise EngineUnavailable(f"the container engine was replaced: {error.text}", retry_after_s=1) from error

        return await self.run(blocking)

    def _client(self, kind: str) -> docker.APIClient:
        client = self._clients.get(kind)
        if client is None:
            # Two threads may both make one; the loser's has no connection yet and is dropped.
            client = self._clients.setdefault(kind, self._make(self._limits_s[kind]))
        return client

    def _make(self, timeout_s: float) -> docker.APIClient:
        if not self._version:
            with contextlib.closing(self._speaking(API_VERSION, timeout_s)) as probe:
                oldest = str(probe.version(api_version=False).get("MinAPIVersion") or API_VERSION)
            self._version = max(API_VERSION, oldest, key=_numbers)
        return self._speaking(self._version, timeout_s)

    def _speaking(self, version: str, timeout_s: float) -> docker.APIClient:
        options: dict[str, Any] = {"version": version, "timeout": timeout_s, "max_pool_size": self._threads}
        if self._base_url:
            client = docker.APIClient(base_url=self._base_url, **options)
        else:
            client = docker.APIClient(**kwargs_from_env(), **options)
        mend(client, timeout_s=timeout_s, connections=self._threads)
        return client


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


@contextlib.contextmanager
def sorted_errors() -> Iterator[None]:
    """The SDK's, requests' and urllib3's exceptions as ours."""
    try:
        yield
    except docker_errors.APIError as error:
        raise _sorted(error) from error
    except (
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        docker_errors.DockerException,
        OSError,
        ValueError,  # half an answer is not JSON, or is other JSON than the SDK expects
        KeyError,
        TypeError,
    ) as error:
        raise EngineUnavailable(f"the container engine does not answer: {error}", retry_after_s=1) from error


def _sorted(error: docker_errors.APIError) -> CarrelError:
    text = str(error.explanation or error)
    lowered = text.lower()
    status = int(error.status_code or 500)
    if any(words in lowered for words in _FULL):
        return DiskFull(f"the container engine has no space: {text}", where="engine")
    if status == 404:
        return NoSuch(text, text=text)
    if "runtime name" in lowered or "unknown runtime" in lowered:
        return Infeasible(f"the container engine has no such runtime: {text}", field="runtime", limit="see doctor")
    if status < 500 or any(words in lowered for words in _START_FAILURES):
        return Refused(text, status=status)
    return EngineUnavailable(f"the container engine failed ({status}): {text}", retry_after_s=1)
