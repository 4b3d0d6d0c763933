"""The usage stream: everything that happened and is not yet in SQL, read by a consumer group of recorders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redis.exceptions import ResponseError

from storage.connection import RedisClient, stream_entries
from storage.name import USAGE

GROUP = "recorder"
POISON = "aqr:usage:poison"
ABANDONED_AFTER_MS = 30_000
FORGOTTEN_AFTER_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One stream entry with its Redis id."""

    id: bytes
    fields: Mapping[str, bytes]


class UsageStream:
    """One recorder's view of the stream; it sets at most `max_poison` entries aside. Redis errors pass through."""

    def __init__(self, client: RedisClient, consumer: str, max_poison: int = 10_000) -> None:
        self._client = client
        self._consumer = consumer
        self._max_poison = max_poison

    def open(self) -> None:
        """Make the consumer group where it is missing (first start, or a Redis that was emptied)."""
        try:
            self._client.xgroup_create(USAGE, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

        self._forget_dead_consumers()

    def _forget_dead_consumers(self) -> None:
        for consumer in self._client.xinfo_consumers(USAGE, GROUP):
            if consumer["pending"] == 0 and consumer["idle"] > FORGOTTEN_AFTER_MS:
                self._client.xgroup_delconsumer(USAGE, GROUP, consumer["name"])

    def read(self, at_most: int, block_ms: int) -> list[Entry]:
        """The next new entries, waiting up to `block_ms` for the first."""
        found = self._client.xreadgroup(GROUP, self._consumer, {USAGE: ">"}, count=at_most, block=block_ms)
        return entries_of(stream_entries(found))

    def take_over(self, at_most: int) -> list[Entry]:
        """Entries that a recorder (this one before a restart, or another) read and never acknowledged."""
        reply = self._client.xautoclaim(USAGE, GROUP, self._consumer, ABANDONED_AFTER_MS, "0-0", count=at_most)
        return entries_of(reply[1])

    def acknowledge(self, entries: list[Entry]) -> None:
        """Forget entries that are safe in SQL."""
        ids = [entry.id for entry in entries]
        with self._client.pipeline() as pipe:
            pipe.xack(USAGE, GROUP, *ids)
            pipe.xdel(USAGE, *ids)
            pipe.execute()

    def set_aside(self, entry: Entry, reason: str) -> None:
        """Keep an entry that can never be recorded for a person to look at, and go on."""
        self._client.xadd(POISON, {**entry.fields, "reason": reason}, maxlen=self._max_poison, approximate=False)
        self.acknowledge([entry])

    def waiting(self) -> int:
        """Entries not yet recorded."""
        return int(self._client.xlen(USAGE))


def entries_of(found: Sequence[tuple[bytes, Mapping[bytes, bytes] | None]]) -> list[Entry]:
    return [
        Entry(entry_id, {name.decode(): value for name, value in fields.items()})
        for entry_id, fields in found
        if fields is not None
    ]
