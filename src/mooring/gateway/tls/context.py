"""The server's TLS policy, as one OpenSSL context that every port shares.

Rules: TLS 1.2 and 1.3 only; forward-secret AEAD suites (ECDHE with CBC-SHA256 as an option for
old devices); no renegotiation, no compression, no resumption (a resumed session has lost the
peer's intermediates, which certificate authentication needs). A client certificate is asked for
and never judged here: thumbprint authentication has to accept one that chains nowhere, and the
one place that decides is `hub.access`. The handshake still proves possession of its key.
"""

from collections.abc import Iterable
from pathlib import Path

from OpenSSL import SSL, crypto

from mooring.errors import ConfigError

# With AES in hardware, AES-128-GCM is the cheapest for both sides; see _PRIORITIZE_CHACHA for
# clients without. ECDSA comes before RSA: our P-256 signature costs a fourteenth of an RSA one.
_AEAD_SUITES = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
)
_LEGACY_SUITES = ("ECDHE-ECDSA-AES128-SHA256", "ECDHE-RSA-AES128-SHA256")
_TLS13_SUITES = (
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
)
_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}

# SSL_OP_PRIORITIZE_CHACHA: the server's order holds, except for a client that puts ChaCha20
# first, which is how one without AES instructions says so. pyOpenSSL has no name for the bit.
_PRIORITIZE_CHACHA = 1 << 21

MAX_CHAIN = 8
"""Certificates that a client may present, leaf included."""


def server_context(
    chains: Iterable[tuple[Path, Path]],
    *,
    min_version: str = "1.2",
    legacy_ciphers: bool = False,
) -> SSL.Context:
    """The context for a server that presents `chains`: (certificate chain, private key) in PEM.

    At most one chain a key type; both paths of a pair may name the same file. Raises ConfigError
    that names the file which cannot be used.
    """
    if min_version not in _VERSIONS:
        raise ConfigError(f"tls min_version must be '1.2' or '1.3', not {min_version!r}")
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(_VERSIONS[min_version])
    suites = _AEAD_SUITES + (_LEGACY_SUITES if legacy_ciphers else ())
    context.set_cipher_list(":".join(suites).encode("ascii"))
    context.set_tls13_ciphersuites(":".join(_TLS13_SUITES).encode("ascii"))
    context.set_options(
        SSL.OP_NO_RENEGOTIATION
        | SSL.OP_NO_COMPRESSION
        | SSL.OP_NO_TICKET
        | SSL.OP_CIPHER_SERVER_PREFERENCE
        | _PRIORITIZE_CHACHA
    )
    # OP_IGNORE_UNEXPECTED_EOF stays off: a close without close_notify must remain tellable from
    # one with it, since only the latter is a half-close.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # The default modes already hold ENABLE_PARTIAL_WRITE and ACCEPT_MOVING_WRITE_BUFFER, which
    # the transport relies on. Releasing buffers halves the memory of an idle connection.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_verify(SSL.VERIFY_PEER, _accept_any)
    context.set_verify_depth(MAX_CHAIN)
    loaded = 0
    for certificates, key in chains:
        _load_chain(context, certificates, key)
        loaded += 1
    if not loaded:
        raise ConfigError("a TLS server needs at least one certificate chain")
    return context


def _accept_any(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
) -> bool:
    """Accept what OpenSSL cannot judge, but stop it from checking signature after signature."""
    return depth <= MAX_CHAIN


def _load_chain(context: SSL.Context, certificates: Path, key: Path) -> None:
    for path in (certificates, key):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    try:
        context.use_certificate_chain_file(str(certificates))
    except SSL.Error as error:
        raise ConfigError(f"{certificates} holds no usable certificate chain in PEM") from error
    try:
        context.use_privatekey_file(str(key))
        context.check_privatekey()
    except SSL.Error as error:
        raise ConfigError(
            f"{key} holds no usable private key for the certificate in {certificates}"
        ) from error
