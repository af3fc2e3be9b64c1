"""Settings. This is the only module that reads the environment; everybody else is handed a `BaseConfig`.

Each setting is declared once, as a field of `BaseConfig` annotated with a `Setting`; its variable is the field's name
in upper case behind `CANDLERY_`. docs/settings.md and .env.example are tested against these declarations.
"""

import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, get_type_hints

from dotenv.parser import parse_stream

import config_kinds as kinds
from config_kinds import Setting
from domain.errors import CandleryError
from domain.series import WatchedSeries
from plugins.ccxt_rules import DEFAULT_EXCHANGES, exchange_ids

PREFIX = "CANDLERY_"
#: Variables that only the tests read: no settings, and no mistakes either.
TEST_VARIABLES = ("CANDLERY_TEST_", "CANDLERY_RECORDINGS")


class ConfigError(CandleryError):
    """Settings are wrong; `faults` names each of them."""

    def __init__(self, faults: list[str]) -> None:
        """Take what is wrong, a sentence a setting."""
        super().__init__("\n".join(["These settings are wrong:", *(f"  {fault}" for fault in faults)]))
        self.faults = tuple(faults)


# Named, since classes below give them other defaults.
_Port = Annotated[int, kinds.number("Port that the server listens on; 0: any free one", int, 0, 65_535)]
_LogFormat = Annotated[str, kinds.choice("Log lines for people (`text`) or for machines (`json`)", "text", "json")]
_LogLevel = Annotated[
    str, kinds.choice("Least severe lines to log", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", fold=str.upper)
]


@dataclass(frozen=True, kw_only=True, repr=False)
class BaseConfig:
    """All settings, frozen. `repr` masks the secret ones."""

    env: ClassVar[str] = "development"

    host: Annotated[str, kinds.host("Address that the server listens on")] = "127.0.0.1"
    port: _Port = 8000
    server: Annotated[
        str, kinds.web_server("Web server: `hypercorn`, or `uvicorn`, which is faster and has to be installed besides")
    ] = "hypercorn"
    data_dir: Annotated[
        Path, kinds.folder("Folder of the embedded database and other files; empty: `data` in the current folder")
    ] = field(default_factory=lambda: Path("data").absolute())
    database_url: Annotated[
        str,
        kinds.url("PostgreSQL or TimescaleDB; empty: embedded PostgreSQL", "postgresql", "postgres", may_be_empty=True),
    ] = ""
    redis_url: Annotated[
        str,
        kinds.url(
            "Redis or Valkey; empty: in-process cache and broadcast", "redis", "rediss", "unix", may_be_empty=True
        ),
    ] = ""
    ccxt_options: Annotated[
        Mapping[str, Mapping[str, Any]],
        kinds.ccxt_options("JSON `{exchange_id: {...}}`, merged deeply into that exchange's CCXT constructor"),
    ] = field(default_factory=dict)
    crypto_exchanges: Annotated[
        tuple[str, ...],
        kinds.comma_list(
            "CCXT exchange ids of the market `crypto`", r"[a-z0-9]+", "use CCXT exchange ids, like kraken,okx"
        ),
    ] = DEFAULT_EXCHANGES
    alpaca_key_id: Annotated[str, kinds.secret("Alpaca's API key id")] = ""
    alpaca_secret_key: Annotated[str, kinds.secret("Alpaca's API secret key")] = ""
    alpaca_feed: Annotated[
        str, kinds.choice("Alpaca's stock feed", "iex", "sip", "delayed_sip", "otc", "boats", "overnight")
    ] = "iex"
    alpaca_data_url: Annotated[str, kinds.url("Alpaca's market data", "https", "http")] = "https://data.alpaca.markets"
    alpaca_trading_url: Annotated[
        str, kinds.url("Alpaca's list of assets; https://api.alpaca.markets for live accounts' keys", "https", "http")
    ] = "https://paper-api.alpaca.markets"
    alpaca_stream_url: Annotated[str, kinds.url("Alpaca's stream", "wss", "ws")] = "wss://stream.data.alpaca.markets"
    credentials_key: Annotated[str, kinds.secret("Key that stored provider credentials are encrypted with")] = ""
    cors_origins: Annotated[
        tuple[str, ...],
        kinds.comma_list(
            "Origins, with commas between, whose pages may call the API; `*`: all; empty: none",
            r"\*|https?://[A-Za-z0-9.:\[\]_-]+",
            "use origins like https://charts.example.org, without a path, or *",
        ),
    ] = ()
    auth: Annotated[str, kinds.choice("Whether clients must show a key", "off", "on")] = "off"
    log_level: _LogLevel = "INFO"
    log_format: _LogFormat = "text"

    db_pool_min: Annotated[int, kinds.number("Database connections kept open", int, 0, 1_000)] = 2
    db_pool_max: Annotated[int, kinds.number("Most database connections", int, 1, 1_000)] = 10
    max_limit: Annotated[int, kinds.number("Most bars in one answer", int, 1, 10_000)] = 10_000
    max_symbols: Annotated[int, kinds.number("Most symbols in one request", int, 1, 1_000)] = 50
    max_coverage_buckets: Annotated[
        int, kinds.number("Most buckets that one coverage request may span", int, 1_000, 100_000_000)
    ] = 1_000_000
    cache_bytes: Annotated[
        int, kinds.number("Most memory for the in-process cache, in bytes; 0: nothing is cached", int, 0, 1 << 40)
    ] = 64 << 20
    answer_cache_bytes: Annotated[
        int, kinds.number("Most memory for whole answers that are given again, in bytes; 0: none", int, 0, 1 << 40)
    ] = 32 << 20
    provider_timeout_s: Annotated[float, kinds.number("For one call to a provider", float, 0.1, 300)] = 10.0
    request_timeout_s: Annotated[float, kinds.number("For one request of a client", float, 0.1, 600)] = 30.0
    db_timeout_s: Annotated[float, kinds.number("For one database statement", float, 0.1, 600)] = 10.0
    redis_timeout_s: Annotated[float, kinds.number("For one call to Redis", float, 0.01, 10)] = 0.25
    shutdown_timeout_s: Annotated[
        float, kinds.number("For requests under way when the server is told to stop", float, 0, 60)
    ] = 4.0
    cache_ttl_s: Annotated[float, kinds.number("How long the cache keeps bars", float, 1, 31_536_000)] = 3_600.0
    plugin_idle_s: Annotated[float, kinds.number("Unused providers are closed after this", float, 1, 31_536_000)] = (
        900.0
    )

    backfill_jobs: Annotated[
        int, kinds.number("Backfill jobs that this process works on at once; 0: it leaves them to others", int, 0, 64)
    ] = 4
    backfill_attempts: Annotated[
        int, kinds.number("Tries before a chunk of a backfill counts as failed", int, 1, 100)
    ] = 10
    recheck_calls: Annotated[
        int, kinds.number("Most calls a minute to look again at empty minutes; 0: never", int, 0, 10_000)
    ] = 60
    watch: Annotated[
        tuple[WatchedSeries, ...],
        kinds.watch_list("Series kept complete: `market/provider/symbol@start`, with commas between"),
    ] = ()
    heal_interval_s: Annotated[
        float, kinds.number("How often watched series are looked at for holes", float, 1, 86_400)
    ] = 300.0

    stream_max_clients: Annotated[int, kinds.number("Most WebSocket clients at once", int, 1, 1_000_000)] = 10_000
    stream_max_subscriptions: Annotated[
        int, kinds.number("Most subscriptions of one WebSocket client", int, 1, 100_000)
    ] = 500
    stream_queue_items: Annotated[
        int, kinds.number("Most messages that wait for one client; one more closes it with 4008", int, 10, 1_000_000)
    ] = 10_000
    stream_queue_bytes: Annotated[
        int, kinds.number("Most bytes that wait for one client; more close it with 4008", int, 1 << 17, 1 << 30)
    ] = 8 << 20
    stream_message_bytes: Annotated[
        int, kinds.number("Longest message that a WebSocket client may send", int, 1 << 10, 1 << 24)
    ] = 64 << 10
    stream_message_rate: Annotated[
        float, kinds.number("Messages a second that a WebSocket client may send", float, 0.1, 100_000)
    ] = 50.0
    stream_message_burst: Annotated[
        int, kinds.number("Messages that a WebSocket client may send at once", int, 1, 1_000_000)
    ] = 1_000
    stream_timeout_s: Annotated[
        float, kinds.number("A client that answers no ping, or takes nothing, for so long is cut off", float, 20, 3_600)
    ] = 60.0
    stream_grace_s: Annotated[
        float, kinds.number("How long a live series is followed after its last client left", float, 0, 86_400)
    ] = 30.0
    stream_lease_s: Annotated[
        float, kinds.number("After so long without a sign of life another server follows its series", float, 1, 60)
    ] = 5.0

    demo_seed: Annotated[int, kinds.number("Seed of the simulated market", int, 0, 2**63 - 1)] = 1
    retention_days: Annotated[int, kinds.number("Bars older than this are dropped; 0: never", int, 0, 36_500)] = 0
    compress_after_days: Annotated[
        int, kinds.number("TimescaleDB compresses bars older than this; 0: never", int, 0, 36_500)
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
