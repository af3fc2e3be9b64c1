"""What goes wrong in CCXT, in Candlery's words.

The classes are told by name, so that CCXT need not be imported for it.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from plugins.base import (
    AuthenticationPluginError,
    NetworkPluginError,
    PluginError,
    PluginFeatureNotSupportedError,
    RateLimitPluginError,
    SymbolNotFoundPluginError,
)

#: By the nearest ancestor in `ccxt.base.errors`. 429 and 418 come as DDoSProtection or its sibling RateLimitExceeded.
ERROR_KINDS: Mapping[str, type[PluginError]] = {
    "AuthenticationError": AuthenticationPluginError,
    "BadSymbol": SymbolNotFoundPluginError,
    "NotSupported": PluginFeatureNotSupportedError,
    "DDoSProtection": RateLimitPluginError,
    "RateLimitExceeded": RateLimitPluginError,
    "OperationFailed": NetworkPluginError,
    "BaseError": PluginError,
}
ERRORS_MODULE = "ccxt.base.errors"
_LONGEST_TEXT = 300
_URL_QUERY = re.compile(r"(https?://[^\s?]+)\?\S*")
#: Exchanges' words for an unknown market that CCXT does not take for one.
_UNKNOWN_SYMBOL_SIGNS = ("EQuery:Unknown asset pair",)


def translate(exc: Exception, *, status: int | None, headers: Mapping[str, str]) -> PluginError:
    """The plugin error for whatever came out of CCXT while it had an answer with this status and these headers."""
    if isinstance(exc, PluginError):
        return exc
    text = _one_line(exc)
    kind = _kind_of(exc, text, status)
    if kind is RateLimitPluginError:
        return RateLimitPluginError(text, retry_after_s=retry_after_s(headers))
    return kind(text)


def _kind_of(exc: Exception, text: str, status: int | None) -> type[PluginError]:
    names = [cls.__name__ for cls in type(exc).__mro__ if cls.__module__ == ERRORS_MODULE]
    if not names:
        # CCXT trips over answers that it does not expect, and lets some errors of the network through.
        return NetworkPluginError
    if any(sign in text for sign in _UNKNOWN_SYMBOL_SIGNS):
        return SymbolNotFoundPluginError
    if names[0] == "OrderNotFound" and status == HTTPStatus.NOT_FOUND:
        # Coinbase Exchange answers "NotFound" for any unknown thing.
        return SymbolNotFoundPluginError
    kind = next(ERROR_KINDS[name] for name in names if name in ERROR_KINDS)
    if kind is PluginError and _is_passing(exc, status):
        return NetworkPluginError
    return kind


def _is_passing(exc: Exception, status: int | None) -> bool:
    """Whether a plain ExchangeError is a fault of the moment: a broken connection, or a server in trouble.

    Binance's 503 with code -1008 is one.
    """
    if exc.__cause__ is not None and type(exc.__cause__).__module__ != ERRORS_MODULE:
        return True
    return status is not None and status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _one_line(exc: Exception) -> str:
    # A signed call's query holds its signature.
    text = _URL_QUERY.sub(r"\1", " ".join(f"{type(exc).__name__}: {exc}".split()))
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


def header(headers: Mapping[str, str], name: str) -> str | None:
    """A header's value, whatever the case of its name."""
    return next((value for key, value in headers.items() if key.lower() == name.lower()), None)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that `Retry-After` asks for, given as seconds or as a date; None where it says nothing usable."""
    value = (header(headers, "Retry-After") or "").strip()
    if value.isascii() and value.replace(".", "", 1).isdigit():
        return float(value)
    when = _http_date(value)
    if when is None:
        return None
    now = _http_date(header(headers, "Date")) or datetime.now(UTC)
    return max(0.0, (when - now).total_seconds())


def venue_ms(headers: Mapping[str, str]) -> int | None:
    """The venue's clock by its `Date` header, which has whole seconds; UTC epoch milliseconds."""
    when = _http_date(header(headers, "Date"))
    return None if when is None else int(when.timestamp() * 1000)


def _http_date(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)
