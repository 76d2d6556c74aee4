"""Carrel's store on one Redis or Valkey primary: `Server` (the line), `RedisExecutions`, `RedisHistory`, `RedisCalls`,
`RedisIntents`, `RedisSnapshots`, `RedisStreams` (generic streams), `RedisTokens`, `RedisDump` and `RedisLoad`
(backups), `prepare`."""

from orchestrator.stores.redis.calls import RedisCalls
from orchestrator.stores.redis.connection import Server
from orchestrator.stores.redis.dump import RedisDump
from orchestrator.stores.redis.executions import RedisExecutions
from orchestrator.stores.redis.history import RedisHistory
from orchestrator.stores.redis.intents import RedisIntents
from orchestrator.stores.redis.keys import Keys
from orchestrator.stores.redis.load import RedisLoad
from orchestrator.stores.redis.schema import prepare
from orchestrator.stores.redis.snapshots import RedisSnapshots
from orchestrator.stores.redis.streams import RedisStreams
from orchestrator.stores.redis.tokens import RedisTokens

__all__ = [
    "Keys",
    "RedisCalls",
    "RedisDump",
    "RedisExecutions",
    "RedisHistory",
    "RedisIntents",
    "RedisLoad",
    "RedisSnapshots",
    "RedisStreams",
    "RedisTokens",
    "Server",
    "prepare",
]
