"""Who is alive: workers per tier, the recorder's state, and the one leader of a role."""

from collections.abc import Iterable
from typing import Any

import orjson

from storage.connection import RedisClient, load_script
from storage.ledger import PREFIX

PRESENCE_TTL_MS = 15_000
RECORDERS = PREFIX + "recorders"
_WORST_FIRST = ("down", "starting", "ok", "standby", "off")


class Presence:
    """Signs of life in Redis, each good for 15 s. Redis errors pass through."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._lead = load_script(client, "lead")
        self._resign = load_script(client, "resign")

    def show_worker(self, name: str, tiers: Iterable[str], slots: int) -> None:
        """Say that the worker `name` serves these tiers with so many calls at a time."""
        with self._client.pipeline(transaction=False) as pipe:
            for tier in tiers:
                pipe.set(f"{PREFIX}worker:{tier}:{name}", slots, px=PRESENCE_TTL_MS)
                pipe.sadd(f"{PREFIX}workers:{tier}", name)
            pipe.execute()

    def hide_worker(self, name: str, tiers: Iterable[str]) -> None:
        """Take the worker off the list, at its orderly stop."""
        for tier in tiers:
            self._client.delete(f"{PREFIX}worker:{tier}:{name}")
            self._client.srem(f"{PREFIX}workers:{tier}", name)

    def workers(self, tier: str) -> dict[str, int]:
        """The tier's living workers and the slots of each; those silent too long are forgotten."""
        names = sorted(name.decode() for name in self._client.smembers(f"{PREFIX}workers:{tier}"))
        if not names:
            return {}
        alive = self._client.mget([f"{PREFIX}worker:{tier}:{name}" for name in names])
        silent = [name for name, sign in zip(names, alive, strict=True) if sign is None]
        if silent:
            self._client.srem(f"{PREFIX}workers:{tier}", *silent)
        return {name: int(slots) for name, slots in zip(names, alive, strict=True) if slots is not None}

    def lead(self, role: str, token: str, ttl_ms: int) -> bool:
        """Become or stay the leader of a role for `ttl_ms`."""
        return bool(self._lead(keys=[f"{PREFIX}leader:{role}"], args=[token, ttl_ms]))

    def resign(self, role: str, token: str) -> None:
        """Let another one lead at once."""
        self._resign(keys=[f"{PREFIX}leader:{role}"], args=[token])

    def report_recorder(self, name: str, state: dict[str, Any]) -> None:
        """Say how the recorder `name` is: `database`, `kafka`, `waiting_events`."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.set(f"{PREFIX}recorder:{name}", orjson.dumps(state), px=PRESENCE_TTL_MS)
            pipe.sadd(RECORDERS, name)
            pipe.execute()

    def recorder(self) -> dict[str, Any] | None:
        """What the recorders say together: the worst of each part; None where all are silent.

        A relay that stands by says nothing of Kafka while another one leads.
        """
        names = sorted(name.decode() for name in self._client.smembers(RECORDERS))
        said = self._client.mget([f"{PREFIX}recorder:{name}" for name in names]) if names else []
        silent = [name for name, report in zip(names, said, strict=True) if report is None]
        if silent:
            self._client.srem(RECORDERS, *silent)
        reports = [orjson.loads(report) for report in said if report]
        if not reports:
            return None
        worst = {part: min((r[part] for r in reports), key=_WORST_FIRST.index) for part in ("database", "kafka")}
        return {**worst, "waiting_events": max(r["waiting_events"] for r in reports)}
