"""Log lines: one a record, with the request's id, readable by machines, and without secrets."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextvars import copy_context
from datetime import datetime, timedelta

import pytest
from hypercorn.config import Config as HypercornConfig
from hypercorn.logging import Logger as HypercornLogger
from hypothesis import given
from hypothesis import strategies as st

from app_extensions.logging_setup import (
    JsonFormatter,
    TextFormatter,
    configure_logging,
    mask,
    request_id_var,
    route_hypercorn,
)

log = logging.getLogger("candlery.test")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Give the process its logging back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level = handlers, level
    for name in ("ccxt", "hpack", "urllib3", "aiohttp.client", "hypercorn.error", "hypercorn.access"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def record(message: str = "", *args: object, **extra: object) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": message, "args": args, **extra})


def json_line(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    (line,) = capsys.readouterr().err.splitlines()
    found: dict[str, object] = json.loads(line)
    return found


def test_a_json_line_holds_time_level_logger_message_request_and_extras(capsys: pytest.CaptureFixture[str]):
    configure_logging("INFO", "json")
    log.info("stored %d bars", 5, extra={"series": "crypto/binance/BTC/USDT", "took_s": 0.5})
    line = json_line(capsys)
    time = datetime.fromisoformat(str(line.pop("time")))
    assert time.utcoffset() == timedelta(0)
    assert line == {
        "level": "INFO",
        "logger": "candlery.test",
        "message": "stored 5 bars",
        "request_id": "-",
        "series": "crypto/binance/BTC/USDT",
        "took_s": 0.5,
    }


def test_a_text_line_reads_from_left_to_right(capsys: pytest.CaptureFixture[str]):
    configure_logging("INFO", "text")
    log.warning("slow", extra={"took_s": 2.5, "symbol": "BTC/USDT"})
    line = capsys.readouterr().err
    assert line.endswith('Z WARNING  candlery.test [-] slow took_s=2.5 symbol="BTC/USDT"\n')


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_a_line_carries_the_id_of_its_own_request(capsys: pytest.CaptureFixture[str], fmt: str):
    configure_logging("INFO", fmt)

    def serve(request_id: str) -> None:
        request_id_var.set(request_id)
        log.info("serving")

    copy_context().run(serve, "req-1")
    copy_context().run(serve, "req-2")
    log.info("idle")
    lines = capsys.readouterr().err.splitlines()
    assert ["req-1" in lines[0], "req-2" in lines[1], "req-" in lines[2]] == [True, True, False]


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_an_exception_comes_with_its_traceback_and_without_its_secrets(capsys: pytest.CaptureFixture[str], fmt: str):
    configure_logging("INFO", fmt)

    def connect() -> None:
        raise RuntimeError("cannot reach postgresql://me:hunter2@db/x")

    try:
        connect()
    except RuntimeError:
        log.exception("failed")
    err = capsys.readouterr().err
    assert "RuntimeError: cannot reach postgresql://me:***@db/x" in err
    assert "Traceback" in err
    assert (err.count("\n") == 1) == (fmt == "json")


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]):
    configure_logging("WARNING", "text")
    log.info("detail")
    assert capsys.readouterr().err == ""


def test_configuring_twice_does_not_write_twice(capsys: pytest.CaptureFixture[str]):
    configure_logging("INFO", "json")
    configure_logging("INFO", "json")
    log.info("once")
    assert json_line(capsys)["message"] == "once"


def test_libraries_that_write_every_frame_stay_quiet_at_debug(capsys: pytest.CaptureFixture[str]):
    configure_logging("DEBUG", "json")
    logging.getLogger("ccxt.base").debug("headers")
    assert capsys.readouterr().err == ""


def test_python_warnings_become_lines(capsys: pytest.CaptureFixture[str]):
    configure_logging("INFO", "json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn("old call", DeprecationWarning, stacklevel=1)
    line = json_line(capsys)
    assert line["logger"] == "py.warnings"
    assert "old call" in str(line["message"])


async def test_hypercorn_writes_the_same_lines_and_each_once(capsys: pytest.CaptureFixture[str]):
    configure_logging("INFO", "json")
    server = HypercornConfig()
    route_hypercorn(server)
    await HypercornLogger(server).info("Running on %s", "http://127.0.0.1:8000")
    line = json_line(capsys)
    assert (line["logger"], line["message"]) == ("hypercorn.error", "Running on http://127.0.0.1:8000")


def test_a_line_break_from_outside_does_not_forge_a_second_line():
    text = TextFormatter().format(record("symbol %s", "BTC\r\n2026-01-01 INFO forged\u2028x"))
    assert len(text.splitlines()) == 1
    assert r"BTC\r\n2026-01-01 INFO forged\u2028x" in text


SECRETS = [
    "GET https://venue/api?symbol=BTC&signature=hunter2&limit=5",
    "GET /x?apiKey=hunter2",
    "api_key=hunter2;",
    "connect redis://:hunter2@localhost:6379/0",
    "connect postgresql://user:p@hunter2@localhost/db",
    '{"apiKey": "hunter2", "limit": 5}',
    "{'secret': 'hunter2'}",
    '{"password": "a\\"hunter2"}',
    "APCA-API-SECRET-KEY: hunter2",
    "Authorization: Bearer hunter2",
    "X-MBX-APIKEY: hunter2",
    "headers={'X-MBX-APIKEY': 'hunter2'}",
]


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_in_a_message_is_masked(text: str):
    assert "hunter2" not in mask(text)
    assert "***" in mask(text)
    assert "hunter2" not in TextFormatter().format(record("%s", text))


def test_a_secret_in_an_extra_is_masked():
    line = record("x", secret="hunter2", options={"okx": {"apiKey": "hunter2", "timeout": 5}}, urls=[SECRETS[0]])
    assert "hunter2" not in JsonFormatter().format(line)
    assert json.loads(JsonFormatter().format(line))["options"] == {"okx": {"apiKey": "***", "timeout": 5}}
    assert "hunter2" not in TextFormatter().format(line)


@pytest.mark.parametrize(
    "text",
    [
        "GET /api/v1/ohlcv?symbol=BTC/USDT&page_token=abc&limit=5",
        "http://127.0.0.1:8000/api/v1/ohlcv?symbol=a@b",
        "3 keys dropped: cache full",
    ],
)
def test_what_is_no_secret_is_left_as_it_is(text: str):
    assert mask(text) == text


@given(st.text(), st.dictionaries(st.text(), st.floats() | st.text() | st.none() | st.binary()))
def test_every_record_becomes_one_line_of_valid_json(message: str, extra: dict[str, object]):
    text = JsonFormatter().format(record("%s", message, extra=extra))
    assert len(text.splitlines()) == 1
    json.loads(text, parse_constant=pytest.fail)
