"""The HTTP APIs of all hubs of a server as one ASGI application: the door, then the routes."""

from litestar import Litestar
from litestar.types import ASGIApp

from mooring.hub.hubs import Hubs

from . import devices, messages, methods, statistics, twins
from .call import DEPENDENCIES
from .door import Door
from .errors import respond

MAX_BODY = 512 * 1024
"""Bytes of a body unless a route allows more: a twin of the largest size, indented."""


def build_app(hubs: Hubs) -> ASGIApp:
    """The application. In `scope["state"]`, `local` true marks the private Unix socket."""
    routes = Litestar(
        route_handlers=[
            devices.router,
            statistics.router,
            twins.router,
            methods.router,
            messages.router,
        ],
        dependencies=DEPENDENCIES,
        exception_handlers={Exception: respond},
        request_max_body_size=MAX_BODY,
        openapi_config=None,
        logging_config=None,
    )
    return Door(hubs, routes)
