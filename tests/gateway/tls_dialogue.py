"""What the TLS tests share: a listener whose sessions record what happens, and client contexts."""

import asyncio
import contextlib
import select
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mooring.gateway.tls import ListenerLimits, TransportLimits, serve_tls, server_context
from mooring.pki.local import open_local_authority


class Session(asyncio.Protocol):
    """Records what the transport tells it; answers each piece through `answer`."""

    answer = None
    keep_open_after_eof = False

    def __init__(self):
        self.transport = None
        self.received = bytearray()
        self.pieces = 0
        self.events = []
        self.lost = asyncio.get_running_loop().create_future()
        self.eof = asyncio.Event()
        self.chain = ()

    def connection_made(self, transport):
        self.transport = transport
        self.chain = transport.get_extra_info("peer_chain")
        self.events.append("made")

    def data_received(self, data):
        self.received += data
        self.pieces += 1
        if self.answer is not None:
            self.answer(data)

    def eof_received(self):
        self.events.append("eof")
        self.eof.set()
        return self.keep_open_after_eof

    def pause_writing(self):
        self.events.append("pause")

    def resume_writing(self):
        self.events.append("resume")

    def connection_lost(self, error):
        self.events.append("lost")
        self.lost.set_result(error)


class Echo(Session):
    def answer(self, data):
        self.transport.write(data)


class Port:
    """A listener of recording sessions on a free loopback port."""

    def __init__(self, listener, sessions):
        self.listener = listener
        self.sessions = sessions

    @property
    def address(self):
        return ("127.0.0.1", self.listener.port)

    async def session(self, index=0):
        """The session of the index-th client whose handshake succeeded."""
        await until(lambda: len(self.sessions) > index)
        return self.sessions[index]

    async def refusal(self):
        """The reason of the first refusal."""
        await until(lambda: self.listener.refusals)
        return next(iter(self.listener.refusals))


async def until(condition):
    """Wait until `condition()` holds; the suite's own timeout ends a hopeless wait."""
    while not condition():
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def port(chains, protocol=Session, *, context=None, limits=None, listener_limits=None, **tls):
    sessions = []

    def factory():
        session = protocol()
        sessions.append(session)
        return session

    listener = await serve_tls(
        factory,
        context or server_context(chains, **tls),
        host="127.0.0.1",
        port=0,
        purpose="test",
        limits=listener_limits or ListenerLimits(transport=limits or TransportLimits()),
    )
    try:
        yield Port(listener, sessions)
    finally:
        listener.close()
        listener.abort_connections()
        await listener.wait_closed()


def make_chains(folder):
    """A local CA in `folder`: (its public roots, the server's two chains)."""
    authority = open_local_authority(folder, ("localhost", "127.0.0.1"))
    return authority.ca, [(chain.certificates, chain.key) for chain in authority.chains]


def client_context(ca, version=None, *, ciphers=None, certificate=None):
    context = ssl.create_default_context(cafile=str(ca))
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if ciphers is not None:
        context.set_ciphers(ciphers)
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


def connect(address, context, *, name="localhost"):
    """A blocking TLS client; call it in a thread."""
    plain = socket.create_connection(address, timeout=30)
    try:
        return context.wrap_socket(plain, server_hostname=name)
    except BaseException:
        plain.close()
        raise


def read_all(client):
    """Everything until the peer's close_notify or close."""
    parts = []
    while data := client.recv(65536):
        parts.append(data)
    return b"".join(parts)


def exchange(client, sent: bytes) -> bytes:
    """Send and receive at the same time until as much has come back as was sent.

    In one thread: OpenSSL's connections must not be read and written by two at once.
    """
    client.setblocking(False)
    received = bytearray()
    done = 0
    while len(received) < len(sent):
        select.select([client], [client] if done < len(sent) else [], [], 30)
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if done < len(sent):
                done += client.send(sent[done : done + 16384])
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while len(received) < len(sent):
                data = client.recv(65536)
                if not data:
                    raise ConnectionAbortedError("closed in the middle")
                received += data
    client.settimeout(30)
    return bytes(received)


def write_client_chain(path: Path, length: int, padding: int = 0) -> list[bytes]:
    """A client certificate under `length - 1` authorities, with its key; the DERs, leaf first.

    `padding` bytes of extension make the leaf bigger. A length of 1 is a self-signed leaf.
    """
    issuer_key = issuer = None
    certificates = []
    for depth in reversed(range(length)):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"depth-{depth}")])
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer or name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=depth > 0, path_length=None), critical=True)
        )
        if padding and depth == 0:
            blob = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), bytes(padding))
            builder = builder.add_extension(blob, critical=False)
        certificates.insert(0, builder.sign(issuer_key or key, hashes.SHA256()))
        issuer_key, issuer = key, name
    pem = b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)
    pem += issuer_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(pem)
    return [c.public_bytes(serialization.Encoding.DER) for c in certificates]
