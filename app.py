"""The web application."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

from quart import Quart
from quart_cors import cors

from app_extensions import answer_cache, error_mapping, metrics, ohlcv_lane, request_context
from app_extensions.metrics import HttpMetrics
from app_extensions.supervisor import Supervisor
from app_extensions.websocket_connection import WebsocketConnection
from app_extensions.wiring import Services, running_services
from blueprints import backfills, coverage, health, listings, ohlcv, root, series, stream
from blueprints.context import EXTENSION, STOPPING, STREAM
from blueprints.stream_hub import StreamHub
from config import BaseConfig

_EXPOSED = ("ETag", "Location", "Retry-After", "Server-Timing", "X-Candlery-Simulated", "X-Request-ID")
_LAG_INTERVAL_S = 1.0


def create_app(config: BaseConfig, services: Services | None = None) -> Quart:
    """The application, with the services given, or with its own that live as long as it serves."""
    app = Quart("candlery", static_folder=None)
    app.url_map.merge_slashes = False
    app.asgi_websocket_class = WebsocketConnection
    if services is not None:
        app.extensions[EXTENSION] = services
    app.extensions[STOPPING] = asyncio.Event()
    app.extensions[STREAM] = StreamHub(config, error_mapping.explain)
    error_mapping.install(app)
    meters = metrics.install(app)
    for module in (root, health, listings, ohlcv, coverage, series, backfills, stream):
        app.register_blueprint(module.blueprint)
    _allow_origins(app, config)
    # The last to be installed is the first to be asked.
    request_context.install(app)
    ohlcv_lane.install(app, meters.count)
    answer_cache.install(
        app, meters.count, max_bytes=config.answer_cache_bytes if config.cache_bytes else 0, ttl_s=config.cache_ttl_s
    )
    _live(app, config, meters)
    return app


def _allow_origins(app: Quart, config: BaseConfig) -> None:
    """Browsers may call from the pages of these origins; quart-cors by itself would allow all."""
    if not config.cors_origins:
        return
    every = "*" in config.cors_origins
    cors(
        app,
        allow_origin="*" if every else list(config.cors_origins),
        allow_methods=["GET", "HEAD", "OPTIONS", "POST"],
        allow_headers=["Content-Type", "If-None-Match", "X-Request-ID"],
        expose_headers=list(_EXPOSED),
    )


def _live(app: Quart, config: BaseConfig, meters: HttpMetrics) -> None:
    """Open what the application owns when it begins to serve; close it, in reverse, when it ends."""

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        async with AsyncExitStack() as stack:
            if EXTENSION not in app.extensions:
                app.extensions[EXTENSION] = await stack.enter_async_context(running_services(config))
                stack.callback(app.extensions.pop, EXTENSION)
            supervisor = Supervisor()
            stack.push_async_callback(supervisor.close)
            supervisor.every(_LAG_INTERVAL_S, "measure event loop lag", meters.measure_lag)
            hub = app.extensions[STREAM]
            supervisor.every(hub.tick_s, "look after stream clients", hub.tick)
            yield
