"""The words of the stream: what clients ask, checked, and what they are told, encoded. See docs/streaming.md."""

import json
from collections.abc import Mapping
from typing import NoReturn

import msgspec

from blueprints.json_body import JsonBody
from blueprints.params import check_value
from domain.errors import InvalidParameterError, UnsupportedTimeframeError
from domain.series import Series
from domain.timeframe import Timeframe
from services.live import BarEvent, CaughtUpEvent, GapEvent, LiveEvent, LiveQuery, SnapshotEvent, StatusEvent

MAX_ID_LENGTH = 64
#: The parameter that errors of a message as a whole name.
MESSAGE = "message"
SUBSCRIBE_FIELDS = ("op", "id", "market", "provider", "symbol", "timeframe", "since", "last", "bars")
FIELDS: Mapping[str, tuple[str, ...]] = {
    "subscribe": SUBSCRIBE_FIELDS,
    "unsubscribe": ("op", "id"),
    "ping": ("op",),
    "auth": ("op", "key"),
}
_WHICH = ("all", "closed")

_json = msgspec.json.Encoder().encode


class Subscribe(msgspec.Struct, frozen=True):
    """A client wants the bars of a series from now on, and perhaps some from before."""

    id: str
    query: LiveQuery


class Unsubscribe(msgspec.Struct, frozen=True):
    """A client has enough of a subscription."""

    id: str


class Ping(msgspec.Struct, frozen=True):
    """A client wants to know whether somebody is there."""


class Auth(msgspec.Struct, frozen=True):
    """A client shows a key."""


Request = Subscribe | Unsubscribe | Ping | Auth


class BadMessageError(Exception):
    """A message is wrong; `fault` says what, `id` whose it would have been, where that can be read."""

    def __init__(self, fault: InvalidParameterError | UnsupportedTimeframeError, subscription_id: str | None) -> None:
        """Take what is wrong, and the id that the client gave."""
        super().__init__(fault.detail)
        self.fault, self.id = fault, subscription_id


def parse(text: str | bytes, *, now_ms: int, max_last: int) -> Request:
    """What a message asks for.

    Raises:
        BadMessageError: it is wrong.
    """
    values: dict[str, object] = {}
    try:
        values = _decoded(text)
        return _request(values, now_ms=now_ms, max_last=max_last)
    except (InvalidParameterError, UnsupportedTimeframeError) as exc:
        raise BadMessageError(exc, _readable(values.get("id"))) from exc


def _readable(given: object) -> str | None:
    """An id that can be given back."""
    fine = isinstance(given, str) and len(given) <= MAX_ID_LENGTH and given.isprintable()
    return given if fine else None  # type: ignore[return-value]


def _decoded(text: str | bytes) -> dict[str, object]:
    if isinstance(text, bytes):
        _refuse("Messages are JSON in text frames, not binary ones.")
    try:
        values = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except json.JSONDecodeError as exc:
        _refuse(f"The message is not JSON: {exc.msg} (line {exc.lineno}, column {exc.colno}).")
    except RecursionError:
        _refuse("The message is not understood: it is nested too deeply.")
    except ValueError:
        _refuse("The message is not understood: it holds a number of too many digits.")
    if not isinstance(values, dict):
        _refuse('The message must be a JSON object, like {"op": "ping"}.')
    return values


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        _refuse("The message gives a field twice.")
    return values


def _no_constant(name: str) -> NoReturn:
    _refuse(f"The message is not JSON: {name} is no number.")


def _refuse(detail: str) -> NoReturn:
    raise InvalidParameterError(MESSAGE, detail)


def _request(values: dict[str, object], *, now_ms: int, max_last: int) -> Request:
    op = values.get("op")
    if not isinstance(op, str) or op not in FIELDS:
        shown = "missing" if op is None else f"not {_shown(op)}"
        raise InvalidParameterError("op", f"op must be one of {', '.join(FIELDS)}, {shown}.")
    body = JsonBody(values, allowed=FIELDS[op])
    if op == "ping":
        return Ping()
    if op == "auth":
        body.text("key")
        return Auth()
    subscription_id = _id(body)
    if op == "unsubscribe":
        return Unsubscribe(subscription_id)
    return Subscribe(subscription_id, _query(body, values, now_ms=now_ms, max_last=max_last))


def _id(body: JsonBody) -> str:
    text = body.text("id")
    if len(text) > MAX_ID_LENGTH:
        raise InvalidParameterError("id", f"id is longer than {MAX_ID_LENGTH} characters.")
    return text


def _query(body: JsonBody, values: Mapping[str, object], *, now_ms: int, max_last: int) -> LiveQuery:
    series = Series(body.text("market"), body.text("provider"), body.text("symbol"))
    timeframe = _timeframe(values.get("timeframe"))
    since_ms, last = body.time_ms("since"), _last(values.get("last"), max_last)
    if since_ms is not None and last is not None:
        raise InvalidParameterError("last", "since and last are both given; give one of them, or neither.")
    if since_ms is not None and since_ms > now_ms:
        raise InvalidParameterError("since", "since lies in the future.")
    bars = values.get("bars", "all")
    if bars is not None and bars not in _WHICH:
        raise InvalidParameterError("bars", f"bars must be all or closed, not {_shown(bars)}.")
    return LiveQuery(series=series, timeframe=timeframe, since_ms=since_ms, last=last, closed_only=bars == "closed")


def _timeframe(value: object) -> Timeframe:
    if value is None:
        return Timeframe.M1
    if not isinstance(value, str):
        raise InvalidParameterError("timeframe", f'timeframe must be a string, such as "1m", not {_shown(value)}.')
    check_value("timeframe", value)
    try:
        return Timeframe(value)
    except ValueError:
        names = ", ".join(Timeframe)
        raise UnsupportedTimeframeError(f"There is no timeframe {value[:40]!r}; there are {names}.") from None


def _last(value: object, most: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidParameterError("last", f"last must be a whole number from 1 to {most}, not {_shown(value)}.")
    return value


def _shown(value: object) -> str:
    """The value as JSON, cut; characters that break lines or encodings are escaped."""
    text = json.dumps(value)
    return text if len(text) <= MAX_ID_LENGTH else f"{text[:MAX_ID_LENGTH]}…"


def prefix(subscription_id: str) -> str:
    """What every message of a subscription begins with."""
    return f'{{"id":{_text(subscription_id)},'


def encode(event: LiveEvent) -> str:
    """The rest of a message, after its prefix: the same for all clients."""
    if isinstance(event, BarEvent):
        return f'"type":"bar","bar":{_text(event.bar)},"state":"{event.state.value}"}}'
    if isinstance(event, SnapshotEvent):
        return f'"type":"snapshot","bars":{_text(event.bars)}}}'
    if isinstance(event, GapEvent):
        start, end = event.range
        return f'"type":"gap","start":{start},"end":{end},"verdict":"{event.verdict.value}"}}'
    if isinstance(event, StatusEvent):
        return f'"type":"status","state":"{event.state.value}","detail":{_text(event.detail)}}}'
    if isinstance(event, CaughtUpEvent):
        return '"type":"live"}'
    raise TypeError(event)


def subscribed(query: LiveQuery, *, simulated: bool) -> str:
    """The rest of the message that a subscription exists."""
    content: dict[str, object] = {"type": "subscribed", **query.series._asdict(), "timeframe": query.timeframe.value}
    return _text(content | ({"simulated": True} if simulated else {}))[1:]


UNSUBSCRIBED = '"type":"unsubscribed"}'
PONG = '{"type":"pong"}'


def heartbeat(now_ms: int) -> str:
    """Said to everybody every few seconds."""
    return f'{{"type":"heartbeat","ts":{now_ms}}}'


def error(code: str, detail: str | None, *, of: str | None, parameter: str | None = None) -> str:
    """What is wrong with a message or a subscription; `of`: its id, where it has one."""
    content: dict[str, object] = {"type": "error", "id": of, "code": code}
    if detail is not None:
        content["detail"] = detail
    if parameter is not None:
        content["parameter"] = parameter
    return _text(content)


def _text(value: object) -> str:
    return _json(value).decode()
