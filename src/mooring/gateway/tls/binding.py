"""Listening sockets, and what to tell an operator when a port cannot be had.

SDKs fix their ports (8883, 5671, 443), so a port that is taken or forbidden is the most likely
failure of a first start; the message says which port, for what, and what can be done.
"""

import contextlib
import errno
import socket
from typing import Any

from mooring.errors import ConfigError


def bind(
    host: str, port: int, *, purpose: str, setting: str = "", backlog: int = 1024
) -> list[socket.socket]:
    """Non-blocking listening sockets for every address of `host` ("" means all of them).

    With port 0 the system chooses one port for all addresses. `purpose` ("MQTT") and `setting`
    ("--mqtt-port") go into the ConfigError that is raised when nothing can be bound.
    """
    where = f"{host or 'all addresses'} port {port} ({purpose})"
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {where}: {host!r} is no address of this machine ({error.strerror})"
        ) from error
    bound: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, kind, proto, _, address in dict.fromkeys(found):
            try:
                sock = _listen(family, kind, proto, _same_port(address, bound), backlog)
            except OSError as error:
                # A machine may lack IPv6, or have it switched off, and still resolve ::.
                if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    absent = error
                    continue
                raise ConfigError(
                    f"cannot listen on {where}: {_advice(error, port, setting)}"
                ) from error
            bound.append(sock)
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    if not bound:
        words = absent.strerror if absent else "no address found"
        raise ConfigError(f"cannot listen on {where}: {words}") from absent
    return bound


def _listen(family: int, kind: int, proto: int, address: Any, backlog: int) -> socket.socket:
    sock = socket.socket(family, kind, proto)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it; an acknowledgement must not wait for Nagle.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _same_port(address: Any, bound: list[socket.socket]) -> Any:
    if address[1] == 0 and bound:
        return (address[0], bound[0].getsockname()[1], *address[2:])
    return address


def _advice(error: OSError, port: int, setting: str) -> str:
    another = f"choose another port with {setting}" if setting else "choose another port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"permission denied. Ports below 1024 need a privilege: give it to the interpreter "
            f"(setcap cap_net_bind_service=+ep on the python binary), or to the service "
            f"(AmbientCapabilities=CAP_NET_BIND_SERVICE), or run as root, or {another}."
        )
    if error.errno == errno.EADDRINUSE:
        return (
            f"another program has it (see: ss -ltnp 'sport = :{port}'). Stop that program, "
            f"or {another}."
        )
    return f"{error.strerror or error}; {another}."
