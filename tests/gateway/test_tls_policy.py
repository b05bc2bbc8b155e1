"""Who gets a TLS session: versions, suites, chains, resumption, client certificates."""

import asyncio
import socket
import ssl
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tls_dialogue import (
    Echo,
    client_context,
    connect,
    make_chains,
    port,
    until,
    write_client_chain,
)

from mooring.errors import ConfigError
from mooring.gateway.tls import server_context

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return make_chains(tmp_path_factory.mktemp("pki"))


def talk(address, context, **options):
    """One echo: (version, suite, the server's certificate)."""
    with connect(address, context, **options) as client:
        client.sendall(b"hello")
        answer = client.recv(100)
        if not answer:
            raise ConnectionAbortedError("closed without an answer")
        assert answer == b"hello"
        certificate = x509.load_der_x509_certificate(client.getpeercert(binary_form=True))
        return client.version(), client.cipher()[0], certificate


async def s_client(address, *arguments, input=b"hello\n"):
    """OpenSSL's own client: (exit status, what it printed)."""
    process = await asyncio.create_subprocess_exec(
        *("openssl", "s_client", "-connect", f"{address[0]}:{address[1]}", "-ign_eof"),
        *arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate(input)
    return process.returncode, output.decode(errors="replace")


@pytest.mark.parametrize("version", [TLS12, TLS13])
async def test_both_versions_get_the_p256_chain_and_aes_gcm(pki, version):
    ca, chains = pki
    async with port(chains, Echo) as server:
        name, suite, leaf = await asyncio.to_thread(
            talk, server.address, client_context(ca, version)
        )
    assert name == {TLS12: "TLSv1.2", TLS13: "TLSv1.3"}[version]
    assert "AES_128_GCM" in suite or "AES128-GCM" in suite
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)


async def test_a_client_that_knows_only_rsa_gets_the_rsa_chain_over_tls_12(pki):
    ca, chains = pki
    context = client_context(ca, TLS12, ciphers="ECDHE-RSA-AES128-GCM-SHA256")
    async with port(chains, Echo) as server:
        _, suite, leaf = await asyncio.to_thread(talk, server.address, context)
    assert suite == "ECDHE-RSA-AES128-GCM-SHA256"
    assert isinstance(leaf.public_key(), rsa.RSAPublicKey)


async def test_a_client_that_knows_only_rsa_gets_the_rsa_chain_over_tls_13(pki):
    ca, chains = pki
    async with port(chains, Echo) as server:
        process = asyncio.create_task(
            s_client(
                server.address,
                *("-tls1_3", "-sigalgs", "rsa_pss_rsae_sha256", "-CAfile", str(ca)),
                *("-verify_return_error", "-verify_hostname", "localhost"),
            )
        )
        session = await server.session()
        await until(lambda: session.received)
        session.transport.close()
        status, output = await process
    assert status == 0, output
    assert "Peer signature type: RSA-PSS" in output
    assert "Verification: OK" in output


async def test_a_server_with_one_chain_serves_it(pki):
    ca, chains = pki
    async with port(chains[1:], Echo) as server:
        _, _, leaf = await asyncio.to_thread(talk, server.address, client_context(ca))
    assert isinstance(leaf.public_key(), rsa.RSAPublicKey)


async def test_a_client_without_aes_gets_chacha_first(pki):
    ca, chains = pki
    ciphers = "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-GCM-SHA256"
    context = client_context(ca, TLS12, ciphers=ciphers)
    async with port(chains, Echo) as server:
        _, suite, _ = await asyncio.to_thread(talk, server.address, context)
    assert suite == "ECDHE-ECDSA-CHACHA20-POLY1305"


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
async def test_weak_versions_are_refused_with_an_alert(pki, version):
    _, chains = pki
    async with port(chains, Echo) as server:
        status, output = await s_client(
            server.address, version, "-cipher", "ALL:@SECLEVEL=0", input=b""
        )
        assert status != 0
        assert "alert protocol version" in output
        assert await server.refusal() == "unsupported protocol"
        assert server.sessions == []


@pytest.mark.parametrize(
    "suite",
    [
        "AES128-GCM-SHA256",  # no forward secrecy
        "DHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES128-SHA256",  # CBC
        "ECDHE-RSA-AES128-SHA256",
        "ECDHE-RSA-AES256-SHA",
        "ADH-AES128-GCM-SHA256",
    ],
)
async def test_weak_suites_are_refused(pki, suite):
    _, chains = pki
    async with port(chains, Echo) as server:
        status, output = await s_client(
            server.address, "-tls1_2", "-cipher", f"{suite}:@SECLEVEL=0", input=b""
        )
        assert status != 0
        assert "handshake failure" in output
        assert await server.refusal() == "no shared cipher"


@pytest.mark.parametrize("suite", ["ECDHE-ECDSA-AES128-SHA256", "ECDHE-RSA-AES128-SHA256"])
async def test_cbc_sha256_can_be_switched_on_for_old_devices(pki, suite):
    ca, chains = pki
    context = client_context(ca, TLS12, ciphers=suite)
    async with port(chains, Echo, legacy_ciphers=True) as server:
        _, agreed, _ = await asyncio.to_thread(talk, server.address, context)
        # It stays the last resort.
        _, preferred, _ = await asyncio.to_thread(talk, server.address, client_context(ca, TLS12))
    assert agreed == suite
    assert "GCM" in preferred


async def test_min_version_13_refuses_12(pki):
    ca, chains = pki
    async with port(chains, Echo, min_version="1.3") as server:
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            await asyncio.to_thread(talk, server.address, client_context(ca, TLS12))
        version, _, _ = await asyncio.to_thread(talk, server.address, client_context(ca))
    assert version == "TLSv1.3"


async def test_renegotiation_is_refused(pki):
    ca, chains = pki
    async with port(chains, Echo) as server:
        process = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{server.listener.port}"),
            *("-tls1_2", "-CAfile", str(ca)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        process.stdin.write(b"before\n")
        session = await server.session()
        await until(lambda: session.received == b"before\n")
        process.stdin.write(b"R\n")
        output = await process.stdout.read()
        await process.wait()
    assert b"RENEGOTIATING" in output
    assert b"no renegotiation" in output
    assert session.received == b"before\n"


@pytest.mark.parametrize("version", [TLS12, TLS13])
async def test_sessions_are_never_resumed(pki, version, tmp_path):
    """A resumed session has lost the intermediates; a client that tries gets a full handshake."""
    ca, chains = pki
    certificate = tmp_path / "device.pem"
    presented = write_client_chain(certificate, 3)
    context = client_context(ca, version, certificate=certificate)

    def twice(address):
        with connect(address, context) as first:
            first.sendall(b"1")
            first.recv(1)
            kept = first.session
        with (
            socket.create_connection(address, timeout=30) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=kept) as second,
        ):
            second.sendall(b"2")
            assert second.recv(1) == b"2"
            return second.session_reused

    async with port(chains, Echo) as server:
        assert await asyncio.to_thread(twice, server.address) is False
        assert [list(session.chain) for session in server.sessions] == [presented, presented]


# Client certificates --------------------------------------------------------------------------


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("length", [1, 2, 4])
async def test_any_client_certificate_is_taken_with_its_chain(pki, version, length, tmp_path):
    ca, chains = pki
    certificate = tmp_path / "device.pem"
    presented = write_client_chain(certificate, length)
    context = client_context(ca, version, certificate=certificate)
    async with port(chains, Echo) as server:
        await asyncio.to_thread(talk, server.address, context)
        session = await server.session()
        assert list(session.chain) == presented


@pytest.mark.parametrize("version", [TLS12, TLS13])
async def test_no_client_certificate_is_fine_and_an_empty_chain(pki, version):
    ca, chains = pki
    async with port(chains, Echo) as server:
        await asyncio.to_thread(talk, server.address, client_context(ca, version))
        assert server.sessions[0].chain == ()


@pytest.mark.parametrize("version", [TLS12, TLS13])
async def test_a_chain_of_too_many_certificates_is_refused(pki, version, tmp_path):
    ca, chains = pki
    certificate = tmp_path / "device.pem"
    write_client_chain(certificate, 12)
    context = client_context(ca, version, certificate=certificate)
    async with port(chains, Echo) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(talk, server.address, context)
        await server.refusal()
        assert server.sessions == []


async def test_unrelated_certificates_count_as_chain_too(pki, tmp_path):
    ca, chains = pki
    certificate = tmp_path / "device.pem"
    write_client_chain(certificate, 1)
    leaf = certificate.read_bytes()
    public = leaf.partition(b"-----BEGIN PRIVATE KEY-----")[0]
    certificate.write_bytes(leaf + public * 9)
    context = client_context(ca, certificate=certificate)
    async with port(chains, Echo) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(talk, server.address, context)
        assert await server.refusal() == "more than 8 client certificates"


@pytest.mark.parametrize(
    ("size", "reason"),
    [(40_000, "more than 32768 bytes of client certificates"), (200_000, "excessive message size")],
)
async def test_a_chain_of_too_many_bytes_is_refused(pki, size, reason, tmp_path):
    ca, chains = pki
    certificate = tmp_path / "device.pem"
    write_client_chain(certificate, 1, padding=size)
    context = client_context(ca, certificate=certificate)
    async with port(chains, Echo) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(talk, server.address, context)
        assert await server.refusal() == reason
        assert server.sessions == []


# What the session learns ----------------------------------------------------------------------


async def test_the_session_learns_who_and_how(pki):
    ca, chains = pki
    learned = {}

    class Curious(Echo):
        def data_received(self, data):
            for name in ("sni", "tls_version", "cipher", "peername", "sockname", "ssl_object"):
                learned[name] = self.transport.get_extra_info(name)
            learned["secure"] = bool(self.transport.get_extra_info("sslcontext"))
            learned["other"] = self.transport.get_extra_info("other", "default")
            super().data_received(data)

    async with port(chains, Curious) as server:
        context = client_context(ca, TLS13)
        context.check_hostname = False
        await asyncio.to_thread(talk, server.address, context, name="Hub.Example")
    assert learned.pop("peername")[0] == "127.0.0.1"
    assert learned == {
        "sni": "hub.example",
        "tls_version": "TLSv1.3",
        "cipher": "TLS_AES_128_GCM_SHA256",
        "sockname": server.address,
        "ssl_object": None,
        "secure": True,
        "other": "default",
    }


async def test_a_client_without_sni_is_served(pki):
    ca, chains = pki
    context = client_context(ca)
    context.check_hostname = False
    async with port(chains, Echo) as server:
        with await asyncio.to_thread(connect, server.address, context, name=None):
            session = await server.session()
            assert session.transport.get_extra_info("sni") is None


async def test_a_renewed_certificate_holds_for_the_next_client(pki, tmp_path):
    ca, chains = pki
    other_ca, other_chains = make_chains(tmp_path)
    async with port(chains, Echo) as server:
        with await asyncio.to_thread(connect, server.address, client_context(ca)) as early:
            server.listener.set_context(server_context(other_chains))
            await asyncio.to_thread(talk, server.address, client_context(other_ca))
            early.sendall(b"still here")
            assert await asyncio.to_thread(early.recv, 100) == b"still here"
        server.listener.set_context(lambda: server_context(chains))
        await asyncio.to_thread(talk, server.address, client_context(ca))


def test_unusable_files_are_named(pki, tmp_path):
    _, chains = pki
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("nonsense")
    good = chains[0][0]
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        server_context([(tmp_path / "missing.pem", good)])
    with pytest.raises(ConfigError, match=r"garbage\.pem holds no usable certificate"):
        server_context([(garbage, good)])
    with pytest.raises(ConfigError, match=r"garbage\.pem holds no usable private key"):
        server_context([(good, garbage)])
    with pytest.raises(ConfigError, match=r"server-rsa\.pem holds no usable private key"):
        server_context([(good, chains[1][1])])
    with pytest.raises(ConfigError, match="at least one certificate chain"):
        server_context([])
    with pytest.raises(ConfigError, match="min_version"):
        server_context(chains, min_version="1.1")
