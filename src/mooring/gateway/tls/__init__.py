"""TLS ports: policy (context), one connection (transport), accepting (listener, binding)."""

from mooring.gateway.tls.binding import bind
from mooring.gateway.tls.context import server_context
from mooring.gateway.tls.limits import ListenerLimits, TransportLimits
from mooring.gateway.tls.listener import Listener, serve_tls
from mooring.gateway.tls.transport import TlsTransport

__all__ = [
    "Listener",
    "ListenerLimits",
    "TlsTransport",
    "TransportLimits",
    "bind",
    "serve_tls",
    "server_context",
]
