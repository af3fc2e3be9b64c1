"""A server process whose live bars are made up: `python -m tests.support.stream_child`. It prints its port.

Its upstream tells `GET /tell/<number>` closed bars to everybody at once, and `GET /parts/<number>` makes every later
subscription begin with so many parts of a thousand bars.
"""

import asyncio
import json
import os
import sys
import time

from quart import Quart

from app_extensions import event_loop, server
from domain.bar import Bar
from tests.fakes import FakeServices
from tests.support.streaming import FakeSubscriptions, a_bar


async def main() -> None:
    services = FakeServices(**json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})
    subscriptions = services.subscriptions = FakeSubscriptions()  # type: ignore[attr-defined]
    make = server.create_app

    def create(*args: object) -> Quart:
        app = make(*args)  # type: ignore[arg-type]

        @app.get("/tell/<int:number>")
        async def tell(number: int) -> str:
            for at in range(number):
                subscriptions.tell(a_bar(60_000 * at, venue_ms=time.time_ns() // 1_000_000))
                if at % 10 == 0:
                    await asyncio.sleep(0)
            return str(len(subscriptions.live))

        @app.get("/parts/<int:number>")
        async def parts(number: int) -> str:
            page = [Bar(60_000 * at, 10_000.25, 20_000.5, 5_000.75, 15_000.5, 1_000.125) for at in range(1000)]
            subscriptions.parts = [page] * number
            return "ok"

        @app.get("/held")
        async def held() -> dict[str, int]:
            hub = app.extensions[server.STREAM]
            told = sum(one.parts_told for one in subscriptions.made)
            return {"connections": len(hub.connections), "live": len(subscriptions.live), "told": told}

        return app

    server.create_app = create  # type: ignore[assignment]
    listening = server.bind("127.0.0.1", 0)
    stop = asyncio.Event()
    server._stop_on_signals(stop, force_after_s=10)
    sys.stdout.write(f"{listening[0].getsockname()[1]} {os.getpid()}\n")
    sys.stdout.flush()
    await server.serve_app(services.config, services, listening, stop)  # type: ignore[arg-type]


if __name__ == "__main__":
    event_loop.run(main())
