"""Whatever a query string holds, it is understood or refused, and never a surprise."""

from contextlib import suppress
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blueprints import params
from blueprints.errors import FeatureNotSupportedError
from blueprints.ohlcv_request import NAMES, OhlcvRequest, parse_ohlcv
from blueprints.page_token import Place, make_token, read_token
from config import TestingConfig
from domain.errors import InvalidParameterError, UnsupportedTimeframeError
from tests.support.market import START_MS

LIMITS = TestingConfig()
REFUSED = (InvalidParameterError, UnsupportedTimeframeError, FeatureNotSupportedError)
VALUES = st.one_of(
    st.text(max_size=30), st.integers().map(str), st.datetimes().map(str), st.just("1h"), st.just("json")
)


def parse(query: bytes) -> OhlcvRequest:
    return parse_ohlcv(query, LIMITS, now_ms=START_MS)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(query: bytes):
    with suppress(*REFUSED):
        parse(query)
    with suppress(*REFUSED):
        parse(b"market=m&provider=p&symbol=s&" + query)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=6))
def test_any_values_are_understood_or_refused(pairs: list[tuple[str, str]]):
    query = urlencode([("market", "m"), ("provider", "p"), ("symbol", "s"), *pairs], errors="replace").encode()
    with suppress(*REFUSED):
        asked = parse(query)
        assert 1 <= asked.limit <= LIMITS.max_limit
        assert asked.start_ms is None or 0 <= asked.start_ms <= START_MS
        assert asked.end_ms is None or asked.end_ms > (asked.start_ms or -1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.none() | st.integers(0, START_MS), st.none() | st.floats(1e-9, 1e9)), min_size=1))
def test_a_token_gives_back_what_it_was_made_of(pairs: list[tuple[int | None, float | None]]):
    places = [Place(*pair) for pair in pairs]
    token = make_token(("a", 1, None), places)
    assert read_token(token, ("a", 1, None), symbols=len(places)) == places


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_other_text_is_no_token(text: str):
    with pytest.raises(InvalidParameterError):
        read_token(text, ("a", 1, None), symbols=1)


@given(st.text(alphabet="ab=&%+25é;", max_size=30))
def test_a_query_string_is_read_as_the_standard_library_reads_it(text: str):
    query = text.encode()
    try:
        expected = parse_qsl(text, keep_blank_values=True, encoding="utf-8", errors="strict", max_num_fields=2_000)
    except UnicodeDecodeError:
        with pytest.raises(InvalidParameterError, match="UTF-8"):
            params._pairs(query)
    else:
        assert params._pairs(query) == expected


@pytest.mark.parametrize("query", [b"a=1&" * 2000, b"&" * 2000, b"a&" * 5000])
def test_too_many_fields_are_refused(query: bytes):
    with pytest.raises(InvalidParameterError, match="too many"):
        params._pairs(query)
    assert len(params._pairs(query[:1500])) <= 2000
