"""SSL_read and SSL_write with nothing around them: the two calls that every message pays for.

pyOpenSSL's `recv` allocates a buffer at each call, and both `recv` and `send` look up three
callback helpers and call SSL_get_error although the call succeeded. Without that, 200 bytes in
and 4 bytes out took 5.1 instead of 8.0 µs (CPython 3.11, OpenSSL 4.0, TLS 1.3, Unix socket pair;
`send` 3.5 -> 2.1, `recv` 4.5 -> 3.0), a sixth of a whole message's CPU.

Rules: only this module touches pyOpenSSL's private names. If they change, the public methods
take over and everything works as before, only slower. A failed call goes through pyOpenSSL's own
error translation either way.
"""

from collections.abc import Callable
from typing import Any

from OpenSSL import SSL

RECORD = 16384
"""The most plaintext that one TLS record holds: one read takes all of it."""

Receive = Callable[[SSL.Connection, Any], bytes]
"""(connection, its handle) -> up to RECORD bytes. Raises what `Connection.recv` raises."""

try:
    from OpenSSL._util import ffi as _ffi
    from OpenSSL._util import lib as _lib

    _read, _write = _lib.SSL_read, _lib.SSL_write
    _fast = hasattr(SSL.Connection, "_raise_ssl_error")
except (ImportError, AttributeError):  # pragma: no cover - another pyOpenSSL than today's
    _fast = False


def handle(conn: SSL.Connection) -> Any:
    """What `receive` and `send` want beside the connection; None if they do without."""
    return getattr(conn, "_ssl", None) if _fast else None


def receiver() -> Receive:
    """A receive function with a buffer of its own, for the connections of one event loop.

    The buffer must not be shared between threads: SSL_read runs without the interpreter's lock.
    """
    if not _fast:
        return _receive_publicly
    buffer = _ffi.new("char[]", RECORD)
    view = _ffi.buffer(buffer)
    read = _read

    def receive(conn: SSL.Connection, ssl: Any) -> bytes:
        if ssl is None:
            return conn.recv(RECORD)
        count = read(ssl, buffer, RECORD)
        if count > 0:
            return view[:count]  # type: ignore[no-any-return]
        conn._raise_ssl_error(ssl, count)
        raise SSL.Error("SSL_read failed without a reason")

    return receive


def send(conn: SSL.Connection, ssl: Any, data: bytes | bytearray | memoryview) -> int:
    """Send the start of `data` (not empty): how many bytes. Raises like `Connection.send`."""
    # cffi passes bytes as they are; other buffers need pyOpenSSL's care while they are exported.
    if ssl is None or type(data) is not bytes:
        return conn.send(data)
    count = _write(ssl, data, len(data))
    if count > 0:
        return count  # type: ignore[no-any-return]
    conn._raise_ssl_error(ssl, count)
    raise SSL.Error("SSL_write failed without a reason")


def _receive_publicly(conn: SSL.Connection, ssl: Any) -> bytes:
    return conn.recv(RECORD)
