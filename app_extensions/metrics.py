"""Metrics for Prometheus, in a registry of the application's own, and `GET /metrics`."""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector
from quart import Quart, Response, request

from app_extensions.request_context import BEGAN
from blueprints.answers import scope_of
from blueprints.context import EXTENSION, STREAM
from blueprints.params import Params
from blueprints.stream_hub import StreamHub
from services.histogram import Histogram

_LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
_UPSTREAM = {
    "calls": "Calls made to providers",
    "retries": "Calls made again after a passing fault",
    "failures": "Calls given up",
}
#: Shown with 0 where there is no such chunk, so that a graph falls to it and does not end.
_CHUNK_STATES = ("queued", "running", "done", "failed", "cancelled")
#: How long the loop's turn is waited for; the lag is what it takes beyond that.
_LAG_WAIT_S = 0.1


class HttpMetrics(Collector):
    """Counts requests, and measures how late the event loop runs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the meters."""
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._latencies: dict[str, Histogram] = {}
        registry.register(self)
        self._lag = Gauge("candlery_event_loop_lag_seconds", "How late the event loop runs", registry=registry)
        self._build = Gauge("candlery_build_info", "Versions", ("version", "python"), registry=registry)
        self._build.labels(_version(), sys.version.split()[0]).set(1)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request was answered."""
        self._requests[method if method in _METHODS else "other", route, status] += 1
        latencies = self._latencies.get(route)
        if latencies is None:
            latencies = self._latencies[route] = Histogram(_LATENCIES_S)
        latencies.observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """What was counted."""
        requests = CounterMetricFamily(
            "candlery_http_requests", "Requests answered", labels=("method", "route", "status")
        )
        for (method, route, status), number in self._requests.items():
            requests.add_metric((method, route, str(status)), number)
        yield requests
        latency = HistogramMetricFamily(
            "candlery_http_request_seconds", "Time from a request to its answer's first byte", labels=("route",)
        )
        for route, one in self._latencies.items():
            latency.add_metric((route,), one.buckets(), sum_value=one.sum_s)
        yield latency

    async def measure_lag(self) -> None:
        """Wait a moment and note how much longer it took."""
        began = perf_counter()
        await asyncio.sleep(_LAG_WAIT_S)
        self._lag.set(max(0.0, perf_counter() - began - _LAG_WAIT_S))


class ServiceCollector(Collector):
    """Reads the services' own counters whenever it is asked."""

    def __init__(self, app: Quart) -> None:
        """Take the application that holds the services once it serves."""
        self._app = app

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is depends on the services, which come later."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The metrics of now."""
        yield from _stream(self._app.extensions[STREAM])
        services: Any = self._app.extensions.get(EXTENSION)
        if services is None:
            return
        yield from _upstream(services)
        yield from _stored(services)
        yield from _backfills(services)
        yield from _cache(services)
        yield from _pool(services)


def install(app: Quart) -> HttpMetrics:
    """Count the application's requests, and add `GET /metrics`."""
    registry = CollectorRegistry()
    metrics = HttpMetrics(registry)
    registry.register(ServiceCollector(app))
    ProcessCollector(registry=registry)

    @app.after_request
    async def count(response: Response) -> Response:
        rule = request.url_rule
        route = rule.rule if rule is not None else "unmatched"
        metrics.count(request.method, route, response.status_code, perf_counter() - scope_of(request)[BEGAN])
        return response

    @app.get("/metrics")
    async def get_metrics() -> Response:
        Params(request.query_string, allowed=())
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    return metrics


def _upstream(services: Any) -> Iterable[Metric]:
    use = services.markets.upstream_use()
    for field, words in _UPSTREAM.items():
        family = CounterMetricFamily(f"candlery_upstream_{field}", words, labels=("market", "provider"))
        for owner, counts in use.items():
            family.add_metric(owner, getattr(counts, field))
        yield family
    waits = CounterMetricFamily(
        "candlery_upstream_waits", "Calls that waited for the rate budget", labels=("provider",)
    )
    seconds = CounterMetricFamily("candlery_upstream_wait_seconds", "Seconds that they waited", labels=("provider",))
    for provider, (count, waited_s) in services.markets.upstream_waits().items():
        waits.add_metric((provider,), count)
        seconds.add_metric((provider,), waited_s)
    yield waits
    yield seconds


def _stored(services: Any) -> Iterable[Metric]:
    store, totals = services.store, services.totals
    yield CounterMetricFamily("candlery_bars_written", "Bars inserted or altered", value=store.bars_written)
    yield CounterMetricFamily("candlery_bars_revised", "Stored bars altered", value=store.bars_revised)
    if totals.series is not None:
        yield GaugeMetricFamily("candlery_series", "Stored series", value=totals.series)
    minutes = GaugeMetricFamily(
        "candlery_ledger_minutes", "Minutes of stored series by verdict", labels=("market", "provider", "verdict")
    )
    for (market, provider, verdict), count in totals.minutes.items():
        minutes.add_metric((market, provider, verdict.value), count)
    yield minutes


def _backfills(services: Any) -> Iterable[Metric]:
    chunks = GaugeMetricFamily("candlery_backfill_chunks", "Chunks of jobs that are not over", labels=("state",))
    for state in _CHUNK_STATES:
        chunks.add_metric((state,), services.backfills.chunk_counts.get(state, 0))
    yield chunks
    finished = CounterMetricFamily(
        "candlery_backfill_chunks_finished", "Chunks that this process finished", labels=("result",)
    )
    for result, count in services.backfills.chunks_finished.items():
        finished.add_metric((result,), count)
    yield finished


def _stream(hub: StreamHub) -> Iterable[Metric]:
    yield GaugeMetricFamily("candlery_stream_clients", "WebSocket clients", value=len(hub.clients))
    yield GaugeMetricFamily("candlery_stream_subscriptions", "Their subscriptions", value=hub.subscriptions)
    yield CounterMetricFamily("candlery_stream_messages_sent", "Messages sent to them", value=hub.sent)
    yield CounterMetricFamily(
        "candlery_stream_forming_conflated", "Forming bars left out for a newer one", value=hub.conflated
    )
    gone = CounterMetricFamily("candlery_stream_disconnects", "Clients that left or had to", labels=("reason",))
    for leave, count in hub.disconnects.items():
        gone.add_metric((leave.label,), count)
    yield gone
    lag = HistogramMetricFamily("candlery_stream_bar_lag_seconds", "From the venue's clock to a client's socket")
    lag.add_metric((), hub.lags.buckets(), sum_value=hub.lags.sum_s)
    yield lag


def _cache(services: Any) -> Iterable[Metric]:
    stats = services.cache.stats()
    for name in ("hits", "misses", "rejected", "errors"):
        yield CounterMetricFamily(f"candlery_cache_{name}", f"Cache {name}", value=getattr(stats, name))
    for name in ("entries", "bytes"):
        if (value := getattr(stats, name)) is not None:
            yield GaugeMetricFamily(f"candlery_cache_{name}", f"Cache {name} held now", value=value)


def _pool(services: Any) -> Iterable[Metric]:
    in_use, size = services.database.usage
    yield GaugeMetricFamily("candlery_db_connections", "Open database connections", value=size)
    yield GaugeMetricFamily("candlery_db_connections_in_use", "Database connections in use", value=in_use)


def _version() -> str:
    try:
        return version("candlery")
    except PackageNotFoundError:
        return "unknown"
