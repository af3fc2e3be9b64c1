"""Metrics of live series: which upstreams are followed, how they fare, and what processes tell each other."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_BROADCAST = {
    "published": "Messages about live bars told by this process",
    "received": "Messages of other processes taken in",
    "lost": "Messages that other processes were not told; they read the database",
    "rejected": "What came in and was no message",
    "errors": "Failures of the way to other processes",
}


def live(services: Any) -> Iterable[Metric]:
    """The families, from the services of the process."""
    yield from _series(services.subscriptions)
    yield from _broadcast(services.broadcast)


def _series(subscriptions: Any) -> Iterable[Metric]:
    states: Counter[tuple[str, str, str]] = Counter()
    owned = 0
    for view in subscriptions.overview():
        states[view.series.market, view.series.provider, view.state.value] += 1
    owned = len(subscriptions.followers.owned)
    family = GaugeMetricFamily(
        "candlery_live_series",
        "Series with clients here, or followed for those of others, by state of their upstream",
        labels=("market", "provider", "state"),
    )
    for labels, count in states.items():
        family.add_metric(labels, count)
    yield family
    yield GaugeMetricFamily("candlery_live_upstreams", "Upstreams that this process follows", value=owned)
    for name, words in (("reconnects", "Upstreams connected again"), ("heals", "Holes of upstreams that were fetched")):
        count = getattr(subscriptions.followers, name)
        yield CounterMetricFamily(f"candlery_live_{name}", words, value=count)


def _broadcast(broadcast: Any) -> Iterable[Metric]:
    connected = GaugeMetricFamily("candlery_broadcast_connected", "Whether messages of other processes come in")
    connected.add_metric((), float(broadcast.connected))
    yield connected
    for name, words in _BROADCAST.items():
        yield CounterMetricFamily(f"candlery_broadcast_{name}", words, value=getattr(broadcast, name))
