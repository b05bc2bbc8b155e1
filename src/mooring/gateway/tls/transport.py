"""A TLS connection as an asyncio.Transport, straight on the non-blocking socket.

    handshake ──► open ──► flushing ──► lingering ──► closed
        │           │          │            │            ▲
        └───────────┴──────────┴────────────┴── abort ───┘

Rules:
- The protocol sees nothing before the handshake is done, `connection_lost` exactly once after
  `connection_made`, and nothing after that.
- One wake-up reads one record of at most 16 KiB; a full one is followed by at most three more,
  so that a bulk sender cannot starve its neighbours. OpenSSL holds decrypted bytes of no more
  than the current record (read-ahead is off), but those it holds are invisible to the poller:
  whatever stops in the middle of a record must read again by itself.
- Everything is bounded: the handshake, the first byte and a stalled or unflushed write in time;
  the write queue and the client's certificate chain in bytes.
- A peer's close_notify is end-of-file and leaves the other direction open. A bare TCP close may
  be an attacker's truncation: it ends the connection with an error.
- After a graceful close, what the peer still sends is read and thrown away for a moment, since
  closing a socket with unread bytes makes the kernel send a reset, which destroys our last
  words (a CONNACK with the refusal, a 413) on their way.

Why not asyncio's or uvloop's TLS: 38 µs of CPU a message (uvloop) and 278 KiB a connection
(asyncio) against 9–13 µs and 24 KiB here; see docs/architecture.md. Measured with 1,000
connections on uvloop, resident memory each: 1.6 KiB before the first byte, 49 KiB in a half-done
handshake, 24.0 KiB idle over TLS 1.3 (22.8 over 1.2).
"""

import asyncio
import socket
from asyncio.trsock import TransportSocket
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from OpenSSL import SSL

from mooring.gateway.tls import native
from mooring.gateway.tls.limits import TransportLimits
from mooring.gateway.tls.owner import Owner
from mooring.gateway.tls.peer import chain_excess, failure_reason, session_info

_RECORD = native.RECORD
_send = native.send
_READS_PER_TURN = 4
_WRITES_PER_TURN = 16
_LINGER_BYTES = 8 * 1024 * 1024
_waste = bytearray(64 * 1024)  # where lingering connections read to; never looked at


class State(IntEnum):
    HANDSHAKE = 0
    OPEN = 1
    FLUSHING = 2
    LINGERING = 3
    CLOSED = 4


class TlsTransport(asyncio.Transport):
    """One server-side TLS connection, carrying any asyncio.Protocol but BufferedProtocol.

    `get_extra_info` knows peername, sockname, socket, sslcontext, sni (str or None),
    tls_version, cipher, peer_chain (DER, leaf first; taken from OpenSSL at each call and not
    kept, so ask once) and ssl_object (always None).
    """

    __slots__ = (
        "_conn",
        "_context",
        "_data_received",
        "_fd",
        "_limits",
        "_linger_left",
        "_loop",
        "_notified",
        "_owner",
        "_peer_closed",
        "_peername",
        "_progress",
        "_protocol",
        "_queue",
        "_reading",
        "_receive",
        "_sock",
        "_ssl",
        "_stall",
        "_state",
        "_timer",
        "_unheard",
        "_writable_wanted",
        "_write_closed",
        "_write_high",
        "_write_low",
        "_write_paused",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        peername: Any,
        context: SSL.Context,
        owner: Owner,
        limits: TransportLimits,
        receive: native.Receive,
    ) -> None:
        """Take over the accepted, non-blocking `sock` and start the handshake."""
        super().__init__()
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._peername = peername
        self._owner = owner
        self._limits = limits
        self._protocol: asyncio.Protocol | None = None
        self._data_received: Any = None
        self._state = State.HANDSHAKE
        self._unheard = True
        self._reading = True
        self._peer_closed = False
        self._write_closed = False
        self._notified = False
        self._write_paused = False
        self._writable_wanted = False
        self._progress = False
        self._queue: bytearray | None = None
        self._write_high = limits.write_high
        self._write_low = limits.write_low
        self._linger_left = 0
        self._stall: asyncio.TimerHandle | None = None
        self._context: SSL.Context | None = context
        # SSL.Connection from the first byte to the close; Any, since the hot path must not
        # spend its time on proving that it is there. The same holds for _data_received.
        self._conn: Any = None
        self._ssl: Any = None
        self._receive = receive
        self._timer: asyncio.TimerHandle | None = loop.call_later(
            limits.handshake_timeout, self._time_out, "handshake took too long"
        )
        loop.add_reader(self._fd, self._handshake)

    def __repr__(self) -> str:
        return f"<TlsTransport {self._state.name.lower()} peer={self._peername}>"

    # Handshake --------------------------------------------------------------------------------

    def _handshake(self) -> None:
        conn = self._conn
        if conn is None:
            # Not before the first byte: a flood of silent connections costs no OpenSSL state.
            assert self._context is not None
            conn = self._conn = SSL.Connection(self._context, self._sock)
            self._context = None
            conn.set_accept_state()
            self._ssl = native.handle(conn)
        try:
            conn.do_handshake()
        except SSL.WantReadError:
            self._want_writable(None)
            return
        except SSL.WantWriteError:
            self._want_writable(self._handshake)
            return
        except (SSL.Error, OSError) as error:
            self._refuse(failure_reason(error))
            return
        self._want_writable(None)
        self._secured(conn)

    def _secured(self, conn: SSL.Connection) -> None:
        limits = self._limits
        if self._timer is not None:
            self._timer.cancel()
        excess = chain_excess(conn, limits.chain_bytes)
        if excess:
            self._refuse(excess)
            return
        self._timer = self._loop.call_later(
            limits.first_byte_timeout, self._time_out, "nothing was sent after the handshake"
        )
        self._state = State.OPEN
        try:
            protocol = self._owner.secured(self)
            if protocol is None:
                self._refuse("no session for it")
                return
            self._protocol = protocol
            self._data_received = protocol.data_received
            protocol.connection_made(self)
        except Exception as error:
            self._fatal(error, "connection_made failed")
            return
        if self._state == State.OPEN and self._reading:
            self._loop.add_reader(self._fd, self._read_ready)
            if conn.pending():
                self._read_ready()

    def _time_out(self, reason: str) -> None:
        self._timer = None
        if self._state <= State.OPEN:
            self._refuse(reason)
        else:
            self._force(None)

    def _refuse(self, reason: str) -> None:
        self._owner.refused(self, reason)
        self._force(ConnectionAbortedError(reason))

    # Reading ----------------------------------------------------------------------------------

    def _read_ready(self, more: int = _READS_PER_TURN - 1) -> None:
        # The hot path: one wake-up, one SSL_read, one data_received.
        try:
            data = self._receive(self._conn, self._ssl)
        except (SSL.Error, OSError) as error:
            self._read_failed(error)
            return
        if self._unheard:
            self._first_bytes()
        try:
            self._data_received(data)
        except Exception as error:
            self._fatal(error, "data_received failed")
            return
        # A shorter read has emptied the record, and the poller knows of the next one; after a
        # full one there is probably more.
        if len(data) == _RECORD and more and self._reading and self._state == State.OPEN:
            self._read_ready(more - 1)

    def _first_bytes(self) -> None:
        self._unheard = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._owner.heard(self)

    def _read_failed(self, error: Exception) -> None:
        if isinstance(error, SSL.WantReadError):
            return
        if isinstance(error, SSL.WantWriteError):
            # The answer to a peer's KeyUpdate does not fit into the socket.
            self._want_writable(self._write_ready)
        elif isinstance(error, SSL.ZeroReturnError):
            self._end_of_file()
        elif isinstance(error, SSL.SysCallError):
            number = error.args[0] if error.args else -1
            if number == -1:
                self._force(ConnectionResetError("the peer closed without close_notify"))
            else:
                self._force(OSError(number, "connection lost"))
        else:
            # A protocol violation inside TLS: OpenSSL has queued the alert that says so.
            reason = failure_reason(error)
            self._owner.refused(self, reason)
            self._force(ConnectionAbortedError(reason))

    def _end_of_file(self) -> None:
        self._peer_closed = True
        self._stop_reading()
        if self._unheard:
            self._first_bytes()
        try:
            keep_open = self._protocol.eof_received()  # type: ignore[union-attr]
        except Exception as error:
            self._fatal(error, "eof_received failed")
            return
        if not keep_open or self._write_closed:
            self.close()

    def pause_reading(self) -> None:
        """Stop calling data_received; what the peer sends waits in the kernel."""
        if self._state == State.OPEN and self._reading and not self._peer_closed:
            self._stop_reading()

    def resume_reading(self) -> None:
        """Call data_received again, at once if decrypted bytes are waiting."""
        if self._state == State.OPEN and not self._reading and not self._peer_closed:
            self._reading = True
            self._loop.add_reader(self._fd, self._read_ready)
            if self._conn.pending():
                self._loop.call_soon(self._read_pending)

    def is_reading(self) -> bool:
        return self._reading and self._state == State.OPEN

    def _read_pending(self) -> None:
        if self._reading and self._state == State.OPEN and self._conn.pending():
            self._read_ready()

    def _stop_reading(self) -> None:
        self._reading = False
        self._loop.remove_reader(self._fd)

    # Writing ----------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`, now if nothing is queued; otherwise copy it to the queue."""
        if self._queue is None and self._state == State.OPEN and not self._write_closed:
            size = len(data)
            if not size:
                return
            try:
                sent = _send(self._conn, self._ssl, data)
            except SSL.WantWriteError:
                sent = 0
            except (SSL.Error, OSError) as error:
                self._write_failed(error)
                return
            if sent < size:
                with memoryview(data) as view:
                    self._queue = bytearray(view[sent:])
                self._start_queue()
            return
        self._enqueue(data)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def _enqueue(self, data: bytes | bytearray | memoryview) -> None:
        if self._write_closed:
            raise RuntimeError("cannot write after write_eof()")
        if self._state != State.OPEN or self._queue is None:
            return  # like asyncio's own transports: what is written after a close is lost
        if len(self._queue) > self._limits.write_max:
            # The protocol ignores pause_writing, or answers a peer that never reads.
            self._refuse("too much is waiting to be read by the peer")
            return
        self._queue += data
        self._pause_protocol()

    def _start_queue(self) -> None:
        # One record is out; more may fit before the socket is full.
        self._write_ready()
        if self._queue is None:
            return
        self._want_writable(self._write_ready)
        self._progress = False
        self._stall = self._loop.call_later(self._limits.write_stall_timeout, self._check_progress)
        self._pause_protocol()

    def _write_ready(self) -> None:
        queue = self._queue
        if queue is None:
            # Wanted by a read that has to send something of TLS's own.
            self._want_writable(None)
            if self._state == State.OPEN and self._reading:
                self._read_ready()
            return
        for _ in range(_WRITES_PER_TURN):
            try:
                sent = _send(self._conn, self._ssl, queue)
            except SSL.WantWriteError:
                break
            except (SSL.Error, OSError) as error:
                self._write_failed(error)
                return
            self._progress = True
            if sent == len(queue):
                self._drained()
                return
            del queue[:sent]
        if self._write_paused and len(queue) <= self._write_low:
            self._resume_protocol()

    def _drained(self) -> None:
        self._queue = None
        self._want_writable(None)
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._write_closed or self._state == State.FLUSHING:
            self._say_goodbye()
        elif self._write_paused:
            self._resume_protocol()

    def _check_progress(self) -> None:
        self._stall = None
        if self._queue is None or self._state > State.FLUSHING:
            return
        if not self._progress:
            self._refuse("the peer does not read")
            return
        self._progress = False
        self._stall = self._loop.call_later(self._limits.write_stall_timeout, self._check_progress)

    def _write_failed(self, error: Exception) -> None:
        if isinstance(error, SSL.SysCallError) and error.args and error.args[0] != -1:
            self._force(OSError(error.args[0], "connection lost"))
        else:
            self._force(ConnectionResetError(failure_reason(error)))

    def _pause_protocol(self) -> None:
        if not self._write_paused and len(self._queue or b"") > self._write_high:
            self._write_paused = True
            self._tell("pause_writing")

    def _resume_protocol(self) -> None:
        self._write_paused = False
        if self._state == State.OPEN:
            self._tell("resume_writing")

    def _tell(self, what: str) -> None:
        try:
            getattr(self._protocol, what)()
        except Exception as error:
            self._fatal(error, f"{what} failed")

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks, in bytes, at which the protocol is paused and resumed."""
        if high is None:
            high = self._limits.write_high if low is None else 4 * low
        if low is None:
            low = high // 4
        if not 0 <= low <= high:
            raise ValueError(f"0 <= low ({low}) <= high ({high}) must hold")
        self._write_high, self._write_low = high, low
        if self._queue is not None:
            self._pause_protocol()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._write_low, self._write_high

    def get_write_buffer_size(self) -> int:
        return len(self._queue) if self._queue is not None else 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Send close_notify after what is queued; the peer may go on sending."""
        if self._state != State.OPEN or self._write_closed:
            return
        self._write_closed = True
        if self._queue is None:
            self._say_goodbye()

    # Closing ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Flush, send close_notify and close; cut off after `close_timeout`. Never blocks."""
        if self._state == State.HANDSHAKE:
            self.abort()
        if self._state != State.OPEN:
            return
        self._state = State.FLUSHING
        if self._reading:
            self._stop_reading()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(
            self._limits.close_timeout, self._time_out, "closing took too long"
        )
        if self._queue is None:
            # connection_lost must not be called from inside the protocol's own call.
            self._loop.call_soon(self._flushed)

    def _flushed(self) -> None:
        if self._state == State.FLUSHING and self._queue is None:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        conn = self._conn
        try:
            if not self._notified:
                conn.shutdown()
                # Called once more it would wait for the peer's close_notify.
                self._notified = True
        except SSL.WantWriteError:
            self._want_writable(self._say_goodbye)
            return
        except (SSL.Error, OSError) as error:
            self._write_failed(error)
            return
        self._want_writable(None)
        if self._state == State.FLUSHING:
            self._linger()

    def _linger(self) -> None:
        self._state = State.LINGERING
        self._lose_protocol(None)
        if self._peer_closed:
            self._release()
            return
        self._conn = self._ssl = None  # OpenSSL's memory goes now, the socket a little later
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._release()
            return
        self._linger_left = _LINGER_BYTES
        self._timer = self._loop.call_later(self._limits.linger, self._release)
        self._loop.add_reader(self._fd, self._discard)

    def _discard(self) -> None:
        for _ in range(_READS_PER_TURN):
            try:
                received = self._sock.recv_into(_waste)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                received = 0
            self._linger_left -= received
            if not received or self._linger_left < 0:
                self._release()
                return

    def abort(self) -> None:
        """Close at once; what is queued is lost."""
        self._force(None)

    def _fatal(self, error: Exception, message: str) -> None:
        self._loop.call_exception_handler(
            {
                "message": message,
                "exception": error,
                "transport": self,
                "protocol": self._protocol,
            }
        )
        self._force(error)

    def _force(self, error: Exception | None) -> None:
        if self._state == State.CLOSED:
            return
        self._state = State.CLOSED
        # Not now: the caller may be in the middle of the protocol's own code.
        self._loop.call_soon(self._lose_protocol, error)
        self._release()

    def _lose_protocol(self, error: Exception | None) -> None:
        protocol, self._protocol = self._protocol, None
        self._data_received = None
        if protocol is None:
            return
        try:
            protocol.connection_lost(error)
        except Exception as failure:
            self._loop.call_exception_handler(
                {
                    "message": "connection_lost failed",
                    "exception": failure,
                    "transport": self,
                    "protocol": protocol,
                }
            )

    def _release(self) -> None:
        """Give back everything that the operating system and OpenSSL hold for us."""
        if self._fd < 0:
            return
        self._state = State.CLOSED
        self._loop.remove_reader(self._fd)
        self._want_writable(None)
        self._fd = -1
        for timer in (self._timer, self._stall):
            if timer is not None:
                timer.cancel()
        self._timer = self._stall = None
        self._queue = None
        self._conn = self._ssl = self._context = None
        self._sock.close()
        self._owner.released(self)

    def is_closing(self) -> bool:
        return self._state > State.OPEN

    # The rest ---------------------------------------------------------------------------------

    def _want_writable(self, callback: Callable[[], None] | None) -> None:
        if callback is not None:
            self._writable_wanted = True
            self._loop.add_writer(self._fd, callback)
        elif self._writable_wanted:
            self._writable_wanted = False
            self._loop.remove_writer(self._fd)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand the byte stream to another protocol, as at a WebSocket upgrade."""
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol
        self._data_received = protocol.data_received

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            return self._peername
        if name == "sockname":
            return self._sock.getsockname() if self._fd >= 0 else default
        if name == "socket":
            return TransportSocket(self._sock) if self._fd >= 0 else default
        if name == "ssl_object":
            return None
        conn = self._conn
        if conn is None or self._state == State.HANDSHAKE:
            return () if name == "peer_chain" else default
        return session_info(conn, name, default)
