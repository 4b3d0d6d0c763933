"""Redis clients for our three ways of using it, and the loader of the Lua scripts."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

from redis import Redis
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

# redis-py's stubs cannot say that our replies are bytes (all are `bytes | str`), so its clients go untyped by name.
RedisClient: TypeAlias = Any
Command: TypeAlias = tuple[Any, ...]  # a Redis command and its arguments

HOT_TIMEOUT_S = 0.25
PATIENT_TIMEOUT_S = 5.0

# What a full Redis (`noeviction`) may refuse. All other scripts run on beyond `maxmemory`, so that accepted jobs can
# be claimed, kept, ended and recorded; the bounds of queues and streams keep that little.
REFUSED_WHEN_FULL = frozenset({"accept", "replay"})


def hot_client(url: str) -> RedisClient:
    """For requests: gives up in 250 ms, because a query is better answered without Redis than late."""
    return _client(url, HOT_TIMEOUT_S)


def patient_client(url: str) -> RedisClient:
    """For workers and the recorder, which have nothing better to do than wait."""
    return _client(url, PATIENT_TIMEOUT_S)


def blocking_client(url: str, block_s: float) -> RedisClient:
    """For XREAD BLOCK: the socket must outwait the block (redis-py 8 would otherwise time out first)."""
    return _client(url, block_s + PATIENT_TIMEOUT_S)


def _client(url: str, timeout_s: float) -> RedisClient:
    # One retry on a connection that died while it lay in the pool (Redis restarted), none on a time-out.
    # redis-py 8 would by default retry ten times with back-off: 4 s for a refused connection.
    client = Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=min(timeout_s, 2.0),
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        max_connections=512,
        health_check_interval=30,
    )
    return client


def load_script(client: RedisClient, name: str, *shared: str) -> Script:
    """The script `lua/<name>.lua` behind the prelude and other `shared` sources, ready to be called by its hash.

    Needs Redis 7 or later.
    """
    flags = "" if name in REFUSED_WHEN_FULL else "#!lua flags=allow-oom\n"
    script: Script = client.register_script(flags + "".join(map(_source, ("prelude", *shared, name))))
    return script


def script_command(script: Script, keys: Sequence[Any], args: Sequence[Any]) -> Command:
    """The command that runs a loaded script, for connections that are not redis-py's."""
    return ("EVALSHA", script.sha, len(keys), *keys, *args)


def server_ms(client: RedisClient) -> int:
    seconds, micros = client.time()
    return int(seconds * 1000 + micros // 1000)


def stream_entries(reply: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries in the reply of XREAD or XREADGROUP on one stream, which RESP3 nests deeper than RESP2."""
    if not reply:
        return []
    [(_, entries)] = reply.items() if isinstance(reply, dict) else reply
    return entries[0] if entries and isinstance(entries[0], list) else entries


@cache
def _source(name: str) -> str:
    return files("storage").joinpath("lua", f"{name}.lua").read_text("utf-8")
