"""Settings. This is the only module that reads the environment; everybody else is handed a `BaseConfig`.

Each setting is declared once, as a field of `BaseConfig` annotated with a `Setting`; its variable is the field's name
in upper case behind `CANDLERY_`. docs/settings.md and .env.example are tested against these declarations.
"""

import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, get_type_hints
from urllib.parse import urlsplit

from dotenv.parser import parse_stream

from domain.errors import CandleryError
from plugins.ccxt_rules import DEFAULT_EXCHANGES, exchange_ids

PREFIX = "CANDLERY_"
#: Variables that only the tests read: no settings, and no mistakes either.
TEST_VARIABLES = ("CANDLERY_TEST_", "CANDLERY_RECORDINGS")
MASK = "***"


class ConfigError(CandleryError):
    """Settings are wrong; `faults` names each of them."""

    def __init__(self, faults: list[str]) -> None:
        """Take what is wrong, a sentence a setting."""
        super().__init__("\n".join(["These settings are wrong:", *(f"  {fault}" for fault in faults)]))
        self.faults = tuple(faults)


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


def _number(doc: str, kind: type[int] | type[float], low: float, high: float) -> Setting:
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


def _choice(doc: str, *names: str, fold: Callable[[str], str] = str.lower) -> Setting:
    def check(value: str) -> None:
        if value not in names:
            raise ValueError(f"{value!r} is unknown; use one of {', '.join(names)}")

    return Setting(doc, fold, check)


def _url(doc: str, *schemes: str, may_be_empty: bool = False) -> Setting:
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


def _secret(doc: str) -> Setting:
    return Setting(doc, mask=_masked)


def _comma_list(doc: str, pattern: str, wanted: str) -> Setting:
    def read(text: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))

    def check(parts: tuple[str, ...]) -> None:
        bad = [part for part in parts if not re.fullmatch(pattern, part)]
        if bad:
            raise ValueError(f"{', '.join(map(repr, bad))} cannot be used; {wanted}")

    return Setting(doc, read, check, write=",".join)


def _ccxt_options(doc: str) -> Setting:
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


def _host(doc: str) -> Setting:
    def check(host: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9.:_%-]+", host):
            raise ValueError(f"{host!r} is no host; use an address or a name alone, like 127.0.0.1")

    return Setting(doc, check=check)


def _folder(doc: str) -> Setting:
    def check(path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; use a folder, which is made where it is missing")

    return Setting(doc, lambda text: Path(text).expanduser().absolute(), check)


# Named, since classes below give them other defaults.
_Port = Annotated[int, _number("Port that the server listens on; 0: any free one", int, 0, 65_535)]
_LogFormat = Annotated[str, _choice("Log lines for people (`text`) or for machines (`json`)", "text", "json")]
_LogLevel = Annotated[
    str, _choice("Least severe lines to log", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", fold=str.upper)
]


@dataclass(frozen=True, kw_only=True, repr=False)
class BaseConfig:
    """All settings, frozen. `repr` masks the secret ones."""

    env: ClassVar[str] = "development"

    host: Annotated[str, _host("Address that the server listens on")] = "127.0.0.1"
    port: _Port = 8000
    data_dir: Annotated[
        Path, _folder("Folder of the embedded database and other files; empty: `data` in the current folder")
    ] = field(default_factory=lambda: Path("data").absolute())
    database_url: Annotated[
        str, _url("PostgreSQL or TimescaleDB; empty: embedded PostgreSQL", "postgresql", "postgres", may_be_empty=True)
    ] = ""
    redis_url: Annotated[
        str,
        _url("Redis or Valkey; empty: in-process cache and broadcast", "redis", "rediss", "unix", may_be_empty=True),
    ] = ""
    ccxt_options: Annotated[
        Mapping[str, Mapping[str, Any]],
        _ccxt_options("JSON `{exchange_id: {...}}`, merged deeply into that exchange's CCXT constructor"),
    ] = field(default_factory=dict)
    crypto_exchanges: Annotated[
        tuple[str, ...],
        _comma_list("CCXT exchange ids of the market `crypto`", r"[a-z0-9]+", "use CCXT exchange ids, like kraken,okx"),
    ] = DEFAULT_EXCHANGES
    alpaca_key_id: Annotated[str, _secret("Alpaca's API key id")] = ""
    alpaca_secret_key: Annotated[str, _secret("Alpaca's API secret key")] = ""
    alpaca_feed: Annotated[
        str, _choice("Alpaca's stock feed", "iex", "sip", "delayed_sip", "otc", "boats", "overnight")
    ] = "iex"
    alpaca_data_url: Annotated[str, _url("Alpaca's market data", "https", "http")] = "https://data.alpaca.markets"
    alpaca_trading_url: Annotated[
        str, _url("Alpaca's list of assets; https://api.alpaca.markets for live accounts' keys", "https", "http")
    ] = "https://paper-api.alpaca.markets"
    alpaca_stream_url: Annotated[str, _url("Alpaca's stream", "wss", "ws")] = "wss://stream.data.alpaca.markets"
    credentials_key: Annotated[str, _secret("Key that stored provider credentials are encrypted with")] = ""
    cors_origins: Annotated[
        tuple[str, ...],
        _comma_list(
            "Origins, with commas between, whose pages may call the API; `*`: all; empty: none",
            r"\*|https?://[A-Za-z0-9.:\[\]_-]+",
            "use origins like https://charts.example.org, without a path, or *",
        ),
    ] = ()
    auth: Annotated[str, _choice("Whether clients must show a key", "off", "on")] = "off"
    log_level: _LogLevel = "INFO"
    log_format: _LogFormat = "text"

    db_pool_min: Annotated[int, _number("Database connections kept open", int, 0, 1_000)] = 2
    db_pool_max: Annotated[int, _number("Most database connections", int, 1, 1_000)] = 10
    max_limit: Annotated[int, _number("Most bars in one answer", int, 1, 10_000)] = 10_000
    max_symbols: Annotated[int, _number("Most symbols in one request", int, 1, 1_000)] = 50
    max_coverage_buckets: Annotated[
        int, _number("Most buckets that one coverage request may span", int, 1_000, 100_000_000)
    ] = 1_000_000
    cache_bytes: Annotated[int, _number("Most memory for the in-process cache, in bytes", int, 1 << 20, 1 << 40)] = (
        64 << 20
    )
    provider_timeout_s: Annotated[float, _number("For one call to a provider", float, 0.1, 300)] = 10.0
    request_timeout_s: Annotated[float, _number("For one request of a client", float, 0.1, 600)] = 30.0
    db_timeout_s: Annotated[float, _number("For one database statement", float, 0.1, 600)] = 10.0
    redis_timeout_s: Annotated[float, _number("For one call to Redis", float, 0.01, 10)] = 0.25
    shutdown_timeout_s: Annotated[
        float, _number("For requests under way when the server is told to stop", float, 0, 60)
    ] = 4.0
    cache_ttl_s: Annotated[float, _number("How long the cache keeps bars", float, 1, 31_536_000)] = 3_600.0
    plugin_idle_s: Annotated[float, _number("Unused providers are closed after this", float, 1, 31_536_000)] = 900.0

    demo_seed: Annotated[int, _number("Seed of the simulated market", int, 0, 2**63 - 1)] = 1
    retention_days: Annotated[int, _number("Bars older than this are dropped; 0: never", int, 0, 36_500)] = 0
    compress_after_days: Annotated[
        int, _number("TimescaleDB compresses bars older than this; 0: never", int, 0, 36_500)
    ] = 30

    def validate(self) -> None:
        """Check all settings.

        Raises:
            ConfigError: names every bad setting at once.
        """
        faults = [f"{name}: {fault}" for name, fault in self._faults()]
        if faults:
            raise ConfigError(faults)

    def _faults(self) -> Iterator[tuple[str, str]]:
        for declared in SETTINGS:
            try:
                declared.setting.check(getattr(self, declared.field))
            except ValueError as error:
                yield declared.name, str(error)
        if self.db_pool_min > self.db_pool_max:
            yield f"{PREFIX}DB_POOL_MIN", f"{self.db_pool_min} is more than {PREFIX}DB_POOL_MAX, {self.db_pool_max}"
        if bool(self.alpaca_key_id) != bool(self.alpaca_secret_key):
            missing = "SECRET_KEY" if self.alpaca_key_id else "KEY_ID"
            yield f"{PREFIX}ALPACA_{missing}", "it is missing; set both of Alpaca's keys, or neither"
        yield from self._unknown_exchanges()
        if self.auth == "on":
            yield f"{PREFIX}AUTH", "authentication is not available in this version; use off and listen on 127.0.0.1"

    def _unknown_exchanges(self) -> Iterator[tuple[str, str]]:
        for name, ids in (("CRYPTO_EXCHANGES", self.crypto_exchanges), ("CCXT_OPTIONS", self.ccxt_options)):
            unknown = [one for one in ids if one not in exchange_ids()]
            if unknown and isinstance(ids, tuple | Mapping):
                close = get_close_matches(unknown[0], exchange_ids(), n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                yield f"{PREFIX}{name}", f"CCXT has no exchange {', '.join(map(repr, unknown))}{hint}"

    def __repr__(self) -> str:
        """All settings, the secret ones masked."""
        shown = (f"{item.field}={item.setting.mask(getattr(self, item.field))}" for item in SETTINGS)
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, kw_only=True, repr=False)
class DevelopmentConfig(BaseConfig):
    """For one's own machine."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ProductionConfig(BaseConfig):
    """For a server that others can reach."""

    env: ClassVar[str] = "production"

    log_format: _LogFormat = "json"

    def _faults(self) -> Iterator[tuple[str, str]]:
        yield from super()._faults()
        if self.auth == "off":
            yield f"{PREFIX}AUTH", f"off is refused in production; use {PREFIX}ENV=development on 127.0.0.1"


@dataclass(frozen=True, kw_only=True, repr=False)
class TestingConfig(BaseConfig):
    """For tests: any free port, and quiet."""

    __test__: ClassVar[bool] = False
    env: ClassVar[str] = "testing"

    port: _Port = 0
    log_level: _LogLevel = "WARNING"


def _declared() -> "Iterator[DeclaredSetting]":
    hints = get_type_hints(BaseConfig, include_extras=True)
    for item in fields(BaseConfig):
        default = item.default if item.default_factory is MISSING else item.default_factory()
        yield DeclaredSetting(PREFIX + item.name.upper(), item.name, default, hints[item.name].__metadata__[0])


class DeclaredSetting(NamedTuple):
    """A setting with its variable's name, its field's name and its default in `BaseConfig`."""

    name: str
    field: str
    default: Any
    setting: Setting


#: Every setting but CANDLERY_ENV, which chooses the class.
SETTINGS = tuple(_declared())
ENVIRONMENTS: Mapping[str, type[BaseConfig]] = {
    kind.env: kind for kind in (DevelopmentConfig, ProductionConfig, TestingConfig)
}
ENV_VARIABLE = f"{PREFIX}ENV"


def load_config(
    environ: Mapping[str, str] | None = None, *, env_file: Path | None = Path(".env"), **overrides: Any
) -> BaseConfig:
    """Read and check the settings.

    Args:
        environ: the environment; by default this process's own. What it sets wins over `env_file`.
        env_file: lines of `NAME=value`; may be missing.
        overrides: values of fields (the command line's) that win over both.

    Raises:
        ConfigError: names every bad setting at once.
    """
    faults: dict[str, str] = {}
    variables = {**_file_variables(env_file, faults), **_ours(os.environ if environ is None else environ)}
    kind = _environment(variables.pop(ENV_VARIABLE, ""), faults)
    config = kind(**(_values(variables, faults) | overrides))
    for name, fault in config._faults():  # noqa: SLF001 - the same module
        faults.setdefault(name, fault)
    if faults:
        raise ConfigError([f"{name}: {fault}" for name, fault in faults.items()])
    return config


def _ours(variables: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value.strip()
        for name, value in variables.items()
        if name.startswith(PREFIX) and not name.startswith(TEST_VARIABLES)
    }


def _file_variables(path: Path | None, faults: dict[str, str]) -> dict[str, str]:
    if path is None or not path.exists():
        return {}
    try:
        # Not dotenv_values: it passes over bad lines, and fills in ${NAME} from the environment behind our back.
        bindings = list(parse_stream(io.StringIO(path.read_text("utf-8-sig"))))
    except (OSError, UnicodeDecodeError) as error:
        faults[str(path)] = f"it cannot be read ({error}); use UTF-8 lines of NAME=value, or remove it"
        return {}
    for line in (binding.original.line for binding in bindings if binding.error):
        faults[f"{path}, line {line}"] = "it is not understood; use NAME=value"
    return _ours({binding.key: binding.value or "" for binding in bindings if binding.key is not None})


def _environment(text: str, faults: dict[str, str]) -> type[BaseConfig]:
    name = text.lower() or DevelopmentConfig.env
    if name not in ENVIRONMENTS:
        faults[ENV_VARIABLE] = f"{text!r} is unknown; use one of {', '.join(ENVIRONMENTS)}"
    return ENVIRONMENTS.get(name, DevelopmentConfig)


def _values(variables: Mapping[str, str], faults: dict[str, str]) -> dict[str, Any]:
    known = {item.name: item for item in SETTINGS}
    values = {}
    for name, text in variables.items():
        if name not in known:
            close = get_close_matches(name, [*known, ENV_VARIABLE], n=1)
            faults[name] = "there is no such setting" + (f"; did you mean {close[0]}?" if close else "; remove it")
        elif text:  # empty is as good as unset
            try:
                values[known[name].field] = known[name].setting.read(text)
            except ValueError as error:
                faults[name] = str(error)
    return values
