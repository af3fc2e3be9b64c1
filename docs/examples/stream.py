"""Follow a series in the terminal, and go on where it broke off: `stream.py MARKET PROVIDER SYMBOL TIMEFRAME`."""

import argparse
import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import aiohttp


async def follow(url: str, query: dict[str, Any]) -> None:
    """Print bars until somebody stops it; after a break the last closed bar is where it goes on."""
    last_ms: int | None = None
    while True:
        try:
            async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
                begin = {"since": last_ms} if last_ms is not None else {"last": query["last"]}
                await socket.send_json({"op": "subscribe", "id": "a", **query, **begin})
                async for message in socket:
                    last_ms = show(message.json(), last_ms)
        except aiohttp.ClientError as exc:
            print(f"disconnected: {exc}")
        await asyncio.sleep(1)


def show(told: dict[str, Any], last_ms: int | None) -> int | None:
    """Print a message; the time of the newest closed bar."""
    bars = told.get("bars") or ([told["bar"]] if "bar" in told else [])
    state = told.get("state", "closed")
    for bar in bars:
        at = datetime.fromtimestamp(bar[0] / 1000, UTC).strftime("%Y-%m-%dT%H:%MZ")
        print(f"{state:<9}", at, *bar[1:], sep="  ")
    if told["type"] in {"subscribed", "gap", "status", "error"}:
        print(*(value for key, value in told.items() if key not in {"id", "simulated"}), sep="  ")
    return bars[-1][0] if bars and state == "closed" else last_ms


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("market", "provider", "symbol", "timeframe"):
        parser.add_argument(name)
    parser.add_argument("--last", type=int, default=5, help="closed bars to begin with")
    parser.add_argument("--url", default="ws://127.0.0.1:8000/api/v1/stream")
    chosen = vars(parser.parse_args())
    address = chosen.pop("url")
    with suppress(KeyboardInterrupt):
        asyncio.run(follow(address, chosen))
