"""One CCXT exchange that can be watched: what came over the wire during a call, beside what CCXT made of it.

CCXT raises nothing when a page of HTML, half a JSON text or an unknown object comes with status 200: filtered by
time, such answers look like an empty page. So the rows are taken before CCXT filters them, and an empty page is
believed only where the exchange itself sent an empty list.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

from plugins.base import NetworkPluginError, PluginConfig, PluginFeatureNotSupportedError
from plugins.ccxt_imports import exchange_class

if TYPE_CHECKING:
    _Base = Any
else:
    _Base = object


class Answer:
    """What came over the wire during one call."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        #: The last body as JSON; None where it was none.
        self.body: object = None


_current: ContextVar[Answer | None] = ContextVar("ccxt_answer", default=None)


@contextmanager
def watched() -> Iterator[Answer]:
    """The answer of the calls made within, by this task and those that it starts."""
    answer = Answer()
    token = _current.set(answer)
    try:
        yield answer
    finally:
        _current.reset(token)


class Watched(_Base):  # type: ignore[misc]  # its other base is an exchange, known when it runs
    """Mixed into an exchange's class."""

    def on_rest_response(self, code: int, *rest: Any) -> Any:
        """Note status and headers, which CCXT keeps for the last of all concurrent calls only."""
        answer = _current.get()
        if answer is not None:
            _reason, _url, _method, answer.headers, *_ = rest
            answer.status, answer.body = code, None
        return super().on_rest_response(code, *rest)

    def parse_json(self, text: str) -> Any:
        """Note the body."""
        body = super().parse_json(text)
        answer = _current.get()
        if answer is not None:
            answer.body = body
        return body

    def parse_ohlcvs(self, rows: Any, market: Any = None, *args: Any, **kwargs: Any) -> Any:
        """All rows in the order in which they were sent, where CCXT would sort, filter and cut them."""
        answer = _current.get()
        if answer is None:
            return super().parse_ohlcvs(rows, market, *args, **kwargs)
        if isinstance(rows, list) and (rows or _holds(answer.body, rows)):
            return [self.parse_ohlcv(row, market) if isinstance(row, list | dict) else row for row in rows]
        if isinstance(rows, dict) and rows:
            return super().parse_ohlcvs(rows, market, *args, **kwargs)
        raise NetworkPluginError(f"{self.id} answered with something that is no list of bars")


def _holds(body: object, rows: list[Any]) -> bool:
    """Whether the very list came with the body, and is not CCXT's stand-in for a missing one."""
    if isinstance(body, dict):
        return any(_holds(value, rows) for value in body.values())
    return body is rows


@cache
def _watched_class(exchange_id: str) -> Any:
    exchange = exchange_class("ccxt.async_support", exchange_id)
    if exchange is None:
        raise PluginFeatureNotSupportedError(f"CCXT has no exchange {exchange_id!r} that can be asked asynchronously")
    return type(exchange_id, (Watched, exchange), {})


def make_exchange(config: PluginConfig, *, kind: Any = None) -> Any:
    """An exchange of CCXT, set up and not connected. Imports its part of CCXT, which takes a while at first.

    `kind` is another class of the same exchange than the one that can be watched.

    Raises:
        Exception: whatever CCXT makes of wrong options.
    """
    settings: dict[str, Any] = {"enableRateLimit": True, "timeout": int(config.timeout_s * 1000)}
    if config.credentials.key:
        settings |= {"apiKey": config.credentials.key, "secret": config.credentials.secret}
    if config.credentials.password:
        settings["password"] = config.credentials.password
    # CCXT merges deeply, and changes what it was given later on.
    exchange = (kind or _watched_class(config.provider))(settings | copy.deepcopy(dict(config.options)))
    if config.sandbox:
        _enter_sandbox(exchange)
    return exchange


def _enter_sandbox(exchange: Any) -> None:
    try:
        exchange.set_sandbox_mode(True)
    except TypeError as exc:
        # CCXT trips over an exchange whose test URLs are None; where they are absent it says NotSupported.
        raise PluginFeatureNotSupportedError(f"{exchange.id} has no sandbox") from exc
