"""The client library: `Client` and `AsyncClient`, two thin skins over one core that knows no network.

    with Client() as client:  # this machine's server, or the one that CARREL_URL or a profile names
        execution = client.submit(task="echo hello; read name; echo hello $name")
        execution.send("Ada")
        for event in execution.events():
            print(event.seq, event.type, event.body)
        print(execution.wait().outcome)

| file | room |
|---|---|
| `exchange` | one HTTP exchange as data; the steps the core asks its skin for |
| `requests` `snapshot_requests` `answers` | every call of the API as a Request; what its answer means |
| `spelling` | path, body, preference and key of a request |
| `calls` `waiting` `snapshotting` `following` | the core: retries, cursors, endings; generators of steps |
| `executing` `downloading` `changes` | the same, of one command, one file, and what changes in a directory |
| `sse` `patience` `address` `uploads` | decoder, backoff, where a server is, local content |
| `transport` | carries out one step with httpx; decides nothing |
| `sync` `aio` `sync_files` `aio_files` | the two skins |
| `channel` `sockets` | WS …/channel: its core, and its two skins |
"""

from orchestrator.client.aio import AsyncClient, AsyncExecution
from orchestrator.client.following import Batch
from orchestrator.client.patience import FOR_EVER, Patience
from orchestrator.client.sync import Client, Execution

__all__ = ["FOR_EVER", "AsyncClient", "AsyncExecution", "Batch", "Client", "Execution", "Patience"]
