"""Which links there are: one table from addresses to what stands behind them.

An entry says who may attach (the client's side of the link), which right a token of the connection
must grant for which resource, and what serves the link. A refusal is the attach without source and
target and a detach with the error; `polite` ones attach in full first, since azure-eventhub gives
up on the former without reading the error, and uamqp reads a redirect only after the latter
(device-protocols reference §3.4, §7.4).

A new kind of link, of devices for instance, is one more entry.
"""

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, NoReturn

from mooring.errors import (
    AmqpAddressNotFound,
    FeatureNotSupported,
    GenericMethodNotAllowed,
    new_tracking_id,
)
from mooring.gateway.amqp import cbs, management
from mooring.gateway.amqp.addresses import Segments, match, readings
from mooring.gateway.amqp.devicebound import CREDIT as COMMAND_CREDIT
from mooring.gateway.amqp.devicebound import CommandSender
from mooring.gateway.amqp.events import EventReceiver
from mooring.gateway.amqp.feedback import FeedbackReceiver
from mooring.gateway.amqp.handler import Handler, Opening
from mooring.gateway.amqp.refusals import TRACKING_ID
from mooring.gateway.amqp.request_response import REQUEST_CREDIT, Node, Reply
from mooring.hub.access import EVENTS_PATH
from mooring.hub.policies import Right
from mooring.wire.amqp import conditions
from mooring.wire.amqp.messages import Message
from mooring.wire.amqp.performatives import Error
from mooring.wire.amqp.types import Int, Symbol

MAX_MESSAGE: Final = 256 * 1024  # commands of 64 KiB with their overhead, or a batch of them
MAX_REQUEST: Final = 32 * 1024  # of strangers too

SENDS, RECEIVES = "sends", "receives"  # what the client does
BOTH: Final = (SENDS, RECEIVES)


class Redirect(Exception):
    """The link is served elsewhere."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.condition)
        self.error = error


Serve = Callable[[Opening], Handler]


class Route(NamedTuple):
    """One kind of link."""

    pattern: Segments
    clients: tuple[str, ...]
    right: Right | None
    resource: str
    serve: Serve
    polite: bool = False
    settled: bool = True  # what we send is settled, or else as the client asks
    credit: int = 0  # what a sending client is kept supplied with
    max_message: int = MAX_REQUEST  # bytes of one message that it sends


def _node(name: str, answer: Callable[[Opening, Message], Awaitable[Reply]]) -> Serve:
    """Links of one request-response node; both directions of a session share it, and the last
    one takes it along."""

    def serve(opening: Opening) -> Handler:
        nodes = opening.connection.nodes
        key = (opening.link.session, name)
        node = nodes.get(key)
        if node is None:
            node = nodes[key] = Node(
                opening,
                lambda message: answer(opening, message),
                forget=lambda: nodes.pop(key, None),
            )
        return node.join(opening.link)

    return serve


def _redirect(opening: Opening) -> NoReturn:
    """To the Event Hubs-compatible endpoint, as `az iot hub monitor-events` expects it."""
    host = opening.connection.host
    port = opening.connection.endpoint.redirect_port
    address = f"amqps://{host}:{port}/{opening.hub.events_path}/{opening.captures['*']}"
    raise Redirect(
        Error(
            conditions.LINK_REDIRECT,
            "The events of this hub are read at its Event Hubs-compatible endpoint.",
            {
                Symbol("hostname"): host,
                Symbol("network-host"): host,
                Symbol("port"): Int(port),
                Symbol("address"): address,
                TRACKING_ID: new_tracking_id(),
            },
        )
    )


def _not_implemented(opening: Opening) -> NoReturn:
    raise FeatureNotSupported(
        f"Links to '{opening.address[:128]}' are not supported over AMQP yet."
    )


_CBS = _node("$cbs", lambda opening, message: cbs.answer(opening.connection, message))
_MANAGEMENT = _node(
    "$management",
    lambda opening, message: management.answer(opening.connection, opening.hub, message),
)

ROUTES: Final = (
    Route(("$cbs",), BOTH, None, "", _CBS, credit=REQUEST_CREDIT),
    Route(("$management",), BOTH, None, "", _MANAGEMENT, polite=True, credit=REQUEST_CREDIT),
    Route(
        ("{entity}", "$management"),
        BOTH,
        None,
        "",
        _MANAGEMENT,
        polite=True,
        credit=REQUEST_CREDIT,
    ),
    Route(
        ("{entity}", "consumergroups", "{group}", "partitions", "{partition}"),
        (RECEIVES,),
        Right.SERVICE_CONNECT,
        f"{EVENTS_PATH}/ConsumerGroups/{{group}}/Partitions/{{partition}}",
        EventReceiver,
        polite=True,
    ),
    Route(
        ("messages", "events", "*"),
        BOTH,
        Right.SERVICE_CONNECT,
        EVENTS_PATH,
        _redirect,
        polite=True,
    ),
    Route(
        ("messages", "devicebound"),
        (SENDS,),
        Right.SERVICE_CONNECT,
        "messages/devicebound",
        CommandSender,
        credit=COMMAND_CREDIT,
        max_message=MAX_MESSAGE,
    ),
    Route(
        ("messages", "servicebound", "feedback"),
        (RECEIVES,),
        Right.SERVICE_CONNECT,
        "messages/servicebound/feedback",
        FeedbackReceiver,
        settled=False,
    ),
    Route(("messages", "servicebound", "filenotifications"), BOTH, None, "", _not_implemented),
    Route(
        ("messages", "servicebound", "fileuploadnotifications"), BOTH, None, "", _not_implemented
    ),
    Route(("devices", "{device}", "*"), BOTH, None, "", _not_implemented),
)


class Found(NamedTuple):
    """An address resolved."""

    route: Route
    captures: dict[str, str]

    @property
    def resource(self) -> str:
        return self.route.resource.format_map(self.captures)


def find(address: str, client: str, is_host: Callable[[str], bool]) -> Found:
    """The entry for an address and what the client does there; `is_host` knows the hub's names.

    Raises AmqpAddressNotFound, and GenericMethodNotAllowed for the wrong direction."""
    wrong_way = False
    for segments in readings(address, is_host):
        for route in ROUTES:
            captures = match(route.pattern, segments)
            if captures is None:
                continue
            if client in route.clients:
                return Found(route, captures)
            wrong_way = True
    if wrong_way:
        raise GenericMethodNotAllowed(f"No client {client} on this link address.")
    raise AmqpAddressNotFound(
        f"The link address '{address[:128]}' did not match any of the expected formats."
    )
