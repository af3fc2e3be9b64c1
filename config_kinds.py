"""The kinds of settings: how each is read from text, checked, written and shown. `config.py` declares them."""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from domain.series import Series, WatchedSeries
from domain.times import parse_time_ms

MASK = "***"


def masked_url(url: str) -> str:
    """The URL with `***` for its password and its query, which may hold one too."""
    scheme, _, rest = url.partition("://")
    # By hand: urlsplit takes a bare / ? # or [ in a password for the end of it, and would show the half before.
    user, at, place = rest.rpartition("@")
    name, colon, _ = user.partition(":")
    place, query, _ = place.partition("?")
    return f"{scheme}://{name}{colon and ':' + MASK}{at}{place}{query and '?' + MASK}"


def _anything(_: Any) -> None:
    """Any value is right."""


def _masked(value: Any) -> str:
    return repr(MASK if value else "")


@dataclass(frozen=True)
class Setting:
    """How a setting is read, checked and shown. `read` and `check` raise ValueError saying what would be right."""

    doc: str
    read: Callable[[str], Any] = str
    check: Callable[[Any], None] = _anything
    #: The inverse of `read`.
    write: Callable[[Any], str] = str
    #: The value for logs, without its secrets.
    mask: Callable[[Any], str] = repr


def number(doc: str, kind: type[int] | type[float], low: float, high: float) -> Setting:
    """A number within bounds."""
    noun = "whole number" if kind is int else "number"
    wanted = f"use a {noun} from {low} to {high}"

    def read(text: str) -> float:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is no {noun}; {wanted}") from None

    def check(value: float) -> None:
        if not isfinite(value) or not low <= value <= high:
            raise ValueError(f"{value} is out of range; {wanted}")

    return Setting(doc, read, check)


def choice(doc: str, *names: str, fold: Callable[[str], str] = str.lower) -> Setting:
    """One of a few names."""

    def check(value: str) -> None:
        if value not in names:
            raise ValueError(f"{value!r} is unknown; use one of {', '.join(names)}")

    return Setting(doc, fold, check)


def web_server(doc: str) -> Setting:
    """The name of a web server, which must be installed."""
    known = choice(doc, "hypercorn", "uvicorn")

    def check(name: str) -> None:
        known.check(name)
        needed = ("uvicorn", "httptools") if name == "uvicorn" else ()
        missing = [package for package in needed if find_spec(package) is None]
        if missing:
            raise ValueError(
                f"{' and '.join(missing)} cannot be found; install candlery[uvicorn] "
                "(.venv/bin/pip install -c constraints.txt -e '.[uvicorn]'), or use hypercorn"
            )

    return replace(known, check=check)


def url(doc: str, *schemes: str, may_be_empty: bool = False) -> Setting:
    """A URL with one of the schemes; its password is never shown."""
    wanted = f"use a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}"

    def check(url: str) -> None:
        # No word of the URL itself goes into a fault: it may hold a password.
        if may_be_empty and not url:
            return
        try:
            parts = urlsplit(url)
            place, _ = parts.hostname or parts.query or parts.path, parts.port
        except ValueError:
            raise ValueError(f"its host or port cannot be understood; {wanted}") from None
        if parts.scheme not in schemes:
            raise ValueError(f"{'it begins otherwise' if '://' in url else 'it is no URL'}; {wanted}")
        if "@" in parts.path + parts.query + parts.fragment:
            raise ValueError("its password holds a bare / ? or #; write them as %2F %3F and %23")
        if not place or any(char.isspace() for char in url):
            raise ValueError(f"it names no host; {wanted}")

    return Setting(doc, check=check, mask=lambda url: repr(masked_url(url) if url else ""))


def secret(doc: str) -> Setting:
    """Text that is never shown."""
    return Setting(doc, mask=_masked)


def comma_list(doc: str, pattern: str, wanted: str) -> Setting:
    """Values with commas between."""

    def read(text: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))

    def check(parts: tuple[str, ...]) -> None:
        bad = [part for part in parts if not re.fullmatch(pattern, part)]
        if bad:
            raise ValueError(f"{', '.join(map(repr, bad))} cannot be used; {wanted}")

    return Setting(doc, read, check, write=",".join)


def ccxt_options(doc: str) -> Setting:
    """Constructor options of CCXT by exchange."""
    wanted = 'use a JSON object of objects by exchange id, like {"binance": {"timeout": 10000}}'

    def read(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"it is not JSON ({error}); {wanted}") from None

    def check(options: Any) -> None:
        if not isinstance(options, Mapping):
            raise ValueError(f"it is {_json_kind(options)}; {wanted}")  # noqa: TRY004 - a fault, like the others
        bad = [f"{key!r} is {_json_kind(value)}" for key, value in options.items() if not isinstance(value, Mapping)]
        bad += [f"{key!r} is no exchange id" for key in options if not re.fullmatch(r"[a-z0-9]+", key)]
        if bad:
            raise ValueError(f"{', '.join(bad)}; {wanted}")

    def mask(options: Mapping[str, object]) -> str:
        return repr(dict.fromkeys(options, MASK))

    return Setting(doc, read, check, write=lambda options: json.dumps(options) if options else "", mask=mask)


def _json_kind(value: Any) -> str:
    kinds = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def host(doc: str) -> Setting:
    """An address or a host name to listen on."""

    def check(host: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9.:_%-]+", host):
            raise ValueError(f"{host!r} is no host; use an address or a name alone, like 127.0.0.1")

    return Setting(doc, check=check)


def folder(doc: str) -> Setting:
    """A folder, made where it is missing."""

    def check(path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; use a folder, which is made where it is missing")

    return Setting(doc, lambda text: Path(text).expanduser().absolute(), check)


def watch_list(doc: str) -> Setting:
    """Series that are kept complete from a time on."""
    wanted = "use market/provider/symbol@start with commas between, like crypto/binance/BTC/USDT@2024-01-01"

    def read(text: str) -> tuple[WatchedSeries, ...]:
        found, faults = [], []
        for part in filter(None, (part.strip() for part in text.split(","))):
            try:
                found.append(_watched(part))
            except ValueError as error:
                faults.append(str(error))
        if faults:
            raise ValueError(f"{'; '.join(faults)}; {wanted}")
        return tuple(found)

    def check(watched: tuple[WatchedSeries, ...]) -> None:
        every = [str(one.series) for one in watched]
        faults = [f"{name} is named more than once" for name in dict.fromkeys(every) if every.count(name) > 1]
        now_ms = time.time() * 1000
        faults += [f"the start of {one.series} lies in the future" for one in watched if one.start_ms > now_ms]
        if faults:
            raise ValueError(f"{'; '.join(faults)}; name each series once, with a start in the past")

    def write(watched: tuple[WatchedSeries, ...]) -> str:
        return ",".join(f"{one.series}@{one.start_ms}" for one in watched)

    return Setting(doc, read, check, write)


def _watched(text: str) -> WatchedSeries:
    # Symbols hold slashes, colons and dashes, so the first two slashes and the last @ count.
    name, _, start = text.rpartition("@")
    series = Series(*(part.strip() for part in name.split("/", 2))) if name.count("/") > 1 else None
    if series is None or not all(series):
        raise ValueError(f"{text!r} is no series with a start")
    try:
        return WatchedSeries(series, parse_time_ms(start))
    except ValueError as error:
        raise ValueError(f"the start of {series}: {error}") from None
