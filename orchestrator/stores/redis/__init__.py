"""Carrel's store on one Redis or Valkey primary: `Server` (the line), `RedisExecutions`, `RedisHistory`, `prepare`."""

from orchestrator.stores.redis.connection import Server
from orchestrator.stores.redis.executions import RedisExecutions
from orchestrator.stores.redis.history import RedisHistory
from orchestrator.stores.redis.keys import Keys

__all__ = ["Keys", "RedisExecutions", "RedisHistory", "Server"]
