"""Health: alive, ready, and how each part is doing. Every probe is bounded, so that the answer always comes."""

import asyncio
import logging
from collections.abc import Awaitable
from time import perf_counter
from typing import NamedTuple

from quart import Blueprint, Response, request

from blueprints.answers import json_answer
from blueprints.context import services
from blueprints.params import Params
from blueprints.usage import open_providers
from domain.errors import CandleryError

blueprint = Blueprint("health", __name__)
log = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 2.0


class Probe(NamedTuple):
    """How a part answered; `detail` is empty where all is well."""

    ms: float
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether all is well."""
        return not self.detail

    def shown(self) -> dict[str, object]:
        """For the answer."""
        return {"ok": self.ok, "ms": self.ms, **({} if self.ok else {"detail": self.detail})}


class UnhealthyError(CandleryError):
    """A part of the server does not work."""

    retry_after_s: float = 2

    def __init__(self, checks: dict[str, Probe]) -> None:
        """Take how each part answered."""
        super().__init__(" ".join(f"{name}: {probe.detail}" for name, probe in checks.items() if not probe.ok))
        self.extra = {"checks": {name: probe.shown() for name, probe in checks.items()}}
        self.database_is_down = not checks.get("database", Probe(0)).ok


@blueprint.get("/healthz")
async def get_healthz() -> Response:
    """The process is alive and its event loop turns."""
    Params(request.query_string, allowed=())
    return json_answer({"status": "ok"})


@blueprint.get("/readyz")
async def get_readyz() -> Response:
    """Requests can be served: the database and the cache answer."""
    Params(request.query_string, allowed=())
    found = services()
    database, cache = await asyncio.gather(_probe(found.database.ping()), _probe(found.cache.ping()))
    return _checked({"database": database, "cache": cache})


@blueprint.get("/health/db")
async def get_health_db() -> Response:
    """The database answers."""
    Params(request.query_string, allowed=())
    return _checked({"database": await _probe(services().database.ping())})


@blueprint.get("/health/cache")
async def get_health_cache() -> Response:
    """The cache answers; and what it has done."""
    Params(request.query_string, allowed=())
    cache = services().cache
    return _checked({"cache": await _probe(cache.ping())}, stats=cache.stats()._asdict())


@blueprint.get("/health/providers")
async def get_health_providers() -> Response:
    """Which providers are open, how they are doing, and which plugins could not be loaded."""
    Params(request.query_string, allowed=())
    providers = [
        {
            "market": use.market,
            "provider": use.provider,
            "calls": use.calls,
            "paused_s": round(use.paused_s, 3),
            "failure": use.failure,
        }
        for use in open_providers(services().markets)
    ]
    problems = [str(problem) for problem in services().loader.problems]
    return json_answer({"status": "degraded" if problems else "ok", "providers": providers, "problems": problems})


async def _probe(ping: Awaitable[None]) -> Probe:
    began = perf_counter()
    detail = ""
    try:
        await asyncio.wait_for(ping, PROBE_TIMEOUT_S)
    except TimeoutError:
        detail = f"There was no answer within {PROBE_TIMEOUT_S:g} s."
    except CandleryError as exc:
        detail = exc.detail
    return Probe(round((perf_counter() - began) * 1000, 3), detail)


def _checked(checks: dict[str, Probe], **more: object) -> Response:
    if not all(probe.ok for probe in checks.values()):
        raise UnhealthyError(checks)
    return json_answer({"status": "ok", "checks": {name: probe.shown() for name, probe in checks.items()}, **more})
