"""Latencies as logarithmic buckets: percentiles by GROUP BY, alike on SQLite and PostgreSQL, and addable later."""

import math
from collections.abc import Mapping

GROWTH = 1.05  # each bucket is 5 % wider than the one before, so a percentile is at most 5 % too high


def bucket_of(latency_ms: float) -> int:
    """Index of the bucket that holds `latency_ms`."""
    return math.ceil(math.log(max(latency_ms, 0.01), GROWTH))


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """Upper bound in ms of the bucket in which the given share (0-1) of all latencies is reached; None if empty."""
    total = sum(counts.values())
    reached = 0
    for bucket in sorted(counts):
        reached += counts[bucket]
        if reached >= share * total:
            return round(GROWTH**bucket, 2)
    return None
