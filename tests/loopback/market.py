"""Random minutes for a loopback exchange."""

from domain.bar import Bar
from tests.support import market


def random_minutes(seed: int, start_ms: int, count: int, hole_rate: float) -> list[Bar]:
    """Minutes of `count`, some of them missing; volumes are multiples of 1/1024, so that their sums are exact."""
    return market.random_minutes(seed, count, start_ms=start_ms, holes=hole_rate)
