"""Prometheus metrics: HTTP traffic of this machine's web processes, and the fleet's gauges read at each scrape."""

import os
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Meter:
    """Counts requests. With PROMETHEUS_MULTIPROC_DIR set (gunicorn.conf.py does) all processes add up."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "aqr_http_requests", "HTTP requests", ["route", "method", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "aqr_http_request_seconds", "Time to answer", ["route"], buckets=_BUCKETS, registry=self._registry
        )
        self._queries = Counter(
            "aqr_queries", "Queries answered within their own request", ["tier", "cache"], registry=self._registry
        )

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        known = method if method in _METHODS else "other"  # whoever calls may invent methods, not time series
        self._requests.labels(route, known, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_query(self, tier: str, cache: str) -> None:
        self._queries.labels(tier, cache).inc()

    def expose(self, gauges: Iterable[tuple[str, str, dict[str, str], float]]) -> bytes:
        """The text format; `gauges` are (name, help, labels, value) of the moment."""
        families: dict[str, GaugeMetricFamily] = {}
        for name, text, labels, value in gauges:
            family = families.setdefault(name, GaugeMetricFamily(name, text, labels=list(labels)))
            family.add_metric(list(labels.values()), value)
        fleet = CollectorRegistry()
        fleet.register(_Collected(list(families.values())))
        return generate_latest(self._traffic()) + generate_latest(fleet)

    def _traffic(self) -> CollectorRegistry:
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return self._registry
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone)
        return everyone


class _Collected(Collector):
    """Families that are ready: values read at this scrape belong to no process."""

    def __init__(self, families: list[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> list[GaugeMetricFamily]:
        return self._families
