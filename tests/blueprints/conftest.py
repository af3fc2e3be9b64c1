"""The web application on fakes."""

from tests.support.web import client, services, web

__all__ = ["client", "services", "web"]
