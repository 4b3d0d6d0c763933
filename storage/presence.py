"""Who is alive: workers per tier, the recorder's state, and the one leader of a role."""

from collections.abc import Iterable
from typing import Any

import orjson

from storage.connection import RedisClient, load_script
from storage.name import PREFIX

PRESENCE_TTL_MS = 15_000
_WORST_FIRST = ("down", "starting", "ok", "standby", "off")


class Presence:
    """Signs of life in Redis, each good for 15 s. Redis errors pass through."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._lead = load_script(client, "lead")
        self._resign = load_script(client, "resign")
        self._sign = load_script(client, "show")

    def show_worker(self, name: str, tiers: Iterable[str], slots: int) -> None:
        """Say that the worker `name` serves these tiers with so many calls at a time."""
        for tier in tiers:
            self._show(f"worker:{tier}", name, slots)

    def hide_worker(self, name: str, tiers: Iterable[str]) -> None:
        """Take the worker off the list, at its orderly stop."""
        for tier in tiers:
            self._client.delete(f"{PREFIX}worker:{tier}:{name}")
            self._client.srem(f"{PREFIX}names:worker:{tier}", name)

    def workers(self, tier: str) -> dict[str, int]:
        """The tier's living workers and the slots of each."""
        return {name: int(slots) for name, slots in self._alive(f"worker:{tier}").items()}

    def lead(self, role: str, token: str, ttl_ms: int) -> bool:
        """Become or stay the leader of a role for `ttl_ms`."""
        return bool(self._lead(keys=[f"{PREFIX}leader:{role}"], args=[token, ttl_ms]))

    def resign(self, role: str, token: str) -> None:
        """Let another one lead at once."""
        self._resign(keys=[f"{PREFIX}leader:{role}"], args=[token])

    def report_recorder(self, name: str, state: dict[str, Any]) -> None:
        """Say how the recorder `name` is: `database`, `kafka`, `waiting_events`."""
        self._show("recorder", name, orjson.dumps(state))

    def recorder(self) -> dict[str, Any] | None:
        """What the recorders say together: the worst of each part; None where all are silent.

        A relay that stands by says nothing of Kafka while another one leads.
        """
        reports = [orjson.loads(report) for report in self._alive("recorder").values()]
        if not reports:
            return None
        worst = {part: min((r[part] for r in reports), key=_WORST_FIRST.index) for part in ("database", "kafka")}
        return {**worst, "waiting_events": max(r["waiting_events"] for r in reports)}

    def _show(self, kind: str, name: str, sign: bytes | int) -> None:
        keys = [f"{PREFIX}{kind}:{name}", f"{PREFIX}names:{kind}"]
        self._sign(keys=keys, args=[name, sign, PRESENCE_TTL_MS])

    def _alive(self, kind: str) -> dict[str, bytes]:
        """The last sign of each; those silent too long are forgotten."""
        names = sorted(name.decode() for name in self._client.smembers(f"{PREFIX}names:{kind}"))
        signs = self._client.mget([f"{PREFIX}{kind}:{name}" for name in names]) if names else []
        silent = [name for name, sign in zip(names, signs, strict=True) if sign is None]
        if silent:
            self._client.srem(f"{PREFIX}names:{kind}", *silent)
        return {name: sign for name, sign in zip(names, signs, strict=True) if sign is not None}
