"""The embedded certificate authority: what makes a first start serve TLS without any set-up.

Two roots and two server certificates stand side by side, because the cheap kind (P-256) is not
known to every old device and an RSA-only client cannot check a P-256 signature either, not even
the root's. Clients trust both roots through one file, `ca.pem`.

    DIR/ca.pem            both public roots; the one file that clients are given
    DIR/root-p256.pem     root certificate and its private key       DIR/root-rsa.pem
    DIR/server-p256.pem   server certificate and its private key     DIR/server-rsa.pem

Rules: a certificate and its key share one file, so that one rename replaces both and a crash
never leaves a pair that does not match. Private files are 0600 in a 0700 folder. Server
certificates are renewed when a third of their life is left or when the names change; a root is
only replaced near its end, and `ca.pem` then keeps the old one for as long as it is valid.
"""

import ipaddress
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mooring.errors import ConfigError
from mooring.files import make_private_folder, tighten, write_file

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Kind = Literal["p256", "rsa"]

_log = structlog.get_logger(__name__)

_KINDS: tuple[Kind, ...] = ("p256", "rsa")
_ROOT_LIFE = timedelta(days=20 * 365)
_ROOT_RENEWAL = timedelta(days=2 * 365)
# Apple's clients refuse a server certificate that lives longer than 825 days.
_SERVER_LIFE = timedelta(days=820)
_SERVER_RENEWAL = _SERVER_LIFE / 3
# Devices without a battery-backed clock often run behind.
_BACKDATE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Chain:
    """One server certificate as OpenSSL loads it; both paths may name the same file."""

    certificates: Path
    key: Path


@dataclass(frozen=True, slots=True)
class LocalAuthority:
    """Where the files are: `ca` for clients, `chains` (P-256 first) for the server."""

    ca: Path
    chains: tuple[Chain, ...]


@dataclass(frozen=True, slots=True)
class _Pair:
    certificate: x509.Certificate
    key: Key | None


def local_names() -> tuple[str, ...]:
    """The names that reach this machine without any set-up: localhost, its own, the loopback."""
    own = socket.gethostname().lower()
    try:
        _general_names((own,))
    except ConfigError:
        # A host may call itself anything; that must not keep the first start from succeeding.
        own = "localhost"
    return tuple(dict.fromkeys(("localhost", own, "127.0.0.1", "::1")))


def open_local_authority(
    folder: Path, names: Sequence[str], *, now: datetime | None = None
) -> LocalAuthority:
    """Make or renew what is missing in `folder` and say where it is.

    `names` are host names (a leading `*.` label is allowed) and IP addresses; the first one also
    becomes the subject. Calling it again is cheap and changes nothing while everything is in
    date, so a running node may call it daily. Raises ConfigError for a name that cannot stand in
    a certificate, and for files that are damaged or lack the key they need.
    """
    moment = now or datetime.now(UTC)
    wanted = _general_names(names)
    make_private_folder(folder)
    roots: list[x509.Certificate] = []
    chains: list[Chain] = []
    for kind in _KINDS:
        root = _root(folder, kind, moment)
        roots.append(root.certificate)
        path = folder / f"server-{kind}.pem"
        _server(path, kind, root, names[0], wanted, moment)
        chains.append(Chain(path, path))
    ca = folder / "ca.pem"
    _publish(ca, roots, moment)
    return LocalAuthority(ca, tuple(chains))


# Roots ----------------------------------------------------------------------------------------


def _root(folder: Path, kind: Kind, now: datetime) -> _Pair:
    path = folder / f"root-{kind}.pem"
    pair = _load(path)
    if pair is not None:
        if pair.certificate.not_valid_after_utc - now > _ROOT_RENEWAL:
            return pair
        _log.warning(
            "local_ca_renewed",
            root=str(path),
            expires=pair.certificate.not_valid_after_utc.isoformat(),
            advice="give clients the new ca.pem before the old root expires",
        )
    key = _new_key(kind, root=True)
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "mooring"),
            # Two installations must not share a name: a trust store looks issuers up by it.
            x509.NameAttribute(
                NameOID.COMMON_NAME, f"mooring local CA {kind.upper()} {os.urandom(4).hex()}"
            ),
        ]
    )
    subject_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key, now, _ROOT_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .add_extension(subject_key, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    _store(path, certificate, key)
    return _Pair(certificate, key)


def _publish(path: Path, roots: Sequence[x509.Certificate], now: datetime) -> None:
    """Write `ca.pem`: the roots in use, then earlier ones that clients may still meet."""
    earlier: list[x509.Certificate] = []
    text = b""
    if path.exists():
        text = path.read_bytes()
        try:
            earlier = x509.load_pem_x509_certificates(text)
        except ValueError:
            # Nothing but public copies of what the root files hold: rewritten below.
            _log.warning("local_ca_file_damaged", path=str(path))
    kept = [root for root in earlier if root not in roots and root.not_valid_after_utc > now]
    wanted = b"".join(_pem(certificate) for certificate in (*roots, *kept))
    if wanted != text:
        write_file(path, wanted, mode=0o644)


# Server certificates --------------------------------------------------------------------------


def _server(
    path: Path,
    kind: Kind,
    root: _Pair,
    subject: str,
    names: frozenset[x509.GeneralName],
    now: datetime,
) -> None:
    pair = _load(path)
    if pair is not None and pair.key is not None and _still_good(pair, root, names, now):
        return
    if root.key is None:
        raise ConfigError(
            f"the server certificate {path.name} must be renewed, but root-{kind}.pem in "
            f"{path.parent} holds no private key: put the key back, or move the file away to "
            f"start a new root (clients then need the new ca.pem)"
        )
    key = _new_key(kind, root=False)
    issuer = root.certificate
    subject_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer_key = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(_subject(subject), issuer.subject, key, now, _SERVER_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(sorted(names, key=repr)), critical=False)
        .add_extension(subject_key, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key),
            critical=False,
        )
        .sign(root.key, hashes.SHA256())
    )
    _store(path, certificate, key)
    _log.info(
        "server_certificate_issued",
        path=str(path),
        names=sorted(str(name.value) for name in names),
        expires=certificate.not_valid_after_utc.isoformat(),
    )


def _still_good(
    pair: _Pair, root: _Pair, names: frozenset[x509.GeneralName], now: datetime
) -> bool:
    certificate = pair.certificate
    if certificate.not_valid_after_utc - now < _SERVER_RENEWAL:
        return False
    if certificate.not_valid_before_utc > now:
        return False
    if certificate.issuer != root.certificate.subject:
        return False
    stated = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return frozenset(stated) == names


def _subject(name: str) -> x509.Name:
    # X.520 bounds a common name at 64 characters; the alternative names carry it in any case.
    common = name if len(name) <= 64 else "mooring"
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_names(names: Iterable[str]) -> frozenset[x509.GeneralName]:
    found: set[x509.GeneralName] = set()
    for name in names:
        try:
            found.add(x509.IPAddress(ipaddress.ip_address(name)))
            continue
        except ValueError:
            pass
        labels = name.lower().removeprefix("*.").rstrip(".").split(".")
        if not all(
            label.isascii()
            and 0 < len(label) <= 63
            and label.replace("-", "").replace("_", "").isalnum()
            for label in labels
        ):
            raise ConfigError(
                f"{name!r} cannot stand in a server certificate: give a host name in ASCII "
                f"letters, digits, '-' and '.', or an IP address"
            )
        found.add(x509.DNSName(name.lower().rstrip(".")))
    if not found:
        raise ConfigError("a server certificate needs at least one host name or IP address")
    return frozenset(found)


# Keys and files -------------------------------------------------------------------------------


def _new_key(kind: Kind, *, root: bool) -> Key:
    if kind == "p256":
        return ec.generate_private_key(ec.SECP256R1())
    # The root signs twice and lives for decades; the server's key pays at every handshake.
    return rsa.generate_private_key(65537, 3072 if root else 2048)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + life)
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _store(path: Path, certificate: x509.Certificate, key: Key) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_file(path, _pem(certificate) + private, mode=0o600)


def _load(path: Path) -> _Pair | None:
    """What `path` holds; the key is None when an operator keeps it elsewhere."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    if tighten(path):
        _log.warning("private_file_was_open", path=str(path))
    try:
        certificate = x509.load_pem_x509_certificate(text)
        key = None
        if b"PRIVATE KEY-----" in text:
            key = serialization.load_pem_private_key(text, password=None)
    except (ValueError, TypeError) as error:
        # The parser's own words could quote the file, so they stay out.
        raise ConfigError(
            f"{path} is damaged: restore it from a backup, or move it away to have it made anew"
        ) from error
    if key is None:
        return _Pair(certificate, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ConfigError(f"{path} holds a private key of a kind that the local CA never makes")
    if key.public_key() != certificate.public_key():
        raise ConfigError(f"{path} holds a private key that does not belong to its certificate")
    return _Pair(certificate, key)
