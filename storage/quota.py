"""What an API key may use, and what one job may cost it at most. Counted and held in `lua/spend.lua`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from storage.connection import RedisClient
from storage.name import spend_key

if TYPE_CHECKING:
    from storage.api_key import KeyLimits  # at run time SQLAlchemy would come with it into every worker

NANO = 1_000_000_000  # money is counted in whole nano-USD: sums of floats would drift


@dataclass(frozen=True, slots=True)
class Quota:
    """A key's limits, and what is held for one job until its end: `hold_usd` and `hold_tokens` are upper bounds."""

    key_id: str
    limits: "KeyLimits"
    hold_usd: float
    hold_tokens: int

    def encode(self) -> bytes:
        fields: dict[str, Any] = {
            "key": self.key_id,
            "open": self.limits.max_open_jobs,
            "tokens": self.limits.tokens_per_day,
            "day": self.limits.budget_usd_per_day,
            "month": self.limits.budget_usd_per_month,
            "hold_usd": self.hold_usd,
            "hold_tokens": self.hold_tokens,
        }
        for money in ("day", "month", "hold_usd"):
            fields[money] = None if fields[money] is None else nano(fields[money])
        return orjson.dumps({name: value for name, value in fields.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Spending:
    """What a key has used today and this month, and what its open jobs hold. Money in USD."""

    usd_today: float
    usd_this_month: float
    usd_held: float
    tokens_today: int


def nano(usd: float) -> int:
    return round(usd * NANO)


def spending(client: RedisClient, key_id: str) -> Spending:
    """What the key has used; days and months that are over count as nothing only once it is used again."""
    fields = {name.decode(): int(value) for name, value in client.hgetall(spend_key(key_id)).items()}
    day, month, held = (fields.get(name, 0) / NANO for name in ("day_usd", "month_usd", "held_usd"))
    return Spending(day, month, held, fields.get("day_tokens", 0))
