"""Sends real queries through a running service and prints what came of them: tiers, hits, latencies, failures.

`python -m bench.replay queries.txt` reads one query a line (plain text, or JSON with a `query`), `-` standard input.
"""

import argparse
import gzip
import json
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

TIMEOUT_S = 90
PROGRESS_EVERY = 50

_session = threading.local()


@dataclass(frozen=True)
class Reply:
    """One answer as the client saw it. `ms` is from sending to the last byte."""

    status: int
    cache: str
    tier: str
    ms: float
    code: str | None


def read_queries(source: str, limit: int) -> Iterator[str]:
    lines = sys.stdin if source == "-" else _open(Path(source))
    for _, line in zip(range(limit), (line.strip() for line in lines if line.strip()), strict=False):
        yield json.loads(line)["query"] if line.startswith("{") else line


def _open(path: Path) -> Any:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def ask(url: str, query: str, options: dict[str, Any]) -> Reply:
    session = _session.__dict__.setdefault("session", requests.Session())
    started = time.perf_counter()
    try:
        response = session.post(f"{url}/api/v1/query", json={"query": query, **options}, timeout=TIMEOUT_S)
    except requests.RequestException as error:
        return Reply(0, "-", "-", (time.perf_counter() - started) * 1000, type(error).__name__)
    body = response.json()
    tier = body.get("complexity") or body.get("tier") or "-"
    ms = (time.perf_counter() - started) * 1000
    return Reply(response.status_code, response.headers.get("X-Cache", "-"), tier, ms, body.get("code"))


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def report(replies: list[Reply], seconds: float) -> str:
    lines = [f"{len(replies)} queries in {seconds:.1f} s ({len(replies) / seconds:.1f}/s)"]
    for title, counts in (
        ("status", Counter(str(r.status) for r in replies)),
        ("tier", Counter(r.tier for r in replies)),
        ("X-Cache", Counter(r.cache for r in replies)),
        ("problems", Counter(r.code for r in replies if r.code)),
    ):
        lines.append(f"{title:<9} " + (", ".join(f"{name} {n}" for name, n in counts.most_common()) or "none"))
    groups: dict[str, list[float]] = defaultdict(list)
    for reply in replies:
        if reply.status == 200:
            groups["hit" if reply.cache == "HIT" else reply.tier].append(reply.ms)
    for name, ms in sorted(groups.items()):
        shares = "  ".join(f"p{int(s * 100)} {percentile(ms, s):8.1f}" for s in (0.5, 0.95, 0.99))
        lines.append(f"ms {name:<9} n {len(ms):5}  {shares}  max {max(ms):8.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="file of queries, .gz too, or -")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--limit", type=int, default=200, help="queries at most (200)")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at the same time (4)")
    parser.add_argument("--max-tokens", type=int, help="cap on each answer")
    asked = parser.parse_args()
    options = {"max_tokens": asked.max_tokens} if asked.max_tokens else {}
    replies: list[Reply] = []
    started = time.perf_counter()
    with ThreadPoolExecutor(asked.concurrency) as pool:
        for reply in pool.map(lambda q: ask(asked.url, q, options), read_queries(asked.source, asked.limit)):
            replies.append(reply)
            if len(replies) % PROGRESS_EVERY == 0:
                sys.stderr.write(f"{len(replies)} answered, {time.perf_counter() - started:.0f} s\n")
    sys.stdout.write(report(replies, time.perf_counter() - started) + "\n")


if __name__ == "__main__":
    main()
