"""The one strict parser of JSON bodies: what is unknown, doubled, empty or of the wrong kind is an error."""

import json
import re
from collections.abc import Collection, Mapping
from typing import NoReturn, TypeVar

from quart import request

from blueprints.errors import UnsupportedMediaTypeError
from blueprints.params import check_name, check_value
from domain.errors import InvalidParameterError
from domain.times import parse_time_ms

#: The parameter that errors of the body as a whole name.
BODY = "body"

#: Half of a surrogate pair: JSON can spell it, UTF-8 cannot.
_SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS: Mapping[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
}

T = TypeVar("T")


async def read_json(*, allowed: Collection[str], may_be_empty: bool = False) -> "JsonBody":
    """The body of the current request.

    Raises:
        UnsupportedMediaTypeError: the request does not say that it is JSON.
        InvalidParameterError: it is no JSON object, or names something unknown.
    """
    raw = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    if not raw and may_be_empty:
        return JsonBody({}, allowed=allowed)
    if raw:
        _check_kind()
    return parse_json(raw, allowed=allowed)


def parse_json(raw: bytes, *, allowed: Collection[str]) -> "JsonBody":
    """One JSON object with no other fields than those allowed.

    Raises:
        InvalidParameterError: it is anything else.
    """
    if not raw.strip():
        raise _wrong_body(f"The body is empty; it must be a JSON object with {', '.join(allowed)}.")
    values = _decoded(raw)
    if not isinstance(values, dict):
        raise _wrong_body(f"The body must be a JSON object, not {_kind(values)}.")
    return JsonBody(values, allowed=allowed)


class JsonBody:
    """The fields of one JSON object. One that is null counts as not given."""

    def __init__(self, values: Mapping[str, object], *, allowed: Collection[str]) -> None:
        """Check the names.

        Raises:
            InvalidParameterError: names the first that is unknown.
        """
        for name in values:
            check_name(_SURROGATE.sub("?", name), allowed)
        self._values = values

    def text(self, name: str) -> str:
        """A string that must be given."""
        value = self._required(name, str, 'a string, such as "binance"')
        _check_text(name, name, value)
        return value

    def texts(self, name: str, *, most: int) -> list[str]:
        """A list of 1 to `most` different strings that must be given."""
        values = self._required(name, list, 'a list of strings, such as ["BTC/USDT"]')
        if not 1 <= len(values) <= most:
            raise InvalidParameterError(name, f"{name} must hold 1 to {most} strings, not {len(values)}.")
        seen: set[str] = set()
        for at, value in enumerate(values):
            if not isinstance(value, str):
                raise InvalidParameterError(name, f"{name}[{at}] must be a string, not {_kind(value)}.")
            _check_text(name, f"{name}[{at}]", value)
            if value in seen:
                raise InvalidParameterError(name, f"{name} holds {value!r} twice.")
            seen.add(value)
        return values

    def flag(self, name: str) -> bool:
        """True or false; false where it is not given."""
        value = self._values.get(name)
        return False if value is None else _of_kind(name, value, bool, "true or false")

    def time_ms(self, name: str) -> int | None:
        """A time in UTC epoch milliseconds, or None where it is not given."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int | str):
            given = "a fraction" if isinstance(value, float) else _kind(value)
            msg = f"{name} must be ISO-8601 in a string or whole epoch milliseconds, not {given}."
            raise InvalidParameterError(name, msg)
        try:
            return parse_time_ms(str(value))
        except ValueError as exc:
            raise InvalidParameterError(name, f"{name}: {exc}.") from None

    def required_time_ms(self, name: str) -> int:
        """A time that must be given."""
        value = self.time_ms(name)
        if value is None:
            raise InvalidParameterError(name, f"{name} is missing; give ISO-8601 or epoch milliseconds.")
        return value

    def _required(self, name: str, kind: type[T], wanted: str) -> T:
        value = self._values.get(name)
        if value is None:
            raise InvalidParameterError(name, f"{name} is missing; it must be {wanted}.")
        return _of_kind(name, value, kind, wanted)


def _check_kind() -> None:
    if request.mimetype != "application/json":
        given = repr(request.mimetype[:40]) if request.mimetype else "nothing"
        raise UnsupportedMediaTypeError(f"The body must be sent with Content-Type: application/json, not {given}.")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaTypeError("The body must be sent as it is, without a Content-Encoding.")


def _decoded(raw: bytes) -> object:
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant)
    except UnicodeDecodeError as exc:
        raise _wrong_body(f"The body is not UTF-8 (at byte {exc.start}).") from None
    except json.JSONDecodeError as exc:
        raise _wrong_body(f"The body is not JSON: {exc.msg} (line {exc.lineno}, column {exc.colno}).") from None
    except RecursionError:
        raise _wrong_body("The body is not understood: it is nested too deeply.") from None
    except ValueError:
        raise _wrong_body("The body is not understood: it holds a number of too many digits.") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, value in pairs:
        if name in values:
            shown = _SURROGATE.sub("?", name[:40])
            raise InvalidParameterError(shown, f"{shown!r} may be given once only.")
        values[name] = value
    return values


def _no_constant(name: str) -> NoReturn:
    raise _wrong_body(f"The body is not JSON: {name} is no number.")


def _of_kind(name: str, value: object, kind: type[T], wanted: str) -> T:
    if not isinstance(value, kind):
        raise InvalidParameterError(name, f"{name} must be {wanted}, not {_kind(value)}.")
    return value


def _check_text(name: str, shown: str, value: str) -> None:
    check_value(name, value, shown=shown)
    if _SURROGATE.search(value):
        raise InvalidParameterError(name, f"{shown} holds half of a surrogate pair.")


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "null")


def _wrong_body(detail: str) -> InvalidParameterError:
    return InvalidParameterError(BODY, detail)
