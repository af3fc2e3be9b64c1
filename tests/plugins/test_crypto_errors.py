"""Every error that CCXT knows becomes one of ours."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import aiohttp
import pytest
from ccxt.base import errors

from plugins.base import (
    AuthenticationPluginError,
    NetworkPluginError,
    PluginError,
    PluginFeatureNotSupportedError,
    RateLimitPluginError,
    SymbolNotFoundPluginError,
)
from plugins.ccxt_errors import ERROR_KINDS, ERRORS_MODULE, retry_after_s, translate, venue_ms

ALL = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, errors.BaseError)]


def kind(exc: Exception, status: int | None = 200) -> type[PluginError]:
    return type(translate(exc, status=status, headers={}))


def test_the_table_names_errors_that_ccxt_has():
    assert errors.__name__ == ERRORS_MODULE
    assert all(hasattr(errors, name) for name in ERROR_KINDS)


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_every_error_of_ccxt_has_a_kind(error: type[Exception]):
    assert issubclass(kind(error("x")), PluginError)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.DDoSProtection, RateLimitPluginError),
        (errors.RateLimitExceeded, RateLimitPluginError),
        (errors.ExchangeNotAvailable, NetworkPluginError),
        (errors.OnMaintenance, NetworkPluginError),
        (errors.RequestTimeout, NetworkPluginError),
        (errors.NetworkError, NetworkPluginError),
        (errors.NullResponse, NetworkPluginError),
        (errors.AuthenticationError, AuthenticationPluginError),
        (errors.PermissionDenied, AuthenticationPluginError),
        (errors.AccountSuspended, AuthenticationPluginError),
        (errors.BadSymbol, SymbolNotFoundPluginError),
        (errors.NotSupported, PluginFeatureNotSupportedError),
        (errors.BadRequest, PluginError),
        (errors.ExchangeError, PluginError),
        (KeyError, NetworkPluginError),
        (OSError, NetworkPluginError),
        (ValueError, NetworkPluginError),
    ],
)
def test_each_kind_says_what_to_do(error: type[Exception], expected: type[PluginError]):
    assert kind(error("x")) is expected


def test_a_plain_error_of_a_server_in_trouble_or_of_a_broken_connection_may_pass():
    assert kind(errors.ExchangeError('{"code":-1008}'), 503) is NetworkPluginError
    broken = errors.ExchangeError("binance GET")
    broken.__cause__ = aiohttp.ClientPayloadError("cut")
    assert kind(broken) is NetworkPluginError


def test_not_found_is_about_a_symbol_only_where_the_exchange_said_404():
    assert kind(errors.OrderNotFound("NotFound"), 404) is SymbolNotFoundPluginError
    assert kind(errors.OrderNotFound("NotFound"), 200) is PluginError
    assert kind(errors.ExchangeError('{"error":["EQuery:Unknown asset pair"]}')) is SymbolNotFoundPluginError


def test_our_own_errors_pass_through():
    error = NetworkPluginError("x")
    assert translate(error, status=None, headers={}) is error


def test_texts_are_one_short_line():
    error = translate(errors.ExchangeError("<html>\n  " + "x" * 5000), status=200, headers={})
    assert "\n" not in error.detail
    assert len(error.detail) < 320


def test_the_wait_is_read_as_seconds_or_as_a_date():
    now = datetime(2024, 5, 1, tzinfo=UTC)
    later = format_datetime(now + timedelta(seconds=30), usegmt=True)
    assert retry_after_s({"retry-after": "12"}) == 12
    assert retry_after_s({"Retry-After": "0.5"}) == 0.5
    assert retry_after_s({"Retry-After": later, "date": format_datetime(now, usegmt=True)}) == 30
    assert retry_after_s({"Retry-After": format_datetime(now, usegmt=True)}) == 0
    for nonsense in ({}, {"Retry-After": ""}, {"Retry-After": "soon"}, {"Retry-After": "-3"}, {"Retry-After": "."}):
        assert retry_after_s(nonsense) is None


def test_the_venues_clock_is_its_date_header():
    assert venue_ms({"DATE": "Wed, 01 May 2024 00:00:07 GMT"}) == 1_714_521_607_000
    assert venue_ms({"Date": "yesterday"}) is None
    assert venue_ms({}) is None


def test_an_error_shows_no_query_of_a_call_since_it_may_be_signed() -> None:
    raised = ConnectionError("binance GET https://api.binance.com/x?timestamp=1&signature=c0ffee timed out")
    detail = translate(raised, status=None, headers={}).detail
    assert detail == "ConnectionError: binance GET https://api.binance.com/x timed out"
