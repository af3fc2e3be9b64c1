"""What the settings promise: one place reads them, every fault is named at once, and secrets stay secret."""

import ast
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import config_kinds
from config import (
    SETTINGS,
    BaseConfig,
    ConfigError,
    DevelopmentConfig,
    ProductionConfig,
    TestingConfig,
    load_config,
)
from config_kinds import masked_url
from domain.series import Series, WatchedSeries

ROOT = Path(__file__).parent.parent


def load(variables: Mapping[str, str] | None = None, **more: str) -> BaseConfig:
    named = {f"CANDLERY_{name.upper()}": text for name, text in more.items()}
    return load_config({**(variables or {}), **named}, env_file=None)


def faults(**variables: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(**variables)
    return dict(fault.split(": ", 1) for fault in caught.value.faults)


def fault(**variables: str) -> str:
    (only,) = faults(**variables).values()
    return only


def test_without_any_setting_the_defaults_of_the_contract_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    config = load()
    assert isinstance(config, DevelopmentConfig)
    assert (config.host, config.port, config.data_dir) == ("127.0.0.1", 8000, tmp_path / "data")
    assert (config.database_url, config.redis_url, config.auth) == ("", "", "off")
    assert (config.alpaca_feed, config.max_limit, config.max_symbols) == ("iex", 10_000, 50)
    assert config.cors_origins == ()


def test_the_defaults_of_every_environment_are_in_range():
    DevelopmentConfig().validate()
    TestingConfig().validate()
    with pytest.raises(ConfigError, match="CANDLERY_AUTH: off is refused in production"):
        ProductionConfig().validate()


def test_the_environment_chooses_the_class():
    assert isinstance(load(env="Testing"), TestingConfig)
    assert load(env="testing").port == 0
    assert ProductionConfig().log_format == "json"


def test_every_setting_reads_back_what_it_writes():
    written = {s.name: s.setting.write(s.default) for s in SETTINGS}
    assert load(written) == DevelopmentConfig()


def test_values_are_read_in_their_types(tmp_path: Path):
    config = load(
        port="9000",
        provider_timeout_s="2.5",
        crypto_exchanges=" kraken, okx ,kraken",
        ccxt_options='{"binance": {"options": {"defaultType": "spot"}}}',
        cors_origins="https://a.example,http://localhost:3000",
        log_level="debug",
        data_dir=str(tmp_path / "there"),
        database_url="postgresql:///candlery?host=/run/postgresql",
    )
    assert (config.port, config.provider_timeout_s, config.log_level) == (9000, 2.5, "DEBUG")
    assert config.crypto_exchanges == ("kraken", "okx")
    assert config.ccxt_options["binance"] == {"options": {"defaultType": "spot"}}
    assert config.cors_origins == ("https://a.example", "http://localhost:3000")
    assert config.data_dir == tmp_path / "there"


def test_a_relative_data_folder_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert load(data_dir="bars").data_dir == tmp_path / "bars"


def test_an_empty_value_means_the_default():
    assert load(port="", ccxt_options=" ", env="") == DevelopmentConfig()


def test_every_bad_setting_is_named_at_once():
    found = faults(
        env="staging",
        port="http",
        db_pool_min="12",
        database_url="mysql://localhost/db",
        ccxt_options="{",
        crypto_exchanges="Kraken!",
        log_level="loud",
        alpaca_key_id="abc",
        auth="on",
        prot="1",
        cache_ttl_s="nan",
    )
    assert {name.removeprefix("CANDLERY_") for name in found} == {
        "ENV",
        "PORT",
        "DB_POOL_MIN",
        "DATABASE_URL",
        "CCXT_OPTIONS",
        "CRYPTO_EXCHANGES",
        "LOG_LEVEL",
        "ALPACA_SECRET_KEY",
        "AUTH",
        "PROT",
        "CACHE_TTL_S",
    }


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"env": "staging"}, "'staging' is unknown; use one of development, production, testing"),
        ({"port": "http"}, "'http' is no whole number; use a whole number from 0 to 65535"),
        ({"port": "65536"}, "65536 is out of range; use a whole number from 0 to 65535"),
        ({"port": "-1"}, "-1 is out of range"),
        ({"port": "80.5"}, "no whole number"),
        ({"db_timeout_s": "soon"}, "'soon' is no number; use a number from 0.1 to 600"),
        ({"db_timeout_s": "inf"}, "out of range"),
        ({"host": "http://localhost"}, "use an address or a name alone"),
        ({"database_url": "localhost:5432"}, "use a URL that begins with postgresql:// or postgres://"),
        ({"database_url": "postgresql://"}, "it names no host"),
        ({"database_url": "postgresql://h:99999/db"}, "its host or port cannot be understood"),
        ({"redis_url": "http://localhost"}, "it begins otherwise; use a URL that begins with redis://"),
        ({"alpaca_data_url": "data.alpaca.markets"}, "it is no URL; use a URL that begins with https://"),
        ({"alpaca_stream_url": "https://stream"}, "use a URL that begins with wss://"),
        ({"ccxt_options": "{binance: 1}"}, "it is not JSON"),
        ({"ccxt_options": "[]"}, "it is a list; use a JSON object of objects by exchange id"),
        ({"ccxt_options": '{"binance": 5, "okx": null}'}, "'binance' is a number, 'okx' is null"),
        ({"ccxt_options": '{"Binance US": {}}'}, "'Binance US' is no exchange id"),
        ({"cors_origins": "https://a.example/path"}, "'https://a.example/path' cannot be used"),
        ({"log_format": "xml"}, "use one of text, json"),
        ({"auth": "on"}, "authentication is not available in this version"),
        ({"db_pool_min": "9", "db_pool_max": "3"}, "9 is more than CANDLERY_DB_POOL_MAX, 3"),
        ({"alpaca_secret_key": "abc"}, "set both of Alpaca's keys, or neither"),
        ({"prot": "1"}, "there is no such setting; did you mean CANDLERY_PORT?"),
        ({"zzzzzzzzzzzzz": "1"}, "there is no such setting; remove it"),
    ],
)
def test_a_fault_says_what_is_wrong_and_what_would_be_right(variables: dict[str, str], words: str):
    assert words in fault(**variables)


def test_a_data_folder_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert "is a file" in fault(data_dir=str(tmp_path / "file"))


@pytest.mark.parametrize("auth", ["on", "off"])
def test_production_does_not_start_while_there_is_no_authentication(auth: str):
    assert set(faults(env="production", auth=auth)) == {"CANDLERY_AUTH"}


def test_variables_of_the_tests_and_of_others_are_left_alone():
    others = {"CANDLERY_TEST_DATABASE_URL": "x", "CANDLERY_RECORDINGS": "x", "PATH": "/bin", "POSTGRES_PASSWORD": "x"}
    assert load(others) == DevelopmentConfig()


def test_the_real_environment_wins_over_the_file(tmp_path: Path):
    env_file = tmp_path / ".env"
    env_file.write_text("# mine\nexport CANDLERY_PORT=1111\nCANDLERY_HOST='0.0.0.0'\nOTHER=x\n")
    config = load_config({"CANDLERY_PORT": "2222"}, env_file=env_file)
    assert (config.host, config.port) == ("0.0.0.0", 2222)


def test_the_command_line_wins_over_both(tmp_path: Path):
    (tmp_path / ".env").write_text("CANDLERY_PORT=1111\n")
    assert load_config({"CANDLERY_PORT": "2222"}, env_file=tmp_path / ".env", port=3333).port == 3333


def test_a_command_line_value_out_of_range_is_named():
    with pytest.raises(ConfigError, match="CANDLERY_PORT: 70000 is out of range"):
        load_config({}, env_file=None, port=70_000)


def test_a_missing_file_is_no_fault(tmp_path: Path):
    assert load_config({}, env_file=tmp_path / "none") == DevelopmentConfig()


def test_a_line_of_the_file_that_is_not_understood_is_named(tmp_path: Path):
    env_file = tmp_path / ".env"
    env_file.write_text("CANDLERY_PORT=1\n'half\n")
    with pytest.raises(ConfigError, match=r"\.env, line 2: it is not understood"):
        load_config({}, env_file=env_file)


def test_a_file_that_is_not_text_is_named(tmp_path: Path):
    env_file = tmp_path / ".env"
    env_file.write_bytes(b"CANDLERY_PORT=\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config({}, env_file=env_file)


def test_a_value_in_the_file_is_taken_as_it_stands(tmp_path: Path):
    env_file = tmp_path / ".env"
    env_file.write_text('CANDLERY_CCXT_OPTIONS={"okx": {"apiKey": "${PATH}"}}\n')
    assert load_config({}, env_file=env_file).ccxt_options == {"okx": {"apiKey": "${PATH}"}}


def test_the_process_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CANDLERY_PORT", "4321")
    assert load_config(env_file=None).port == 4321


SECRETS = {
    "database_url": "postgresql://user:hunter2@localhost/db",
    "redis_url": "redis://:hunter2@localhost?password=hunter2",
    "alpaca_key_id": "hunter2",
    "alpaca_secret_key": "hunter2",
    "credentials_key": "hunter2",
    "ccxt_options": '{"binance": {"apiKey": "hunter2", "httpsProxy": "http://u:hunter2@proxy"}}',
}


def test_no_secret_is_shown():
    config = load(**SECRETS)
    shown = f"{config!r} {config}"
    assert "hunter2" not in shown
    assert "user:***@localhost/db" in shown
    assert "binance" in shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@[localhost/db",
        "postgresql://user:hunter2@localhost:port/db",
        "postgresql://user:hunter2/rest@localhost/db",
        "postgresql://user:12/hunter2@localhost/db",
        "mysql://user:hunter2@localhost/db",
        "user:hunter2@localhost",
        "postgresql://user:hunter2@local host/db",
    ],
)
def test_no_fault_shows_a_secret(url: str):
    assert "hunter2" not in fault(database_url=url)


@given(st.text(alphabet="ab/#?@:[]%1", min_size=1, max_size=8))
def test_no_password_of_any_shape_is_shown(password: str):
    secret = f"SECRET{password}SECRET"
    assert "SECRET" not in masked_url(f"postgresql://user:{secret}@localhost/db")


# It hands a few variables on to PostgreSQL, and takes no setting from them.
PASSES_THE_ENVIRONMENT_ON = {"app_extensions/embedded_postgres/processes.py"}


def test_no_other_module_reads_the_environment():
    rooms = ("domain", "plugins", "services", "blueprints", "app_extensions")
    modules = [*ROOT.glob("*.py"), *(path for room in rooms for path in (ROOT / room).rglob("*.py"))]
    reading = {
        str(path.relative_to(ROOT))
        for path in modules
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"}
    }
    assert reading - PASSES_THE_ENVIRONMENT_ON == {"config.py"}


def test_a_config_cannot_be_changed():
    config = load()
    with pytest.raises(FrozenInstanceError):
        config.port = 1  # type: ignore[misc]
    assert replace(config, port=1).port == 1


@pytest.mark.parametrize(
    ("name", "value"), [("CANDLERY_CRYPTO_EXCHANGES", "kraken,binanse"), ("CANDLERY_CCXT_OPTIONS", '{"binanse": {}}')]
)
def test_an_exchange_that_ccxt_lacks_is_named_with_the_one_that_may_be_meant(name: str, value: str):
    with pytest.raises(ConfigError, match=f"{name}: CCXT has no exchange 'binanse'; did you mean binance"):
        load_config({name: value}, env_file=None)


def test_the_watch_list_is_read_with_the_start_of_each_series():
    config = load({"CANDLERY_WATCH": "crypto/binance/BTC/USDT:USDT@2024-01-01, stocks/alpaca/BRK-B@1700000000000"})
    assert config.watch == (
        WatchedSeries(Series("crypto", "binance", "BTC/USDT:USDT"), 1_704_067_200_000),
        WatchedSeries(Series("stocks", "alpaca", "BRK-B"), 1_700_000_000_000),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("crypto/binance@2024-01-01", "'crypto/binance@2024-01-01' is no series with a start"),
        ("crypto//BTC/USDT@2024-01-01", "'crypto//BTC/USDT@2024-01-01' is no series with a start"),
        ("crypto/binance/@2024-01-01", "is no series with a start"),
        ("crypto/binance/BTC/USDT", "is no series with a start"),
        ("crypto/binance/BTC/USDT@", "the start of crypto/binance/BTC/USDT: '' is not a time"),
        ("crypto/binance/BTC/USDT@soon", "the start of crypto/binance/BTC/USDT: 'soon' is not a time"),
        ("crypto/binance/BTC/USDT@2024-02-30", "the start of crypto/binance/BTC/USDT: '2024-02-30' is not a time"),
        ("crypto/binance/BTC/USDT@2099-01-01", "the start of crypto/binance/BTC/USDT lies in the future"),
        ("demo/sim/KELP/USD@2024-01-01,demo/sim/KELP/USD@2025-01-01", "demo/sim/KELP/USD is named more than once"),
    ],
)
def test_a_wrong_watch_list_is_told_with_what_would_be_right(text: str, told: str):
    found = fault(watch=text)
    assert told in found
    assert found.rpartition("; ")[2].startswith(("use market/provider/symbol@start", "name each series once"))


def test_every_fault_of_the_watch_list_is_named():
    found = fault(watch="binance, crypto/okx/BTC/USDT@soon, demo/sim/KELP/USD@2024-01-01")
    assert "'binance' is no series" in found
    assert "the start of crypto/okx/BTC/USDT" in found
    assert "KELP" not in found
    found = fault(watch="a/b/C@2024-01-01,a/b/C@2098-01-01,a/b/D@2099-01-01")
    assert "a/b/C is named more than once; the start of a/b/C lies in the future; the start of a/b/D lies" in found


def test_a_watch_list_from_elsewhere_is_checked_too():
    series = WatchedSeries(Series("demo", "sim", "KELP/USD"), 0)
    with pytest.raises(ConfigError, match="CANDLERY_WATCH: demo/sim/KELP/USD is named more than once"):
        DevelopmentConfig(watch=(series, series)).validate()


def test_the_watch_list_is_written_as_it_is_read():
    setting = next(item.setting for item in SETTINGS if item.field == "watch")
    watched = (WatchedSeries(Series("crypto", "okx", "ETH/USDT:USDT-240628"), 60_000),)
    assert setting.read(setting.write(watched)) == watched


@pytest.mark.parametrize(
    ("name", "least", "default", "most"),
    [
        ("backfill_jobs", 0, 4, 64),
        ("backfill_attempts", 1, 10, 100),
        ("recheck_calls", 0, 60, 10_000),
        ("heal_interval_s", 1, 300, 86_400),
    ],
)
def test_the_settings_of_backfills_have_bounds(name: str, least: int, default: int, most: int):
    assert getattr(load(), name) == default
    assert [getattr(load(**{name: str(value)}), name) for value in (least, most)] == [least, most]
    for value in (least - 1, most + 1):
        assert "out of range" in fault(**{name: str(value)})


def test_a_web_server_that_is_not_installed_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch):
    assert load(server="Uvicorn").server == "uvicorn"
    assert "use one of hypercorn, uvicorn" in fault(server="gunicorn")
    monkeypatch.setattr(config_kinds, "find_spec", lambda name: None if name == "httptools" else name)
    assert load(server="hypercorn").server == "hypercorn"
    said = fault(server="uvicorn")
    assert said.startswith("httptools cannot be found; install candlery[uvicorn]")
    assert "pip install -c constraints.txt -e '.[uvicorn]'" in said
