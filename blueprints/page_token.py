"""Page tokens: where each symbol's next page begins. Opaque to clients, and good for one question only."""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

import msgspec

from domain.errors import InvalidParameterError
from domain.times import LATEST_MS

_VERSION = 1
_DIGEST_BYTES = 12


class Place(NamedTuple):
    """Where a symbol's next page begins; `next_ms` None: it has no more. `carry`: the last close, for a fill."""

    next_ms: int | None
    carry: float | None = None


def make_token(question: Sequence[object], places: Sequence[Place]) -> str:
    """A token for the pages that follow; `question` is everything that must be asked again unchanged."""
    return seal(question, msgspec.msgpack.encode((_VERSION, places)))


def read_token(token: str, question: Sequence[object], *, symbols: int) -> list[Place]:
    """The places that the token stands for.

    Raises:
        InvalidParameterError: it is damaged, made up, or belongs to another question.
    """
    try:
        version, places = msgspec.msgpack.decode(unseal(token, question), type=tuple[int, list[Place]])
    except msgspec.MsgspecError:
        raise wrong_token() from None
    if version != _VERSION or len(places) != symbols or not all(map(_sound, places)):
        raise wrong_token()
    return places


def seal(question: Sequence[object], payload: bytes) -> str:
    """A token that holds the payload and is good for this question only."""
    return _spelled(_digest(question, payload) + payload)


def unseal(token: str, question: Sequence[object]) -> bytes:
    """What `seal` was given.

    Raises:
        InvalidParameterError: the token is damaged, made up, or belongs to another question.
    """
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise wrong_token() from None
    payload = raw[_DIGEST_BYTES:]
    # The second comparison refuses other spellings of the same bytes.
    if raw[:_DIGEST_BYTES] != _digest(question, payload) or _spelled(raw) != token:
        raise wrong_token()
    return payload


def wrong_token() -> InvalidParameterError:
    """What is said of a token that is not good."""
    return InvalidParameterError("page_token", "page_token is damaged, or belongs to a query with other parameters.")


def _spelled(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _digest(question: Sequence[object], payload: bytes) -> bytes:
    return hashlib.sha256(msgspec.msgpack.encode((question, payload))).digest()[:_DIGEST_BYTES]


def _sound(place: Place) -> bool:
    return (place.next_ms is None or 0 <= place.next_ms < LATEST_MS) and (place.carry is None or isfinite(place.carry))
