"""The totals of all series: counted in turns of bounded length."""

from collections.abc import Sequence

from domain.series import Series, Verdict
from services.series_summary import MISSING, SeriesRow, StoredPart
from services.series_totals import SeriesTotals


class Counting:
    """Series that take a second each to count."""

    def __init__(self, series: int) -> None:
        self.rows = [SeriesRow(n, Series("m", "ab"[n % 2], f"S{n}"), None) for n in range(1, series + 1)]
        self.bars = 10
        self.counted: list[int] = []

    def monotonic(self) -> float:
        return float(len(self.counted))

    async def stored(self) -> int:
        return len(self.rows)

    async def numbered(self, after_id: int, limit: int) -> list[SeriesRow]:
        return [row for row in self.rows if row.id > after_id][:limit]

    async def sum_up(self, rows: Sequence[SeriesRow]) -> list[StoredPart]:
        self.counted += [row.id for row in rows]
        missing = {**dict.fromkeys(MISSING, 0), Verdict.NO_TRADES: 1}
        return [StoredPart(row.series, None, None, None, None, self.bars, missing, None, ()) for row in rows]


def totals_of(counting: Counting, *, pass_s: float) -> SeriesTotals:
    return SeriesTotals(counting, pass_s=pass_s, monotonic=counting.monotonic)  # type: ignore[arg-type]


async def test_one_pass_counts_every_series_once_where_time_allows() -> None:
    counting = Counting(12)
    totals = totals_of(counting, pass_s=60)
    assert (totals.series, dict(totals.minutes)) == (None, {})
    for passes in (1, 2):
        await totals.refresh()
        assert sorted(counting.counted) == sorted(list(range(1, 13)) * passes)
    assert totals.series == 12
    assert {key: minutes for key, minutes in totals.minutes.items() if minutes} == {
        ("m", "a", Verdict.DATA): 60,
        ("m", "a", Verdict.NO_TRADES): 6,
        ("m", "b", Verdict.DATA): 60,
        ("m", "b", Verdict.NO_TRADES): 6,
    }


async def test_a_pass_ends_in_time_and_the_next_goes_on_from_there() -> None:
    counting = Counting(12)
    totals = totals_of(counting, pass_s=4)
    seen = []
    for _ in range(3):
        await totals.refresh()
        seen.append(totals.minutes["m", "a", Verdict.DATA] + totals.minutes["m", "b", Verdict.DATA])
    assert counting.counted == [*range(1, 13), *range(1, 6)]
    assert seen == [50, 100, 120]


async def test_a_series_that_changed_is_counted_anew_in_its_turn() -> None:
    counting = Counting(3)
    totals = totals_of(counting, pass_s=60)
    await totals.refresh()
    counting.bars = 20
    await totals.refresh()
    assert totals.minutes["m", "b", Verdict.DATA] == 40


async def test_without_any_series_there_is_nothing_to_count() -> None:
    totals = totals_of(Counting(0), pass_s=60)
    await totals.refresh()
    assert (totals.series, dict(totals.minutes)) == (0, {})
