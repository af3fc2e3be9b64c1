"""Only the exchanges in use are imported, and CCXT is the same for whoever else uses it in the process."""

import json
import subprocess
import sys
import textwrap
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

from plugins.ccxt_imports import _LeanLoader

ROOT = Path(__file__).parents[2]


def told_by(code: str) -> Any:
    """What a new Python process prints as JSON at the end of its work."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_finding_the_providers_imports_no_part_of_ccxt():
    modules = told_by("""
        import json, sys
        from plugins import PluginLoader
        loader = PluginLoader({"crypto": {"exchanges": ("kraken", "hyperliquid")}})
        assert not loader.load()
        names = [info.id for _, info in loader.providers("crypto")]
        assert {"kraken", "hyperliquid"} <= set(names), names
        print(json.dumps([name for name in sys.modules if name.startswith("ccxt")]))
    """)
    assert not modules


def test_opening_a_provider_imports_its_exchange_and_no_other():
    modules = told_by("""
        import asyncio, json, sys
        from plugins.base import PluginConfig
        from plugins.ccxt_rules import exchange_ids
        from plugins.crypto import CryptoPlugin

        async def main():
            plugin = CryptoPlugin(PluginConfig(provider="binanceus"))
            await plugin.open()
            assert plugin.capabilities.live == "stream"
            await plugin.close()

        asyncio.run(main())
        ids = exchange_ids()
        print(json.dumps(sorted(m for m in sys.modules if m.startswith("ccxt.") and m.rpartition(".")[2] in ids)))
    """)
    # Binance US is Binance's code with other addresses.
    assert modules == [
        f"{package}.{name}"
        for package in ("ccxt.abstract", "ccxt.async_support", "ccxt.pro")
        for name in ("binance", "binanceus")
    ]


def test_every_exchange_can_be_had_where_ccxt_has_it_and_is_what_ccxt_makes_of_it():
    lean, whole = (
        told_by(f"""
            import json
            import plugins.ccxt_imports as imports
            {start}
            told = {{}}
            for package in ("ccxt.async_support", "ccxt.pro"):
                shipped = imports.ccxt_module(package)
                told[package] = [shipped.exchanges, getattr(shipped, "__all__", None), shipped.__version__]
                for name in imports.ccxt_module("ccxt").exchanges:
                    found = imports.exchange_class(package, name)
                    told[f"{{package}}.{{name}}"] = found and [str(base) for base in found.__mro__]
            print(json.dumps(told))
        """)
        for start in ("", "import ccxt.pro")
    )
    assert lean == whole
    assert len(lean) > 150


def test_others_who_use_ccxt_find_everything_in_it():
    told = told_by("""
        import json, sys
        from plugins.ccxt_imports import exchange_class
        exchange_class("ccxt.async_support", "kraken")
        before = [name for name in ("ccxt.okx", "ccxt.kraken", "ccxt.pro") if name in sys.modules]
        import ccxt
        from ccxt import okx
        import ccxt.pro as pro
        everything = {}
        exec("from ccxt import *", everything)
        missing = [name for name in ccxt.__all__ if name not in everything]
        print(json.dumps({
            "before": before,
            "missing": missing,
            "class": ccxt.okx is okx and isinstance(okx, type) and okx().id == "okx",
            "pro": pro.kraken().has["watchOHLCV"],
            "errors": issubclass(ccxt.BadSymbol, ccxt.BaseError) and pro.BadSymbol is ccxt.BadSymbol,
            "unknown": [hasattr(ccxt, "no_such_thing"), hasattr(pro, "zaif")],
        }))
    """)
    assert told == {
        "before": [],
        "missing": [],
        "class": True,
        "pro": True,
        "errors": True,
        "unknown": [False, False],
    }


def test_a_package_that_imports_its_exchanges_in_another_way_is_run_as_it_is(tmp_path: Path):
    source = tmp_path / "__init__.py"
    source.write_text("from json import dumps\nfrom json import loads as kraken\nexchanges = ['kraken']\n")
    loader = _LeanLoader("ccxt", str(source))
    package = module_from_spec(ModuleSpec("ccxt", loader))
    loader.exec_module(package)
    assert (package.dumps, package.kraken, package.exchanges) == (json.dumps, json.loads, ["kraken"])
    assert not hasattr(package, "binance")
