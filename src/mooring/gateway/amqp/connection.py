"""One AMQP connection: a transport, the engine, the tokens that were put, and the links.

Rules:

- Without a valid token a connection lives for `authentication_time` seconds, and has room for the
  few links that putting one takes.
- Reading stops, for any number of reasons at a time (`hold`): while SASL is being judged, while
  the client does not read what it is sent, and while enough of what it sent waits to be handled.
- Every link has one handler (`routes`), told when the link is gone, whoever ended it.
- What the engine has to say is written by `flush`, once after each turn.
- `_lost` runs once; nothing is handled after it.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

import structlog

from mooring.errors import (
    HubError,
    IotHubNotFound,
    IotHubUnauthorized,
    MooringError,
    ServerError,
    hub_error,
)
from mooring.gateway.amqp import routes, sasl
from mooring.gateway.amqp.grants import Grants
from mooring.gateway.amqp.handler import Handler, Opening
from mooring.gateway.amqp.refusals import amqp_error
from mooring.gateway.amqp.request_response import Node
from mooring.hub.hosts import bare_host
from mooring.wire.amqp import engine_events as engine
from mooring.wire.amqp.connection import Connection as Engine
from mooring.wire.amqp.connection import Limits, Settings, State
from mooring.wire.amqp.link import Link, LinkState
from mooring.wire.amqp.performatives import (
    SASL_AUTH,
    SASL_OK,
    SASL_SYS,
    SENDER,
    Source,
    Target,
)
from mooring.wire.amqp.session import Session

if TYPE_CHECKING:
    from mooring.gateway.amqp.endpoint import AmqpEndpoint
    from mooring.gateway.amqp.grants import Grant
    from mooring.hub.access import Principal
    from mooring.hub.hub import Hub
    from mooring.hub.policies import Right

log = structlog.get_logger(__name__)

CONTAINER: Final = "mooring"
CLOSE_TIME: Final = 5.0  # seconds for the client to answer our close
STRANGER_LINKS: Final = 16
STRANGER_SESSIONS: Final = 4
STRANGER_REASSEMBLY: Final = 64 * 1024
STRANGER_PERFORMATIVE: Final = 4 * 1024  # decoded, and kept with its link, it is sixty times that
MAX_FAILED_TOKENS: Final = 16

MAX_REFUSALS: Final = 32  # links that a stranger may be refused

_JUDGING, _WRITING = "judging", "writing"  # reasons not to read


class Connection(asyncio.Protocol):
    """The asyncio protocol of one client."""

    def __init__(self, endpoint: "AmqpEndpoint") -> None:
        self.endpoint = endpoint
        self.hub: Hub | None = None
        self.host = ""
        self.peer = ""
        self.writable = True
        self.grants = Grants(self)
        self.nodes: dict[tuple[Session, str], Node] = {}
        self._engine = Engine(
            Settings(
                CONTAINER,
                sasl.MECHANISMS,
                idle_time_out=int(endpoint.idle_time_out * 1000),
                limits=Limits(
                    max_links=STRANGER_LINKS,
                    max_sessions=STRANGER_SESSIONS,
                    max_reassembly=STRANGER_REASSEMBLY,
                    max_performative=STRANGER_PERFORMATIVE,
                ),
            )
        )
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._judging: asyncio.Task[None] | None = None
        self._proved: tuple[Hub, Principal] | None = None  # by SASL, before the open
        self._failed_tokens = 0
        self._holds: set[object] = set()
        self._refusals = 0
        self._reason = ""
        self._over = False

    # ---- what the transport calls -----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.peer = _address(transport.get_extra_info("peername"))
        self._expect_token()
        self._on_tick()

    def data_received(self, data: bytes) -> None:
        self._engine.receive_data(data)
        self._pump()

    def eof_received(self) -> None:
        """Whoever sends no more cannot settle either: the transport closes."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._closing is not None:
            self._closing.cancel()
        self._lost(f"the connection was lost: {exc}" if exc else "the client closed the socket")

    def pause_writing(self) -> None:
        self.writable = False
        self.hold(_WRITING)

    def resume_writing(self) -> None:
        self.writable = True
        self.release(_WRITING)
        for session in self._engine.sessions:
            for link in list(session.links.values()):
                if link.handler is not None and link.role is SENDER:
                    link.handler.credited()

    # ---- what handlers call -----------------------------------------------------------------

    def flush(self) -> None:
        """Write what the engine has to say."""
        data = self._engine.data_to_send()
        if data and self._transport is not None:
            self._transport.write(data)

    def hold(self, reason: object) -> None:
        """Read no more until this reason, and any other, is released."""
        if not self._holds and self._transport is not None:
            self._transport.pause_reading()
        self._holds.add(reason)

    def release(self, reason: object) -> None:
        """This reason is over."""
        if reason in self._holds:
            self._holds.discard(reason)
            if not self._holds and self._transport is not None:
                self._transport.resume_reading()

    def authorise(self, right: "Right", resource: str) -> "Grant":
        """The grant that allows this. Raises IotHubUnauthorized, IotHubUnauthorizedAccess."""
        return self.grants.allow(right, resource)

    async def put_token(self, token: str) -> None:
        """Judge a token and keep what it grants. Raises HubError."""
        hub = self.hub
        if hub is None:
            raise IotHubNotFound(reason="the connection's host is no hub of this server")
        self._keep(hub, await self.judge(hub, token))

    async def judge(self, hub: "Hub", token: str) -> "Principal":
        """Who a token is of. Raises HubError; a stranger has a few attempts only."""
        try:
            return await hub.access.authenticate(token)
        except IotHubUnauthorized:
            self._failed_tokens += 1
            if self._failed_tokens >= MAX_FAILED_TOKENS and not self.grants:
                self.end(IotHubUnauthorized("Unauthorized", reason="too many wrong tokens"))
            raise

    def detach(self, link: Link, error: HubError) -> None:
        """End a link with an error, which goes to the log too."""
        if link.state is LinkState.ATTACHED:
            self._log_refusal("amqp_link_ended", error, link)
            link.detach(amqp_error(error))
            self._gone(link)
            self.flush()

    def end(self, error: HubError) -> None:
        """Close the connection with an error."""
        if self._engine.state in (State.CLOSING, State.CLOSED):
            return
        self._reason = self._reason or error.reason
        self._forget_links()
        self._engine.close(amqp_error(error))
        self.flush()
        self._abort_after(CLOSE_TIME)
        self._pump()

    # ---- events -----------------------------------------------------------------------------

    def _pump(self) -> None:
        """Handle what has happened, then write what that led to."""
        try:
            while (event := self._engine.next_event()) is not None:
                _HANDLERS[type(event)](self, event)
        except Exception as error:
            # A mistake of ours must cost this connection only.
            log.exception("amqp_connection_failed", peer=self.peer)
            self.end(ServerError(reason=f"unexpected {type(error).__name__}"))
        self.flush()
        if self._engine.state is State.CLOSED and self._transport is not None:
            self._abort_after(CLOSE_TIME)
            self._transport.close()

    def _on_sasl(self, event: engine.SaslRequested) -> None:
        if event.mechanism != sasl.PLAIN:
            self._engine.sasl_outcome(SASL_OK)
            return
        self.hold(_JUDGING)
        self._judging = self._loop.create_task(self._judge(event))

    async def _judge(self, event: engine.SaslRequested) -> None:
        code = SASL_OK
        try:
            hosts = (self._sni(), event.hostname)
            self._proved = await sasl.plain(event.response, self.endpoint.hubs, hosts)
        except MooringError as error:
            refusal = hub_error(error)
            code = SASL_SYS if refusal.status >= 500 else SASL_AUTH
            self._log_refusal("amqp_sasl_refused", refusal)
        except Exception:
            log.exception("amqp_sasl_failed", peer=self.peer)
            code = SASL_SYS
        self._judging = None
        if self._transport is None:
            return
        self._engine.sasl_outcome(code)
        self._pump()
        self.release(_JUDGING)

    def _on_sasl_answer(self, event: engine.SaslAnswered) -> None:
        self._engine.sasl_outcome(SASL_AUTH)  # no mechanism of ours challenges

    def _on_opened(self, event: engine.Opened) -> None:
        try:
            self.hub, self.host = self._find_hub(event.open.hostname)
            if self._proved is not None:
                hub, principal = self._proved
                if hub is not self.hub:
                    raise IotHubUnauthorized(
                        "Unauthorized", reason="SASL and open are for different hubs"
                    )
                self._keep(hub, principal)
        except HubError as error:
            self._log_refusal("amqp_open_refused", error)
            self.end(error)

    def _on_attached(self, event: engine.Attached) -> None:
        link = event.link
        attach = link.attach
        if attach is None or self.hub is None:
            return
        terminus = attach.source if link.role is SENDER else attach.target
        address = getattr(terminus, "address", None) or ""
        found = None
        try:
            client = routes.RECEIVES if link.role is SENDER else routes.SENDS
            found = routes.find(address, client, self._is_host)
            if found.route.right is not None:
                self.grants.bind(link, found.route.right, found.resource)
            opening = Opening(self, self.hub, link, found.captures, address)
            handler = found.route.serve(opening)
        except routes.Redirect as redirect:
            self._accept(link)
            link.detach(redirect.error)
            self.grants.unbind(link)
        except MooringError as error:
            refusal = hub_error(error)
            self._log_refusal("amqp_link_refused", refusal, link, address=address[:256])
            self._refusals += 1
            if self._refusals > MAX_REFUSALS and not self.grants:
                self.end(refusal)
                return
            if found is not None and found.route.polite:
                self._accept(link)
                link.detach(amqp_error(refusal))
            else:
                link.refuse(amqp_error(refusal))
            self.grants.unbind(link)
        else:
            link.handler = handler
            self._accept(link, found.route)

    def _accept(self, link: Link, route: routes.Route | None = None) -> None:
        """Complete the attach with both ends as the client wrote them, never null."""
        attach = link.attach
        assert attach is not None
        link.accept(
            source=attach.source or Source(),
            target=attach.target or Target(),
            settled=route is None or route.settled,
            max_message_size=route.max_message if route is not None else routes.MAX_REQUEST,
            credit=route.credit if route is not None else 0,
        )

    def _on_delivered(self, event: engine.Delivered) -> None:
        handler: Handler | None = event.delivery.link.handler
        if handler is not None:
            handler.delivered(event.delivery)

    def _on_credited(self, event: engine.Credited) -> None:
        if event.link.handler is not None:
            event.link.handler.credited()

    def _on_disposed(self, event: engine.Disposed) -> None:
        if event.link.handler is not None:
            event.link.handler.disposed(event)

    def _on_detached(self, event: engine.Detached) -> None:
        self._gone(event.link)

    def _on_ended(self, event: engine.Ended) -> None:
        for link in event.links:
            self._gone(link)

    def _on_begun(self, event: engine.Begun) -> None:
        """The engine has answered."""

    def _on_closed(self, event: engine.Closed) -> None:
        error = event.error
        said = f"{error.condition}: {error.description}" if error is not None else "closed"
        who = "the client" if event.by_peer else "protocol"
        self._lost(f"{who}: {said[:256]}")

    # ---- links and tokens -------------------------------------------------------------------

    def _gone(self, link: Link) -> None:
        handler: Handler | None = link.handler
        link.handler = None
        if handler is None:
            return
        self.grants.unbind(link)
        handler.closed()

    def _forget_links(self) -> None:
        for session in self._engine.sessions:
            for link in list(session.links.values()):
                self._gone(link)

    def _keep(self, hub: "Hub", principal: "Principal") -> None:
        self.grants.put(hub, principal)
        if self._deadline is not None and self._engine.state is State.OPENED:
            self._deadline.cancel()
            self._deadline = None
        known, limits = Limits(), self._engine.limits
        limits.max_links, limits.max_sessions = known.max_links, known.max_sessions
        limits.max_reassembly = known.max_reassembly
        limits.max_performative = known.max_performative

    def _find_hub(self, hostname: str | None) -> tuple["Hub", str]:
        """The hub that the client means, and by which name it calls it. Raises IotHubNotFound.

        Behind a gateway one of the two names may be the gateway's."""
        hubs, sni = self.endpoint.hubs, self._sni()
        named = [(hubs.find(host), host) for host in (hostname, sni) if host]
        known = [(hub, bare_host(host)) for hub, host in named if hub is not None]
        if not named:
            hub = self._proved[0] if self._proved is not None else hubs.default
            return hub, hub.name
        if not known:
            raise IotHubNotFound(reason="neither the open's hostname nor SNI is a hub's")
        if len({id(hub) for hub, _ in known}) > 1:
            raise IotHubUnauthorized(
                "Unauthorized", reason="the open's hostname and SNI are of different hubs"
            )
        return known[0]

    def _is_host(self, text: str) -> bool:
        return self.hub is not None and self.endpoint.hubs.find(text) is self.hub

    def _sni(self) -> str | None:
        if self._transport is None:
            return None
        sni: str | None = self._transport.get_extra_info("sni")
        return sni

    # ---- time, flow and the end -------------------------------------------------------------

    def _on_tick(self) -> None:
        due = self._engine.tick(self._loop.time())
        self._pump()
        if not self._over:
            self._tick = self._loop.call_at(due, self._on_tick)

    def _expect_token(self) -> None:
        self._deadline = self._loop.call_later(
            self.endpoint.authentication_time, self._no_token_came
        )

    def _no_token_came(self) -> None:
        self._deadline = None
        error = IotHubUnauthorized("Unauthorized", reason="no token within the time for it")
        self._reason = error.reason
        if self._engine.state is State.OPENED:
            self.end(error)
        else:
            self._engine.close()
            self._pump()

    def _abort_after(self, seconds: float) -> None:
        """The last word is said; whoever does not take it in time loses it."""
        if self._closing is None and self._transport is not None:
            self._closing = self._loop.call_later(seconds, self._transport.abort)

    def _lost(self, reason: str) -> None:
        if self._over:
            return
        self._over = True
        for timer in (self._tick, self._deadline):
            if timer is not None:
                timer.cancel()
        if self._judging is not None:
            self._judging.cancel()
        self._forget_links()
        self._engine.close()
        self.grants.close()
        self.nodes.clear()
        log.info("amqp_connection_closed", peer=self.peer, reason=self._reason or reason)

    def _log_refusal(
        self, event: str, error: HubError, link: Link | None = None, **more: Any
    ) -> None:
        log.warning(
            event,
            peer=self.peer,
            link=link.name[:128] if link is not None else "",
            error=error.name,
            reason=error.reason,
            tracking_id=error.tracking_id,
            **more,
        )


def _address(peername: Any) -> str:
    if isinstance(peername, tuple) and len(peername) >= 2:
        return f"{peername[0]}:{peername[1]}"
    return str(peername or "")


_HANDLERS: Final[dict[type, Any]] = {
    engine.SaslRequested: Connection._on_sasl,
    engine.SaslAnswered: Connection._on_sasl_answer,
    engine.Opened: Connection._on_opened,
    engine.Begun: Connection._on_begun,
    engine.Attached: Connection._on_attached,
    engine.Delivered: Connection._on_delivered,
    engine.Credited: Connection._on_credited,
    engine.Disposed: Connection._on_disposed,
    engine.Detached: Connection._on_detached,
    engine.Ended: Connection._on_ended,
    engine.Closed: Connection._on_closed,
}
