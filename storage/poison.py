"""Entries that could not be recorded: kept aside for a person to look at, record after all, or drop."""

from collections.abc import Iterator

from storage.connection import RedisClient
from storage.name import USAGE
from storage.usage import POISON, Entry, entries_of

PAGE = 500


class Poison:
    """The entries set aside, the oldest first. Redis errors pass through."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def entries(self) -> Iterator[Entry]:
        """Each with its `reason` among the fields."""
        after = "-"
        while page := entries_of(self._client.xrange(POISON, min=after, count=PAGE)):
            yield from page
            after = f"({page[-1].id.decode()}"

    def replay(self, entry: Entry) -> None:
        """Give it to the recorders once more; where it still does not fit, it comes back."""
        fields = {name: value for name, value in entry.fields.items() if name != "reason"}
        with self._client.pipeline() as pipe:
            pipe.xdel(POISON, entry.id)
            pipe.xadd(USAGE, fields)
            pipe.execute()

    def drop(self, entry: Entry) -> None:
        self._client.xdel(POISON, entry.id)

    def forget(self, before_ms: int) -> int:
        """Drop what was set aside before that Unix time: it may hold texts. Returns how many entries."""
        return int(self._client.xtrim(POISON, minid=f"{before_ms}-0", approximate=False))
