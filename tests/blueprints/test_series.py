"""`GET /api/v1/series` and the metrics of what is stored: on fakes for the shapes, on a real database for the truth."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from quart.typing import TestClientProtocol as Client

from app import create_app
from blueprints import series
from domain.errors import DatabaseUnavailableError
from domain.series import Series, Verdict
from domain.time_range import TimeRange
from domain.timeframe import HOUR_MS, MINUTE_MS, Timeframe
from plugins import PluginLoader
from services.bar_store import BarStore
from services.series_summary import MISSING, NativeBars, SeriesFilter, SeriesSummaries, StoredPart
from services.series_totals import SeriesTotals
from services.sessions import InMemorySessionRepository, SessionService
from tests.fakes import FakeServices
from tests.support.clock import ManualClock
from tests.support.house import House, make_house
from tests.support.market import START_MS, random_minutes
from tests.support.scripted import ScriptedPlugin

URL = "/api/v1/series"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "api.md"
SECTION = DOCS.read_text("utf-8").split("## `GET /api/v1/series`\n")[1].split("\n## ")[0]


def a_part(symbol: str, **more: Any) -> StoredPart:
    values = {
        "series": Series("test", "fake", symbol),
        "calendar": None,
        "range": TimeRange(START_MS, START_MS + HOUR_MS),
        "first_ms": START_MS,
        "last_ms": START_MS + 50 * MINUTE_MS,
        "bars": 40,
        "missing": {**dict.fromkeys(MISSING, 0), Verdict.NO_TRADES: 20},
        "lag_s": 9.5,
        "native": (NativeBars(Timeframe.D1, START_MS, START_MS),),
    }
    return StoredPart(**{**values, **more})


async def get(client: Client, status: int = 200, **query: Any) -> dict[str, Any]:
    response = await client.get(URL, query_string=query)
    answer: dict[str, Any] = json.loads(await response.get_data())
    assert response.status_code == status, answer
    return answer


async def test_a_stored_series_is_told_in_numbers(client: Client, services: FakeServices):
    services.summaries.parts = [a_part("A", calendar="XNYS")]
    assert await get(client) == {
        "series": [
            {
                "market": "test",
                "provider": "fake",
                "symbol": "A",
                "calendar": "XNYS",
                "start": START_MS,
                "end": START_MS + HOUR_MS,
                "first_bar": START_MS,
                "last_bar": START_MS + 50 * MINUTE_MS,
                "bars": 40,
                "missing": {
                    "no_trades": 20,
                    "unconfirmed_empty": 0,
                    "closed_session": 0,
                    "not_listed": 0,
                    "fetch_failed": 0,
                    "never_fetched": 0,
                },
                "lag_seconds": 9.5,
                "native": [{"timeframe": "1d", "first_bar": START_MS, "last_bar": START_MS}],
            }
        ],
        "next_page_token": None,
    }
    assert services.summaries.asked == [(SeriesFilter(), 100, None)]


async def test_a_series_without_any_minute_has_no_times(client: Client, services: FakeServices):
    empty = {"range": None, "first_ms": None, "last_ms": None, "lag_s": None, "bars": 0, "native": ()}
    services.summaries.parts = [a_part("A", **empty)]
    (found,) = (await get(client))["series"]
    assert [found[name] for name in ("start", "end", "first_bar", "last_bar", "lag_seconds")] == [None] * 5


async def test_the_filters_reach_the_store_as_they_are(client: Client, services: FakeServices):
    services.summaries.parts = [a_part("A/B+C")]
    await get(client, market="test", provider="fake", symbol="A/B+C", limit=1000)
    assert services.summaries.asked == [(SeriesFilter("test", "fake", "A/B+C"), 1000, None)]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
async def test_the_pages_hold_every_series_once(client: Client, services: FakeServices, limit: int):
    services.summaries.parts = [a_part(symbol) for symbol in "ABCDEF\u00e4"]
    found: list[str] = []
    query: dict[str, Any] = {"limit": limit, "market": "test"}
    while True:
        answer = await get(client, **query)
        found += [one["symbol"] for one in answer["series"]]
        if answer["next_page_token"] is None:
            break
        assert len(answer["series"]) == limit
        query["page_token"] = answer["next_page_token"]
    assert found == list("ABCDEF\u00e4")


async def test_a_token_is_good_for_its_own_question_only(client: Client, services: FakeServices):
    services.summaries.parts = [a_part("A"), a_part("B")]
    token = (await get(client, limit=1, market="test"))["next_page_token"]
    assert (await get(client, limit=5, market="test", page_token=token))["series"][0]["symbol"] == "B"
    for wrong in ({"market": "other"}, {}, {"market": "test", "symbol": "A"}):
        answer = await get(client, 400, limit=1, page_token=token, **wrong)
        assert (answer["code"], answer["parameter"]) == ("invalid_parameter", "page_token")


@pytest.mark.parametrize("token", ["x", "AAAA", "%", "MDAwMDAwMDAwMDAwMDAwMDAwMDA", "é" * 30])
async def test_a_token_that_was_made_up_is_refused(client: Client, token: str):
    assert (await get(client, 400, page_token=token))["parameter"] == "page_token"


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"market": ""}, "market"),
        ({"symbol": ["A", "B"]}, "symbol"),
        ({"symbols": "A"}, "symbols"),
        ({"timeframe": "1h"}, "timeframe"),
    ],
    ids=str,
)
async def test_a_wrong_parameter_is_named(client: Client, query: dict[str, Any], parameter: str):
    answer = await get(client, 400, **query)
    assert (answer["code"], answer["parameter"]) == ("invalid_parameter", parameter)


async def test_a_name_that_stands_for_nothing_is_told_from_one_of_which_nothing_is_stored(
    client: Client, services: FakeServices
):
    services.loader = PluginLoader({"demo": {}}, modules=["plugins.demo"], entry_points=list)  # type: ignore[assignment]
    services.loader.load()  # type: ignore[attr-defined]
    nothing = {"series": [], "next_page_token": None}
    assert await get(client) == await get(client, market="demo", provider="sim", symbol="X") == nothing
    assert (await get(client, 404, market="dome"))["code"] == "unknown_market"
    answer = await get(client, 404, market="demo", provider="sym")
    assert (answer["code"], "sim" in answer["detail"]) == ("unknown_provider", True)


async def test_stored_series_of_a_provider_that_is_gone_are_still_listed(client: Client, services: FakeServices):
    services.summaries.parts = [a_part("A", series=Series("test", "gone", "A"))]
    assert (await get(client, market="test", provider="gone"))["series"][0]["provider"] == "gone"


async def test_a_database_out_of_reach_is_an_error_of_its_own(client: Client, services: FakeServices):
    services.summaries.error = DatabaseUnavailableError("gone")
    assert (await get(client, 503))["code"] == "database_unavailable"


def test_every_parameter_is_described_and_no_other():
    rows = re.findall(r"^\| (`[^|]+) \|", SECTION, flags=re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} == set(series.NAMES)


def test_the_example_of_the_documentation_adds_up_and_has_every_member():
    (example,) = re.findall(r"```json\n(.*?)```", SECTION, flags=re.DOTALL)
    (told,) = json.loads(example)["series"]
    assert set(told) == set(series.SeriesOut.__struct_fields__)
    assert list(told["missing"]) == [verdict.value for verdict in MISSING]
    assert told["bars"] + sum(told["missing"].values()) == (told["end"] - told["start"]) // MINUTE_MS


class Real:
    """The application on real services and a real database."""

    def __init__(self, store: BarStore, clock: ManualClock) -> None:
        self.minutes = random_minutes(7, 600, holes=0.3)
        self.house: House = make_house(store, clock, ScriptedPlugin({"A/B": self.minutes, "C/D": self.minutes}))
        sessions = SessionService(InMemorySessionRepository(), clock=clock)
        self.summaries = SeriesSummaries(store, sessions, self.house.markets, clock)
        self.totals = SeriesTotals(self.summaries)
        services: Any = FakeServices()
        services.clock, services.store, services.database = clock, store, store.database
        services.markets, services.ohlcv = self.house.markets, self.house.ohlcv
        services.summaries, services.totals, services.backfills = self.summaries, self.totals, self.house.backfills
        self.client = create_app(services.config, services).test_client()

    async def metrics(self) -> dict[tuple[str, ...], float]:
        text = (await (await self.client.get("/metrics")).get_data()).decode()
        found = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return {(one.name, *(value for _, value in sorted(one.labels.items()))): one.value for one in found}


@pytest.fixture
def real(any_store: BarStore, clock: ManualClock) -> Real:
    return Real(any_store, clock)


async def test_what_is_listed_is_what_the_coverage_report_counts(real: Real, clock: ManualClock):
    for start in (START_MS, START_MS + 5 * HOUR_MS):
        await real.house.bars(start_ms=start, end_ms=start + 2 * HOUR_MS)
    (told,) = (await get(real.client, provider="scripted"))["series"]
    coverage = {"market": "test", "provider": "scripted", "symbol": "A/B", "start": told["start"], "end": told["end"]}
    report = json.loads(await (await real.client.get("/api/v1/coverage", query_string=coverage)).get_data())
    assert report["summary"] == {k: v for k, v in {"data": told["bars"], **told["missing"]}.items() if v}
    stored = [b.ts for b in real.minutes if (b.ts - START_MS) % (5 * HOUR_MS) < 2 * HOUR_MS]
    assert (told["first_bar"], told["last_bar"], told["bars"]) == (stored[0], stored[-1], len(stored))
    assert told["start"] == START_MS
    assert told["end"] == clock.now_ms() - MINUTE_MS  # The provider may still change the last minute.
    assert told["lag_seconds"] == (clock.now_ms() - stored[-1] - MINUTE_MS) / 1000


async def test_the_metrics_tell_of_what_is_stored_and_of_backfills(real: Real):
    before = await real.metrics()
    assert before["candlery_bars_written_total",] == 0
    assert ("candlery_series",) not in before
    await real.house.bars(start_ms=START_MS, end_ms=START_MS + HOUR_MS)
    await real.house.bars(symbol="C/D", start_ms=START_MS, end_ms=START_MS + HOUR_MS)
    await real.totals.refresh()
    found = await real.metrics()
    bars = 2 * sum(bar.ts < START_MS + HOUR_MS for bar in real.minutes)
    assert found["candlery_bars_written_total",] == bars
    assert found["candlery_bars_revised_total",] == 0
    assert found["candlery_series",] == 2
    ledger = {verdict: found["candlery_ledger_minutes", "test", "scripted", verdict.value] for verdict in Verdict}
    assert (ledger[Verdict.DATA], ledger[Verdict.UNCONFIRMED_EMPTY]) == (bars, 120 - bars)
    assert found["candlery_upstream_calls_total", "test", "scripted"] == len(real.house.plugin.calls) + 1
    assert found["candlery_backfill_chunks", "queued"] == 0
    assert found["candlery_backfill_chunks_finished_total", "done"] == 0
