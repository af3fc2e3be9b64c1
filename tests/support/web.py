"""The web application on fakes: fixtures for a conftest.py."""

import pytest
from quart import Quart
from quart.typing import TestClientProtocol

from app import create_app
from tests.fakes import FakeServices


@pytest.fixture
def services() -> FakeServices:
    return FakeServices()


@pytest.fixture
def web(services: FakeServices) -> Quart:
    return create_app(services.config, services)  # type: ignore[arg-type]


@pytest.fixture
def client(web: Quart) -> TestClientProtocol:
    return web.test_client()
