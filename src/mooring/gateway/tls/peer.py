"""What a handshake tells about the client: its certificates, and why it failed."""

from typing import Any

from OpenSSL import SSL, crypto

from mooring.gateway.tls.context import MAX_CHAIN


def peer_chain(conn: SSL.Connection) -> tuple[bytes, ...]:
    """The certificates that the client presented, as DER, leaf first; () if none."""
    leaf = conn.get_peer_certificate()
    if leaf is None:
        return ()
    # On the server's side OpenSSL leaves the leaf out of the chain.
    presented = [leaf, *(conn.get_peer_cert_chain() or ())]
    return tuple(
        crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate) for certificate in presented
    )


def session_info(conn: SSL.Connection, name: str, default: Any) -> Any:
    """The part of `get_extra_info` that only OpenSSL knows, once the handshake is done."""
    if name == "sni":
        sent = conn.get_servername()
        return sent.decode("ascii", "replace").lower() if sent else default
    if name == "tls_version":
        return conn.get_protocol_version_name()
    if name == "cipher":
        return conn.get_cipher_name()
    if name == "peer_chain":
        return peer_chain(conn)
    if name == "sslcontext":
        return conn.get_context()
    return default


def chain_excess(conn: SSL.Connection, max_bytes: int) -> str:
    """Why the client's chain is too much, or "".

    OpenSSL itself stops reading at 100 KiB; pyOpenSSL has no way to lower that.
    """
    presented = peer_chain(conn)
    if len(presented) > MAX_CHAIN:
        return f"more than {MAX_CHAIN} client certificates"
    if sum(map(len, presented)) > max_bytes:
        return f"more than {max_bytes} bytes of client certificates"
    return ""


def failure_reason(error: Exception) -> str:
    """OpenSSL's own words for what went wrong, such as "unsupported protocol"."""
    if isinstance(error, SSL.SysCallError | SSL.ZeroReturnError):
        return "the peer closed the connection"
    if error.args and isinstance(error.args[0], list):
        words = [item[2] for item in error.args[0] if len(item) > 2 and item[2]]
        if words:
            return ", ".join(dict.fromkeys(words))
    return str(error) or type(error).__name__
