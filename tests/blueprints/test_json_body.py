"""Whatever a body holds, it is understood or refused in words that help, and never a surprise."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blueprints.json_body import JsonBody, parse_json
from domain.errors import InvalidParameterError

NAMES = ("market", "symbols", "start", "dry_run")
TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)
READERS: tuple[tuple[str, Any], ...] = (
    ("market", lambda body: body.text("market")),
    ("symbols", lambda body: body.texts("symbols", most=3)),
    ("start", lambda body: body.time_ms("start")),
    ("dry_run", lambda body: body.flag("dry_run")),
)


def body(**values: object) -> JsonBody:
    return parse_json(json.dumps(values).encode(), allowed=NAMES)


def refusal(raw: bytes | str) -> InvalidParameterError:
    with pytest.raises(InvalidParameterError) as caught:
        parse_json(raw if isinstance(raw, bytes) else raw.encode(), allowed=NAMES)
    # Whatever is told can be sent.
    assert (caught.value.parameter + caught.value.detail).encode()
    return caught.value


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(raw: bytes):
    with suppress(InvalidParameterError):
        assert isinstance(parse_json(raw, allowed=NAMES), JsonBody)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES) | TEXTS, ANYTHING, max_size=5))
def test_any_object_is_understood_or_refused_by_the_name_of_what_is_wrong(values: dict[str, object]):
    refused: list[InvalidParameterError] = []
    try:
        understood = parse_json(json.dumps(values).encode(), allowed=NAMES)
    except InvalidParameterError as exc:
        refused.append(exc)
    else:
        assert set(values) <= set(NAMES)
        for name, read in READERS:
            try:
                read(understood)
            except InvalidParameterError as exc:
                refused.append(exc)
                assert refused[-1].parameter == name
    for error in refused:
        assert (error.parameter + error.detail).encode()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is empty; it must be a JSON object with market, symbols, start, dry_run"),
        (b" \n", "is empty"),
        (b"{", "is not JSON: Expecting property name"),
        (b'{"market": "a",}', "is not JSON"),
        (b"{'market': 'a'}", "(line 1, column 2)"),
        (b'{"market": "a"} x', "is not JSON: Extra data"),
        (b'{"market": "a\nb"}', "is not JSON: Invalid control character"),
        (b"market=a", "is not JSON"),
        (b'\xef\xbb\xbf{"market": "a"}', "is not JSON"),
        ('{"market": "é"}'.encode("latin-1"), "is not UTF-8 (at byte 12)"),
        ('{"market": "a"}'.encode("utf-16"), "is not UTF-8"),
        (b'{"start": NaN}', "NaN is no number"),
        (b'{"start": -Infinity}', "-Infinity is no number"),
        (b'{"start": ' + b"9" * 5000 + b"}", "too many digits"),
        (b"[" * 500_000, "nested too deeply"),
        (b'{"market":' * 100_000, "nested too deeply"),
        (b"[]", "must be a JSON object, not a list"),
        (b'"a"', "must be a JSON object, not a string"),
        (b"null", "must be a JSON object, not null"),
        (b"1", "must be a JSON object, not a number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_json_object_is_told_why(raw: bytes, words: str):
    error = refusal(raw)
    assert error.parameter == "body"
    assert words in error.detail


@pytest.mark.parametrize(
    ("raw", "parameter", "words"),
    [
        ('{"markt": 1}', "markt", "There is no parameter 'markt'; did you mean market?"),
        ('{"symbol": []}', "symbol", "did you mean symbols?"),
        ('{"xyz": 1}', "xyz", "there are market, symbols, start, dry_run"),
        ('{"": 1}', "", "There is no parameter ''"),
        ('{"\\u0000": 1}', "?", "There is no parameter '?'"),
        ('{"\\ud800": 1}', "?", "There is no parameter '?'"),
        ('{"market": "a", "market": "b"}', "market", "'market' may be given once only"),
        ('{"\\ud800": 1, "\\ud800": 2}', "?", "may be given once only"),
    ],
)
def test_a_field_that_is_unknown_or_doubled_is_named(raw: str, parameter: str, words: str):
    error = refusal(raw)
    assert (error.parameter, words in error.detail) == (parameter, True), error.detail


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("market", None, 'market is missing; it must be a string, such as "binance"'),
        ("market", 1, "must be a string"),
        ("market", True, "not true or false"),
        ("market", ["a"], "not a list"),
        ("market", {}, "not an object"),
        ("market", "", "market is empty"),
        ("market", " ", "market is empty"),
        ("market", "a\x00b", "market holds a control character"),
        ("market", "a\ud800", "market holds half of a surrogate pair"),
        ("market", "a" * 201, "market is longer than 200 characters"),
        ("symbols", None, 'symbols is missing; it must be a list of strings, such as ["BTC/USDT"]'),
        ("symbols", "BTC/USDT", "must be a list of strings"),
        ("symbols", [], "symbols must hold 1 to 3 strings, not 0"),
        ("symbols", ["a", "b", "c", "d"], "symbols must hold 1 to 3 strings, not 4"),
        ("symbols", ["a", 1], "symbols[1] must be a string, not a number"),
        ("symbols", ["a", None], "symbols[1] must be a string, not null"),
        ("symbols", [[["a"]]], "symbols[0] must be a string, not a list"),
        ("symbols", ["a", ""], "symbols[1] is empty"),
        ("symbols", ["a\n"], "symbols[0] holds a control character"),
        ("symbols", ["a\udfff"], "symbols[0] holds half of a surrogate pair"),
        ("symbols", ["a", "b", "a"], "symbols holds 'a' twice"),
        ("start", "yesterday", "start: 'yesterday' is not a time; give ISO-8601"),
        ("start", "", "start: '' is not a time"),
        ("start", -1, "outside 1970-01-01 to 2099-12-31"),
        ("start", 10**30, "outside 1970-01-01 to 2099-12-31"),
        ("start", 1.5, "whole epoch milliseconds, not a fraction"),
        ("start", 1e300, "outside 1970-01-01 to 2099-12-31"),
        ("start", True, "must be ISO-8601 in a string or whole epoch milliseconds, not true or false"),
        ("start", ["2024-01-01"], "not a list"),
        ("start", "2024-01-01\ud800", "is not a time"),
        ("dry_run", "true", "dry_run must be true or false, not a string"),
        ("dry_run", 1, "dry_run must be true or false, not a number"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_value_of_the_wrong_kind_is_told_what_would_be_right(name: str, value: object, words: str):
    read = dict(READERS)[name]
    with pytest.raises(InvalidParameterError) as caught:
        read(body(**{name: value}))
        if name == "start":
            body(start=value).required_time_ms("start")
    assert caught.value.parameter == name
    assert words in caught.value.detail
    assert caught.value.detail.encode()


def test_a_time_that_must_be_given_is_missed():
    with pytest.raises(InvalidParameterError, match="start is missing; give ISO-8601 or epoch milliseconds"):
        body().required_time_ms("start")


@pytest.mark.parametrize(
    "value", ["2024-01-31T12:00:00Z", "2024-01-31T13:00:00+01:00", "1706702400000", 1706702400000, 1706702400000.0]
)
def test_a_time_may_be_written_in_several_ways(value: object):
    assert body(start=value).required_time_ms("start") == 1706702400000


def test_null_counts_as_not_given():
    assert body(start=None).time_ms("start") is None
    assert body(dry_run=None).flag("dry_run") is False


def test_what_is_right_is_read_as_it_is():
    whole = body(market="binance", symbols=["BTC/USDT", "É/💰", "a b"], dry_run=True)
    assert whole.text("market") == "binance"
    assert whole.texts("symbols", most=3) == ["BTC/USDT", "É/💰", "a b"]
    assert whole.flag("dry_run") is True
