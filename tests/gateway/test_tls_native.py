"""The shortcut around pyOpenSSL's recv and send: same results, same errors, with and without it."""

import asyncio

import pytest
from tls_dialogue import Echo, client_context, connect, exchange, make_chains, port

from mooring.gateway.tls import native


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return make_chains(tmp_path_factory.mktemp("pki"))


def test_the_shortcut_is_in_use():
    """If pyOpenSSL changes, everything goes on working, but somebody should notice."""
    assert native._fast


@pytest.mark.parametrize("fast", [True, False])
async def test_the_public_methods_do_as_well(pki, monkeypatch, fast):
    monkeypatch.setattr(native, "_fast", fast)
    ca, chains = pki
    sent = bytes(range(256)) * 40_000

    def talk(address):
        with connect(address, client_context(ca)) as tls:
            received = exchange(tls, sent)
            tls.unwrap().close()
            return received

    async with port(chains, Echo) as server:
        assert await asyncio.to_thread(talk, server.address) == sent
        session = server.sessions[0]
        assert await session.lost is None
        assert session.events[-2:] == ["eof", "lost"]


def test_receivers_do_not_share_a_buffer():
    """Two loops in two threads read at the same time: SSL_read runs without the lock."""
    first, second = native.receiver(), native.receiver()
    buffers = [
        next(cell.cell_contents for cell in each.__closure__ if "char" in repr(cell.cell_contents))
        for each in (first, second)
    ]
    assert buffers[0] is not buffers[1]
