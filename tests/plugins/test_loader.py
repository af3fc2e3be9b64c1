import importlib.metadata
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web

from domain.errors import UnknownMarketError, UnknownProviderError
from domain.time_range import RangeSet, TimeRange
from domain.timeframe import Timeframe
from plugins import ENTRY_POINT_GROUP, PluginLoader
from plugins.alpaca import AlpacaPlugin
from plugins.base import Capabilities, MarketPlugin, Page, PluginConfig, ProviderInfo, SymbolInfo
from plugins.demo import DemoPlugin


class Announced(NamedTuple):
    """An entry point whose class is made by a function."""

    name: str
    load: Callable[[], object]
    value: str = "somewhere:Plugin"


class Complete(MarketPlugin):
    """Other classes here are this one with a fault."""

    @classmethod
    def get_plugin_key(cls) -> str:
        return "complete"

    @classmethod
    def get_supported_markets(cls) -> Sequence[str]:
        return ("forex", "metals")

    @classmethod
    def list_configurable_providers(cls, options: Mapping[str, object]) -> Sequence[ProviderInfo]:
        return (ProviderInfo("mint", f"Mint {options.get('place', '')}"),)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(timeframes=(Timeframe.M1,), bars_per_call=10)

    async def fetch_symbols(self) -> Mapping[str, SymbolInfo]:
        return {"EUR/USD": SymbolInfo("EUR/USD")}

    async def fetch_page(self, symbol: str, timeframe: Timeframe, wanted: TimeRange) -> Page:
        return Page((), RangeSet())


def with_answer(method: str, answer: Callable[[], object]) -> type[MarketPlugin]:
    """The complete plugin, but for what one of its class methods does."""
    return type("Faulty", (Complete,), {method: classmethod(lambda cls, *_: answer())})


def failing(exc: BaseException) -> Callable[[], object]:
    def fail() -> object:
        raise exc

    return fail


def loaded(*found: object, options: Mapping[str, Mapping[str, object]] | None = None) -> PluginLoader:
    """A loader to which these are announced, beside the plugins of the house."""
    announced = [Announced(f"plugin {n}", lambda one=one: one) for n, one in enumerate(found)]
    loader = PluginLoader(options or {}, modules=["plugins.alpaca", "plugins.demo"], entry_points=lambda: announced)
    loader.load()
    return loader


def test_the_plugins_of_the_house_are_found_without_a_problem():
    loader = PluginLoader({}, entry_points=lambda: ())
    assert list(loader.load()) == []
    assert {"demo", "stocks", "crypto"} <= set(loader.markets())
    assert loader.find("demo", "sim") is DemoPlugin
    assert loader.find("stocks", "alpaca") is AlpacaPlugin
    assert loader.find("crypto", "alpaca") is AlpacaPlugin


def test_an_announced_plugin_serves_its_markets_with_its_own_options():
    loader = loaded(Complete, options={"complete": {"place": "in Bern"}, "demo": {"place": "nowhere"}})
    assert loader.problems == []
    assert loader.markets() == ("crypto", "demo", "forex", "metals", "stocks")
    assert loader.providers("metals") == [(Complete, ProviderInfo("mint", "Mint in Bern"))]
    assert loader.find("forex", "mint") is Complete


def test_installed_packages_are_searched_for_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    info = tmp_path / "candlery_mint-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: candlery-mint\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\nmint = candlery_mint_plugin:Mint\n")
    code = (
        "from plugins.demo import DemoPlugin\n"
        "class Mint(DemoPlugin):\n"
        "    @classmethod\n"
        "    def get_plugin_key(cls): return 'mint'\n"
        "    @classmethod\n"
        "    def get_supported_markets(cls): return ['metals']\n"
    )
    (tmp_path / "candlery_mint_plugin.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    loader = PluginLoader({})
    assert list(loader.load()) == []
    assert loader.find("metals", "sim").get_plugin_key() == "mint"
    sys.modules.pop("candlery_mint_plugin")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (object(), "is not a subclass"),
        (dict, "is not a subclass"),
        (type("Half", (MarketPlugin,), {}), "does not define capabilities, fetch_page"),
        (with_answer("get_plugin_key", lambda: ""), "get_plugin_key() gave ''"),
        (with_answer("get_plugin_key", lambda: None), "get_plugin_key() gave None"),
        (with_answer("get_plugin_key", failing(KeyError("oh"))), "get_plugin_key() failed: KeyError"),
        (with_answer("get_plugin_key", lambda: "demo"), "its key 'demo' is taken by plugins.demo.DemoPlugin"),
        (with_answer("get_supported_markets", lambda: "forex"), "get_supported_markets() gave 'forex'"),
        (with_answer("get_supported_markets", lambda: ()), "get_supported_markets() gave ()"),
        (
            with_answer("get_supported_markets", failing(OSError("disk"))),
            "get_supported_markets() failed: OSError: disk",
        ),
        (with_answer("list_configurable_providers", failing(ValueError("no list"))), "failed: ValueError: no list"),
        (with_answer("list_configurable_providers", failing(SystemExit(3))), "failed: SystemExit: 3"),
        (with_answer("list_configurable_providers", lambda: None), "gave None, not a list of ProviderInfo"),
        (with_answer("list_configurable_providers", lambda: ["mint"]), "gave ['mint'], not a list of ProviderInfo"),
    ],
)
def test_a_broken_plugin_is_reported_and_the_rest_is_served(found: object, told: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.ERROR, logger="plugins"):
        loader = loaded(found, with_answer("get_plugin_key", lambda: "sound"))
    assert [problem.name for problem in loader.problems] == ["plugin 0"]
    assert told in loader.problems[0].detail
    assert told in caplog.text
    assert loader.find("demo", "sim") is DemoPlugin
    assert loader.find("forex", "mint").get_plugin_key() == "sound"


@pytest.mark.parametrize("exc", [ImportError("No module named 'mint'"), SystemExit(1), SyntaxError("bad")])
def test_a_plugin_that_cannot_be_imported_is_reported_and_the_rest_is_served(exc: BaseException):
    announced = [Announced("broken", failing(exc)), Announced("sound", lambda: Complete)]
    loader = PluginLoader({}, modules=["plugins.demo", "plugins.nothing_here"], entry_points=lambda: announced)
    problems = loader.load()
    assert [problem.name for problem in problems] == ["plugins.nothing_here", "broken"]
    assert all("cannot be loaded" in problem.detail for problem in problems)
    assert loader.markets() == ("demo", "forex", "metals")


def test_entry_points_that_cannot_be_listed_do_not_stop_the_house():
    def spoilt() -> list[importlib.metadata.EntryPoint]:
        raise OSError("the metadata cannot be read")

    loader = PluginLoader({}, modules=["plugins.demo"], entry_points=spoilt)
    assert [problem.name for problem in loader.load()] == [ENTRY_POINT_GROUP]
    assert loader.markets() == ("demo",)


def test_a_plugin_that_is_announced_twice_is_no_problem():
    loader = loaded(Complete, Complete, DemoPlugin)
    assert loader.problems == []
    assert len(loader.providers("forex")) == 1


def test_the_first_plugin_keeps_a_provider_that_two_offer_and_the_second_serves_its_others():
    both = (ProviderInfo("mint", "Another mint"), ProviderInfo("vault", "Vault"))
    rival = type(
        "Rival",
        (Complete,),
        {
            "get_plugin_key": classmethod(lambda cls: "rival"),
            "get_supported_markets": classmethod(lambda cls: ["metals"]),
            "list_configurable_providers": classmethod(lambda cls, options: both),
        },
    )
    loader = loaded(Complete, rival)
    assert loader.find("metals", "mint") is Complete
    assert loader.find("metals", "vault") is rival
    (problem,) = loader.problems
    assert "provider 'mint' of the market 'metals' is served by" in problem.detail


def test_a_plugin_may_have_no_provider_to_offer_for_now():
    loader = loaded(with_answer("list_configurable_providers", lambda: ()))
    assert loader.problems == []
    assert loader.providers("forex") == []


def test_bases_for_other_plugins_are_not_taken_for_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = (
        "from plugins.base import MarketPlugin\n"
        "from plugins.demo import DemoPlugin\n"
        "class _Base(MarketPlugin): pass\n"
        "class Unfinished(_Base): pass\n"
    )
    (tmp_path / "half_done_plugins.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    loader = PluginLoader({}, modules=["half_done_plugins"], entry_points=lambda: ())
    assert [problem.name for problem in loader.load()] == ["half_done_plugins.Unfinished"]
    assert loader.markets() == ()
    sys.modules.pop("half_done_plugins")


def test_loading_again_starts_afresh():
    announced: list[Announced] = [Announced("broken", failing(ImportError("gone")))]
    loader = PluginLoader({}, modules=["plugins.demo"], entry_points=lambda: announced)
    assert len(loader.load()) == 1
    announced[:] = [Announced("mended", lambda: Complete)]
    assert list(loader.load()) == []
    assert loader.markets() == ("demo", "forex", "metals")


def test_an_unknown_market_is_answered_with_those_that_exist():
    loader = loaded()
    with pytest.raises(UnknownMarketError, match=r"'stock'.* Did you mean stocks\? Markets: crypto, demo, stocks"):
        loader.find("stock", "alpaca")
    with pytest.raises(UnknownMarketError, match=r"'zzz'\. Markets: "):
        loader.providers("zzz")


def test_an_unknown_provider_is_answered_with_those_of_the_market():
    loader = loaded()
    with pytest.raises(UnknownProviderError, match=r"'stocks' has no provider 'alpacca'\. Did you mean alpaca\?"):
        loader.find("stocks", "alpacca")
    with pytest.raises(UnknownProviderError, match=r"'demo' has no provider 'alpaca'\. Providers: sim\."):
        loader.find("demo", "alpaca")


async def test_the_example_in_the_documentation_is_a_plugin_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "candlery_mint.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    mint = importlib.metadata.EntryPoint("mint", "candlery_mint:MintPlugin", ENTRY_POINT_GROUP)
    loader = PluginLoader({}, entry_points=lambda: [mint])
    assert list(loader.load()) == []

    asked: list[dict[str, str]] = []
    start_s = 1_704_067_200
    rows = [[start_s + 60 * n, 1.1, 1.3, 1.0, 1.2, 5] for n in (0, 1, 3)]

    async def candles(request: web.Request) -> web.Response:
        asked.append(dict(request.query))
        return web.json_response(rows)

    app = web.Application()
    app.router.add_get("/candles", candles)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    plugin = loader.find("forex", "mint")(
        PluginConfig(provider="mint", options={"url": f"http://{host}:{port}/candles"})
    )
    await plugin.open()
    wanted = TimeRange(start_s * 1000, start_s * 1000 + 86_400_000)
    page = await plugin.fetch_page("EUR/USD", Timeframe.M1, wanted)
    assert [bar.ts // 1000 for bar in page.bars] == [start_s, start_s + 60, start_s + 180]
    assert page.covered == RangeSet.of(wanted.start_ms, wanted.start_ms + 500 * 60_000)
    assert asked == [{"pair": "EURUSD", "from": str(start_s), "to": str(start_s + 30_000)}]
    rows[1][2] = 0.5
    page = await plugin.fetch_page("EUR/USD", Timeframe.M1, wanted)
    assert len(page.rejected) == 1
    assert page.covered.length_ms == 2 * 60_000
    await plugin.close()
    await runner.cleanup()
    sys.modules.pop("candlery_mint")


def test_the_documentation_numbers_every_promise_of_the_conformance_suite():
    here = Path(__file__).parent
    text = (here.parents[1] / "docs" / "plugins.md").read_text("utf-8")
    numbered = re.findall(r"^(\d+)\. ", text, re.MULTILINE)
    tested = re.findall(r"def test_(\d+)_", (here / "test_conformance.py").read_text("utf-8"))
    assert numbered == tested
