"""The transport's manners: flow both ways, ends of every kind, time limits, limits of the port."""

import asyncio
import contextlib
import errno
import resource
import socket
import ssl
import struct
import threading

import pytest
import uvloop
from tls_dialogue import (
    Echo,
    Session,
    client_context,
    connect,
    exchange,
    make_chains,
    port,
    read_all,
    until,
)

from mooring.errors import ConfigError
from mooring.gateway.tls import ListenerLimits, TransportLimits, bind, serve_tls, server_context

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3

# Each test runs on both loops: their add_reader and call_soon differ where it matters here.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")


@pytest.fixture(
    params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"]
)
def event_loop_policy(request):
    return request.param()


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return make_chains(tmp_path_factory.mktemp("pki"))


@pytest.fixture(params=[TLS12, TLS13], ids=["1.2", "1.3"])
def client(request, pki):
    return client_context(pki[0], request.param)


@pytest.fixture(scope="module")
def any_client(pki):
    return client_context(pki[0])


@pytest.fixture(scope="module")
def chains(pki):
    return pki[1]


# Flow -----------------------------------------------------------------------------------------


async def test_small_messages_are_echoed(chains, client):
    def talk(address):
        with connect(address, client) as tls:
            for number in range(200):
                tls.sendall(b"%d;" % number)
                assert tls.recv(100) == b"%d;" % number

    async with port(chains, Echo) as server:
        await asyncio.to_thread(talk, server.address)


@pytest.mark.parametrize("size", [1, 16383, 16384, 16385, 70_000])
async def test_records_of_every_size_arrive_whole(chains, client, size):
    sent = bytes(range(256)) * (size // 256 + 1)
    sent = sent[:size]

    def talk(address):
        with connect(address, client) as tls:
            tls.sendall(sent)
            received = b""
            while len(received) < size:
                received += tls.recv(65536)
            return received

    async with port(chains, Echo) as server:
        assert await asyncio.to_thread(talk, server.address) == sent


async def test_a_slow_reader_pauses_the_protocol_and_gets_everything(chains, client):
    block = bytes(range(256)) * 1024
    total = 64

    class Producer(Session):
        """Writes while it may, as a protocol with flow control does."""

        left = total
        paused = False
        most = 0

        def data_received(self, data):
            self.produce()

        def produce(self):
            while self.left and not self.paused:
                self.left -= 1
                self.transport.write(block)
                self.most = max(self.most, self.transport.get_write_buffer_size())
            if not self.left:
                self.transport.close()

        def pause_writing(self):
            super().pause_writing()
            self.paused = True

        def resume_writing(self):
            super().resume_writing()
            self.paused = False
            self.produce()

    may_read = threading.Event()

    def talk(address):
        with connect(address, client) as tls:
            tls.sendall(b"go")
            may_read.wait()
            return read_all(tls)

    async with port(chains, Producer) as server:
        reader = asyncio.create_task(asyncio.to_thread(talk, server.address))
        session = await server.session()
        await until(lambda: "pause" in session.events)
        may_read.set()
        assert await reader == block * total
        assert await session.lost is None
        assert "resume" in session.events
        # The high mark, and the one write that crossed it.
        assert session.most <= 64 * 1024 + len(block)


async def test_a_paused_session_gets_nothing_and_then_everything(chains, client):
    sent = bytes(range(256)) * 16384

    def talk(address, done):
        with connect(address, client) as tls:
            tls.sendall(sent)
            done.wait()

    class Sleepy(Session):
        def data_received(self, data):
            super().data_received(data)
            self.transport.pause_reading()

    done = threading.Event()
    async with port(chains, Sleepy) as server:
        sender = asyncio.create_task(asyncio.to_thread(talk, server.address, done))
        session = await server.session()
        while len(session.received) < len(sent):
            before = session.pieces
            session.transport.resume_reading()
            assert session.transport.is_reading()
            await until(lambda before=before: session.pieces > before)
            assert not session.transport.is_reading()
            # Nothing more arrives while it is paused, however long the loop runs.
            for _ in range(5):
                await asyncio.sleep(0)
            assert session.pieces == before + 1
        done.set()
        await sender
        assert session.received == sent


async def test_both_directions_at_once(chains, client):
    sent = bytes(range(256)) * 32768  # 8 MiB each way, far more than sockets buffer

    class Flowing(Echo):
        def pause_writing(self):
            super().pause_writing()
            self.transport.pause_reading()

        def resume_writing(self):
            super().resume_writing()
            self.transport.resume_reading()

    def talk(address):
        with connect(address, client) as tls:
            return exchange(tls, sent)

    async with port(chains, Flowing) as server:
        assert await asyncio.to_thread(talk, server.address) == sent


async def test_a_bulk_sender_does_not_starve_a_small_one(chains, any_client):
    stop = threading.Event()

    def flood(address):
        with connect(address, any_client) as tls:
            while not stop.is_set():
                tls.sendall(bytes(1 << 20))

    def talk(address):
        with connect(address, any_client) as tls:
            for _ in range(50):
                tls.sendall(b"ping")
                tls.recv(10)

    class Sink(Echo):
        def answer(self, data):
            if len(data) < 100:
                self.transport.write(data)

        def data_received(self, data):
            self.answer(data)

    async with port(chains, Sink) as server:
        flooding = asyncio.create_task(asyncio.to_thread(flood, server.address))
        try:
            await asyncio.to_thread(talk, server.address)
        finally:
            stop.set()
            await flooding


async def test_buffers_of_every_kind_can_be_written(chains, any_client):
    class Talker(Session):
        def data_received(self, data):
            self.transport.write(b"")
            self.transport.write(b"bytes ")
            self.transport.write(bytearray(b"bytearray "))
            self.transport.write(memoryview(b"xmemoryview ")[1:])
            self.transport.writelines([b"write", b"lines"])
            self.transport.close()

    def talk(address):
        with connect(address, any_client) as tls:
            tls.sendall(b"go")
            return read_all(tls)

    async with port(chains, Talker) as server:
        assert (
            await asyncio.to_thread(talk, server.address)
            == b"bytes bytearray memoryview writelines"
        )


# Ends -----------------------------------------------------------------------------------------


async def test_close_sends_what_is_written_and_close_notify(chains, client):
    class Farewell(Session):
        def data_received(self, data):
            self.transport.write(b"x" * 3_000_000)
            self.transport.write(b"bye")
            self.transport.close()
            assert self.transport.is_closing()
            self.transport.write(b"lost")
            self.transport.close()

    def talk(address):
        with connect(address, client) as tls:
            tls.sendall(b"go")
            received = read_all(tls)
            # Without the server's close_notify this would raise.
            tls.unwrap().close()
            return received

    async with port(chains, Farewell) as server:
        received = await asyncio.to_thread(talk, server.address)
        session = server.sessions[0]
        assert await session.lost is None
        assert received == b"x" * 3_000_000 + b"bye"
        assert session.events.count("lost") == 1
        await until(lambda: server.listener.open_count == 0)


async def test_last_words_reach_a_client_that_is_still_sending(chains, any_client):
    """Closing with unread bytes would reset the connection and lose the refusal."""

    class Refuser(Session):
        def data_received(self, data):
            self.transport.write(b"refused")
            self.transport.close()

    def talk(address):
        with connect(address, any_client) as tls:
            tls.sendall(bytes(4_000_000))
            return read_all(tls)

    async with port(chains, Refuser) as server:
        assert await asyncio.to_thread(talk, server.address) == b"refused"


async def test_a_client_that_never_stops_sending_is_cut_off(chains, any_client):
    class Refuser(Session):
        def data_received(self, data):
            self.transport.close()

    def talk(address):
        with connect(address, any_client) as tls:
            for _ in range(1000):
                tls.sendall(bytes(1_000_000))

    async with port(chains, Refuser) as server:
        with pytest.raises(OSError, match=r"(?i)reset|broken|closed|EOF"):
            await asyncio.to_thread(talk, server.address)
        await until(lambda: server.listener.open_count == 0)


async def test_the_peers_close_notify_is_end_of_file(chains, client):
    def talk(address):
        with connect(address, client) as tls:
            tls.sendall(b"all")
            tls.unwrap().close()

    async with port(chains, Session) as server:
        await asyncio.to_thread(talk, server.address)
        session = await server.session()
        assert await session.lost is None
        assert session.events == ["made", "eof", "lost"]
        assert session.received == b"all"


async def test_a_session_may_answer_after_the_peers_end_of_file(chains, any_client):
    class Answering(Session):
        keep_open_after_eof = True

        def eof_received(self):
            asyncio.get_running_loop().call_later(0.05, self.finish)
            return super().eof_received()

        def finish(self):
            self.transport.write(b"answer to " + self.received)
            self.transport.close()

    def talk(address):
        # The standard library cannot half-close a socket's TLS; over memory BIOs it can.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = any_client.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(address, timeout=30) as plain:

            def step(action):
                while True:
                    try:
                        return action()
                    except ssl.SSLWantReadError:
                        plain.sendall(outgoing.read())
                        incoming.write(plain.recv(65536))

            step(tls.do_handshake)
            tls.write(b"question")
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.unwrap()
            plain.sendall(outgoing.read())
            # Decrypted, since session tickets alone would make bytes on the wire.
            while data := plain.recv(65536):
                incoming.write(data)
            return tls.read(100)

    async with port(chains, Answering) as server:
        assert await asyncio.to_thread(talk, server.address) == b"answer to question"
        session = server.sessions[0]
        assert await session.lost is None
        assert session.received == b"question"


async def test_write_eof_sends_close_notify_and_goes_on_reading(chains, any_client):
    class HalfClosing(Session):
        def connection_made(self, transport):
            super().connection_made(transport)
            assert transport.can_write_eof()
            transport.write(b"that is all")
            transport.write_eof()
            transport.write_eof()
            with pytest.raises(RuntimeError):
                transport.write(b"more")

    def talk(address):
        with connect(address, any_client) as tls:
            received = read_all(tls)
            tls.sendall(b"but I have more")
            return received

    async with port(chains, HalfClosing) as server:
        assert await asyncio.to_thread(talk, server.address) == b"that is all"
        session = server.sessions[0]
        await until(lambda: session.received == b"but I have more")
        session.transport.close()
        await session.lost


async def test_a_bare_tcp_close_is_an_error(chains, client):
    """It may be an attacker who cuts a message short; only close_notify is a proper end."""

    def talk(address):
        tls = connect(address, client)
        tls.sendall(b"half a mess")
        tls.recv(100)  # until then the server may still be in the handshake
        tls.close()

    async with port(chains, Echo) as server:
        await asyncio.to_thread(talk, server.address)
        session = await server.session()
        assert isinstance(await session.lost, ConnectionResetError)
        assert session.events == ["made", "lost"]
        assert session.received == b"half a mess"


async def test_a_reset_is_an_error(chains, client):
    def talk(address):
        tls = connect(address, client)
        tls.sendall(b"x")
        tls.recv(100)
        tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        tls.close()

    async with port(chains, Echo) as server:
        await asyncio.to_thread(talk, server.address)
        session = await server.session()
        error = await session.lost
        assert isinstance(error, OSError)
        assert error.errno in (errno.ECONNRESET, None)


async def test_writing_to_a_peer_that_is_gone_loses_the_connection_once(chains, any_client):
    async with port(chains, Session) as server:
        tls = await asyncio.to_thread(connect, server.address, any_client)
        session = await server.session()
        session.transport.pause_reading()
        tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        tls.close()
        while not session.transport.is_closing():
            session.transport.write(b"anybody there?")
            await asyncio.sleep(0.01)
        assert isinstance(await session.lost, OSError)
        session.transport.write(b"into the void")
        session.transport.abort()
        session.transport.close()
        session.transport.resume_reading()
        assert session.events.count("lost") == 1


async def test_abort_loses_the_connection_at_once(chains, any_client):
    class Impatient(Session):
        def data_received(self, data):
            super().data_received(data)
            self.transport.write(b"never mind")
            self.transport.abort()
            assert "lost" not in self.events  # not from inside the session's own call

    def talk(address):
        with connect(address, any_client) as tls, contextlib.suppress(OSError):
            tls.sendall(b"x" * 100_000)
            read_all(tls)

    async with port(chains, Impatient) as server:
        await asyncio.to_thread(talk, server.address)
        session = server.sessions[0]
        assert await session.lost is None
        assert session.pieces == 1


@pytest.mark.parametrize("method", ["connection_made", "data_received", "eof_received"])
async def test_a_session_that_raises_loses_its_connection_and_no_other(chains, any_client, method):
    failures = []

    class Faulty(Echo):
        def answer(self, data):
            self.transport.write(data)

    def fail(*_):
        raise ZeroDivisionError("a defect")

    def talk(address):
        with connect(address, any_client) as tls:
            tls.sendall(b"x")
            with contextlib.suppress(OSError):
                tls.recv(10)
                tls.unwrap()

    asyncio.get_running_loop().set_exception_handler(
        lambda _, report: failures.append(type(report["exception"]))
    )
    async with port(chains, Faulty) as server:
        good = await asyncio.to_thread(connect, server.address, any_client)
        await server.session()
        setattr(Faulty, method, fail)
        await asyncio.to_thread(talk, server.address)
        await until(lambda: failures and server.listener.open_count == 1)
        assert failures == [ZeroDivisionError]
        delattr(Faulty, method)
        good.sendall(b"fine")
        assert await asyncio.to_thread(good.recv, 10) == b"fine"
        good.close()


async def test_another_protocol_can_take_over_the_stream(chains, any_client):
    class Upgrading(Session):
        def data_received(self, data):
            successor = Echo()
            successor.transport = self.transport
            self.transport.set_protocol(successor)
            assert self.transport.get_protocol() is successor
            self.transport.write(b"upgraded")

    def talk(address):
        with connect(address, any_client) as tls:
            tls.sendall(b"upgrade")
            assert tls.recv(100) == b"upgraded"
            tls.sendall(b"echo?")
            return tls.recv(100)

    async with port(chains, Upgrading) as server:
        assert await asyncio.to_thread(talk, server.address) == b"echo?"


# Garbage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 100,
        b"\xff" * 20_000,
        b"\x16\x03\x01\x40\x00" + b"\x01\x00\x3f\xfc" + b"\x03\x03" + b"\x00" * 200,
        b"\x80\x2e\x01\x03\x01",
        b"\x15\x03\x03\x00\x02\x02\x28",
    ],
    ids=["http", "zeros", "ones", "short hello", "SSLv2", "alert"],
)
async def test_garbage_never_reaches_a_session(chains, garbage):
    def talk(address):
        plain = socket.create_connection(address, timeout=30)
        with plain, contextlib.suppress(OSError):
            plain.sendall(garbage)
            plain.shutdown(socket.SHUT_WR)
            while plain.recv(1000):
                pass

    async with port(chains, Session) as server:
        await asyncio.to_thread(talk, server.address)
        assert await server.refusal()
        await until(lambda: server.listener.open_count == 0)
        assert server.sessions == []


async def test_garbage_inside_a_session_ends_it(chains, any_client):
    def talk(address):
        tls = connect(address, any_client)
        tls.sendall(b"x")
        with socket.socket(fileno=tls.detach()) as plain:
            plain.settimeout(30)
            plain.sendall(b"\x17\x03\x03\x00\x20" + b"\x00" * 32)
            with contextlib.suppress(ConnectionError):
                while plain.recv(1000):
                    pass

    async with port(chains, Session) as server:
        await asyncio.to_thread(talk, server.address)
        session = await server.session()
        assert isinstance(await session.lost, ConnectionAbortedError)
        assert session.received == b"x"
        assert "decryption failed" in await server.refusal()


# Time limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"", b"\x16\x03\x01\x02"])
async def test_a_handshake_that_does_not_end_is_cut_off(chains, start):
    limits = TransportLimits(handshake_timeout=0.1)
    async with port(chains, Session, limits=limits) as server:
        with socket.create_connection(server.address, timeout=30) as plain:
            plain.sendall(start)
            assert await asyncio.to_thread(plain.recv, 100) == b""
        assert await server.refusal() == "handshake took too long"
        assert server.listener.open_count == 0


async def test_a_client_that_says_nothing_after_the_handshake_is_cut_off(chains, any_client):
    limits = TransportLimits(first_byte_timeout=0.1)
    async with port(chains, Session, limits=limits) as server:
        with await asyncio.to_thread(connect, server.address, any_client) as tls:
            session = await server.session()
            assert isinstance(await session.lost, ConnectionAbortedError)
            with contextlib.suppress(OSError):
                assert await asyncio.to_thread(tls.recv, 100) == b""
        assert await server.refusal() == "nothing was sent after the handshake"


async def test_a_client_that_spoke_once_may_stay_silent(chains, any_client):
    limits = TransportLimits(first_byte_timeout=0.05, handshake_timeout=0.5)
    async with port(chains, Echo, limits=limits) as server:
        with await asyncio.to_thread(connect, server.address, any_client) as tls:
            tls.sendall(b"a")
            assert await asyncio.to_thread(tls.recv, 10) == b"a"
            await asyncio.sleep(0.7)
            tls.sendall(b"b")
            assert await asyncio.to_thread(tls.recv, 10) == b"b"
        assert not server.listener.refusals


class Babbler(Session):
    """Writes without any regard for pause_writing."""

    def data_received(self, data):
        self.transport.write(bytes(16_000_000))


async def test_a_peer_that_does_not_read_is_dropped(chains, any_client):
    limits = TransportLimits(write_stall_timeout=0.1)
    async with port(chains, Babbler, limits=limits) as server:
        with await asyncio.to_thread(connect, server.address, any_client) as tls:
            tls.sendall(b"go")
            session = await server.session()
            assert isinstance(await session.lost, ConnectionAbortedError)
            assert await server.refusal() == "the peer does not read"


async def test_a_slow_but_steady_reader_is_not_dropped(chains, any_client):
    limits = TransportLimits(write_stall_timeout=0.3)

    def talk(address):
        with connect(address, any_client) as tls:
            tls.sendall(b"go")
            received = 0
            pause = threading.Event()
            while received < 16_000_000:
                received += len(tls.recv(1 << 20))
                if received % 1_000_000 < 16384:
                    pause.wait(0.05)
            return received

    async with port(chains, Babbler, limits=limits) as server:
        assert await asyncio.to_thread(talk, server.address) == 16_000_000
        assert not server.listener.refusals


async def test_a_session_that_ignores_flow_control_is_bounded(chains, any_client):
    class Careless(Session):
        most = 0

        def data_received(self, data):
            while not self.transport.is_closing():
                self.transport.write(bytes(100_000))
                self.most = max(self.most, self.transport.get_write_buffer_size())

    limits = TransportLimits(write_max=1_000_000)
    async with port(chains, Careless, limits=limits) as server:
        with await asyncio.to_thread(connect, server.address, any_client) as tls:
            tls.sendall(b"go")
            session = await server.session()
            assert isinstance(await session.lost, ConnectionAbortedError)
            assert session.most <= 1_100_000
            assert await server.refusal() == "too much is waiting to be read by the peer"


async def test_close_does_not_wait_for_ever_for_a_peer_that_does_not_read(chains, any_client):
    class Closing(Babbler):
        def data_received(self, data):
            super().data_received(data)
            self.transport.close()

    limits = TransportLimits(close_timeout=0.1)
    async with port(chains, Closing, limits=limits) as server:
        with await asyncio.to_thread(connect, server.address, any_client) as tls:
            tls.sendall(b"go")
            session = await server.session()
            await session.lost
            await until(lambda: server.listener.open_count == 0)


async def test_write_marks_can_be_set(chains, any_client):
    async with port(chains, Session) as server:
        with await asyncio.to_thread(connect, server.address, any_client):
            transport = (await server.session()).transport
            assert transport.get_write_buffer_limits() == (16384, 65536)
            transport.set_write_buffer_limits(high=1000)
            assert transport.get_write_buffer_limits() == (250, 1000)
            transport.set_write_buffer_limits(high=0)
            transport.write(bytes(16_000_000))
            assert server.sessions[0].events == ["made", "pause"]
            with pytest.raises(ValueError, match="low"):
                transport.set_write_buffer_limits(high=1, low=2)


# The port -------------------------------------------------------------------------------------


async def test_more_clients_than_allowed_are_refused_and_the_others_stay(chains, any_client):
    limits = ListenerLimits(connections=2)
    async with port(chains, Echo, listener_limits=limits) as server:
        kept = [await asyncio.to_thread(connect, server.address, any_client) for _ in range(2)]
        with pytest.raises(OSError):  # noqa: PT011 - a reset or an end of file, as it happens
            await asyncio.to_thread(connect, server.address, any_client)
        assert server.listener.refusals["too many connections"] == 1
        for tls in kept:
            tls.sendall(b"ok")
            assert await asyncio.to_thread(tls.recv, 10) == b"ok"
        kept.pop().close()
        await until(lambda: server.listener.open_count == 1)
        kept.append(await asyncio.to_thread(connect, server.address, any_client))
        for tls in kept:
            tls.close()


async def test_silent_strangers_make_room_for_newcomers(chains, any_client):
    limits = ListenerLimits(pending=20)
    async with port(chains, Echo, listener_limits=limits) as server:
        friend = await asyncio.to_thread(connect, server.address, any_client)
        friend.sendall(b"hi")
        await asyncio.to_thread(friend.recv, 10)
        strangers = [socket.create_connection(server.address) for _ in range(200)]
        await until(lambda: server.listener.accepted == 201)
        assert server.listener.pending_count == 20
        assert server.listener.open_count == 21
        with await asyncio.to_thread(connect, server.address, any_client) as newcomer:
            newcomer.sendall(b"me too")
            assert await asyncio.to_thread(newcomer.recv, 10) == b"me too"
        friend.sendall(b"still here")
        assert await asyncio.to_thread(friend.recv, 10) == b"still here"
        assert server.listener.refusals["too many clients before their first byte"] >= 180
        for sock in (friend, *strangers):
            sock.close()


async def test_connections_from_one_address_can_be_limited(chains, any_client):
    limits = ListenerLimits(per_source=1)
    async with port(chains, Echo, listener_limits=limits) as server:
        first = await asyncio.to_thread(connect, server.address, any_client)
        with pytest.raises(OSError):  # noqa: PT011
            await asyncio.to_thread(connect, server.address, any_client)
        assert server.listener.refusals == {"too many connections from one address": 1}
        first.close()
        await until(lambda: server.listener.open_count == 0)
        (await asyncio.to_thread(connect, server.address, any_client)).close()


async def test_accepting_pauses_when_descriptors_run_out_and_goes_on_after(chains, any_client):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with port(chains, Echo) as server:
        tls = await asyncio.to_thread(connect, server.address, any_client)
        waiting = socket.socket()
        try:
            # Not one more can be opened, whatever gaps there are; open ones go on working.
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            waiting.connect(server.address)
            tls.sendall(b"alive")
            assert await asyncio.to_thread(tls.recv, 10) == b"alive"
            assert server.listener.accepted == 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: server.listener.accepted == 2)
        waiting.close()
        tls.close()


async def test_close_stops_accepting_and_leaves_sessions_alone(chains, any_client):
    async with port(chains, Echo) as server:
        tls = await asyncio.to_thread(connect, server.address, any_client)
        tls.sendall(b"a")
        assert await asyncio.to_thread(tls.recv, 10) == b"a"
        server.listener.close()
        server.listener.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(server.address)
        tls.sendall(b"b")
        assert await asyncio.to_thread(tls.recv, 10) == b"b"
        assert [transport.get_protocol() for transport in server.listener] == server.sessions
        server.listener.close_connections()
        assert await asyncio.to_thread(tls.recv, 10) == b""
        tls.close()
        await server.listener.wait_closed()
        assert server.listener.open_count == 0


async def test_all_addresses_share_one_port(chains, any_client):
    listener = await serve_tls(Echo, server_context(chains), port=0, purpose="test")
    try:
        assert {name[1] for name in listener.socknames} == {listener.port}
        for name in listener.socknames:
            address = "127.0.0.1" if name[0] == "0.0.0.0" else "::1"
            tls = await asyncio.to_thread(connect, (address, listener.port), any_client)
            tls.close()
    finally:
        listener.close()
        await listener.wait_closed()


def test_a_port_in_use_is_named_with_what_to_do():
    (holder,) = bind("127.0.0.1", 0, purpose="MQTT")
    number = holder.getsockname()[1]
    try:
        with pytest.raises(ConfigError) as caught:
            bind("127.0.0.1", number, purpose="MQTT", setting="--mqtt-port")
    finally:
        holder.close()
    message = str(caught.value)
    for part in (f"port {number} (MQTT)", "another program", "ss -ltnp", "--mqtt-port"):
        assert part in message


def test_a_forbidden_port_is_named_with_what_to_do(monkeypatch):
    def refuse(self, address):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "socket", type("Socket", (socket.socket,), {"bind": refuse}))
    with pytest.raises(ConfigError) as caught:
        bind("127.0.0.1", 443, purpose="HTTPS", setting="--https-port")
    for part in ("port 443 (HTTPS)", "permission denied", "setcap", "--https-port"):
        assert part in str(caught.value)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1 port 0 \(MQTT\)"):
        bind("192.0.2.1", 0, purpose="MQTT")
    with pytest.raises(ConfigError, match="no address of this machine"):
        bind("host.invalid", 0, purpose="MQTT")
