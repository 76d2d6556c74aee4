"""The line to one Redis or Valkey server: scripts and commands, asked again with patience. Knows no key.

redis-py's own retries are off: it would send anything twice. Here everything may be sent twice, because every script
is idempotent (by the caller's id, `own`, `src`, message id, nonce) and every command is a read. While the server is
away, loads its file or is held by a long script, a call asks again until `patience_s` is over; then StoreUnavailable.
What waiting cannot heal (no memory, a full disk, a replica, Cluster) is said at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LineError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as LineTimeout  # no builtin TimeoutError, whatever its name

from orchestrator.errors import StoreUnavailable
from orchestrator.stores.redis.scripts import Script, load

Argument = str | bytes | int | float

#: What a line that broke, or was never there, is told with.
_BROKEN: Final = (LineError, LineTimeout, ResponseError, OSError, TimeoutError, asyncio.IncompleteReadError)
#: Calls under way at once; each has its own connection. Blocking reads are not counted.
_AT_ONCE: Final = 64
_FIRST_WAIT_S: Final = 0.01
_LAST_WAIT_S: Final = 0.5
#: Error codes that pass: the server is starting, a script holds it, a failover is under way.
_PASSING: Final = ("LOADING", "BUSY", "TRYAGAIN", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN")
#: Error codes that need a person, and what to tell them.
_STANDING: Final = {
    "OOM": "it is at its maxmemory: give it more, or remove finished executions",
    "MISCONF": "it cannot write to its disk: see its log",
    "READONLY": "it is a replica: CARREL_REDIS_URL must name the primary",
    "NOAUTH": "it wants a password: put it into CARREL_REDIS_URL",
    "WRONGPASS": "it does not accept the password in CARREL_REDIS_URL",
    "NOPERM": "its ACL does not allow what Carrel needs (EVALSHA, EVAL and all keys under carrel:*)",
    "MOVED": "it runs in Cluster mode, which Carrel does not support: one primary is needed",
    "CROSSSLOT": "it runs in Cluster mode, which Carrel does not support: one primary is needed",
}


class Server:
    """One server, by URL (`redis://`, `rediss://`, `unix://`). Lives in one event loop; `aclose` ends its connections.

    All methods raise StoreUnavailable; `data` has `retry_after_s` where waiting may help.
    """

    def __init__(self, url: str, *, patience_s: float = 5.0) -> None:
        self.url = url
        self.patience_s = patience_s
        # Only its factory is used: a pool of redis-py's spends more on bookkeeping than a call takes.
        self._factory = ConnectionPool.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=patience_s,
            driver_info=None,
        )
        self._idle: list[AbstractConnection] = []
        self._busy: set[AbstractConnection] = set()
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._closed = False

    async def aclose(self) -> None:
        """Close every connection, also those that wait. Calls under way raise StoreUnavailable."""
        self._closed = True
        for connection in self._busy:
            await connection.disconnect(nowait=True)
        idle, self._idle = self._idle, []
        for connection in idle:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await connection.disconnect()

    async def run(self, name: str, *args: Argument) -> list[Any]:
        """The script lua/<name>.lua with these ARGV; its answer, an array whose first item is a word."""
        script = load(name)
        (answer,) = await self._ask([("EVALSHA", script.sha, 0, *args)], script=script)
        answer[0] = answer[0].decode()
        return answer  # type: ignore[no-any-return]

    async def ask(self, *command: Argument) -> Any:
        """The answer to one command that only reads."""
        return (await self._ask([command]))[0]

    async def ask_all(self, *commands: Sequence[Argument]) -> list[Any]:
        """The answers to several that only read, sent together, executed in order (others may come between)."""
        return await self._ask(commands)

    async def block(self, *command: Argument, block_s: float) -> Any:
        """The answer to a command that waits at the server for at most `block_s`. Once: raises LineLost if the line
        breaks meanwhile, so that the caller can decide what was missed."""
        try:
            async with asyncio.timeout(block_s + self.patience_s):
                return (await self._once([command]))[0]
        except _BROKEN as failure:
            if _code(failure) in _STANDING:
                raise self._refused(failure) from failure
            raise LineLost(str(failure)) from failure

    async def _ask(self, commands: Sequence[Sequence[Argument]], script: Script | None = None) -> list[Any]:
        loop = asyncio.get_running_loop()
        until = loop.time() + self.patience_s
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                async with asyncio.timeout_at(until), self._places:
                    try:
                        return await self._once(commands)
                    except NoScriptError:
                        if script is None:
                            raise
                        # It forgot (a restart, SCRIPT FLUSH): EVAL with the text teaches it again.
                        return await self._once([("EVAL", script.text, *commands[0][2:])])
            except _BROKEN as failure:
                # What is not a refusal is a broken line; redis-py files a wrong password under those.
                refused = isinstance(failure, ResponseError) and _code(failure) not in _PASSING
                if refused or _code(failure) in _STANDING:
                    raise self._refused(failure) from failure
                why = failure
            if self._closed or loop.time() + wait_s >= until:
                raise StoreUnavailable(
                    f"the store does not answer ({_code(why) or type(why).__name__}: {why})", retry_after_s=1.0
                ) from why
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, _LAST_WAIT_S)

    async def _once(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        connection = (
            self._idle.pop() if self._idle else self._factory.make_connection()  # type: ignore[no-untyped-call]
        )
        self._busy.add(connection)
        sound = False
        try:
            if not connection.is_connected:
                await connection.connect()
            packed = connection.pack_command(*commands[0]) if len(commands) == 1 else connection.pack_commands(commands)
            await connection.send_packed_command(packed, check_health=False)
            answers: list[Any] = []
            failure: ResponseError | None = None
            for _ in commands:
                try:
                    answers.append(await connection.read_response(disconnect_on_error=False))
                except ResponseError as refusal:
                    failure = failure or refusal
            sound = True
            if failure:
                raise failure
            return answers
        finally:
            self._busy.discard(connection)
            if sound and not self._closed:
                self._idle.append(connection)
            else:
                # An answer may still be on its way: nobody may read it as the answer to something else.
                with contextlib.suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)
                if not sound and not self._closed:
                    await self._forget_idle()

    async def _forget_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            with contextlib.suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    def _refused(self, refusal: Exception) -> StoreUnavailable:
        code = _code(refusal)
        if code in _STANDING:
            return StoreUnavailable(f"the store refuses: {_STANDING[code]} ({refusal})", retry_after_s=5.0, reason=code)
        return StoreUnavailable(f"the store answers with an error: {refusal}", reason=code)


class LineLost(Exception):
    """The connection broke while a command waited on it."""


def _code(error: BaseException) -> str:
    """The error's own code. What a script runs into comes wrapped on 6.2 ("ERR Error running script …: -OOM …")."""
    if error.__cause__ is not None and getattr(error.__cause__, "status_code", None):
        error = error.__cause__  # a refusal while connecting: redis-py wraps it as a broken line
    text = str(error)
    code = getattr(error, "status_code", None) or text.partition(" ")[0]
    if code == "ERR":
        wrapped = re.search(r"-([A-Z]+) ", text)
        if wrapped and wrapped[1] in _STANDING:
            return wrapped[1]
    return str(code) if str(code).isupper() else ""
