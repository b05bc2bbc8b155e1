"""The local CA: what the first start makes, what a restart leaves alone, and what it renews."""

import ipaddress
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.verification import PolicyBuilder, Store

from mooring.errors import ConfigError
from mooring.pki.local import local_names, open_local_authority

NAMES = ("localhost", "hub.example", "127.0.0.1", "::1")
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def server_certificates(folder: Path) -> list[x509.Certificate]:
    return [
        x509.load_pem_x509_certificate((folder / f"server-{kind}.pem").read_bytes())
        for kind in ("p256", "rsa")
    ]


def test_first_start_makes_a_p256_and_an_rsa_chain_under_one_file_of_roots(tmp_path):
    folder = tmp_path / "pki"
    authority = open_local_authority(folder, NAMES, now=NOW)
    roots = x509.load_pem_x509_certificates(authority.ca.read_bytes())
    assert isinstance(roots[0].public_key(), ec.EllipticCurvePublicKey)
    assert isinstance(roots[1].public_key(), rsa.RSAPublicKey)
    leaves = [
        x509.load_pem_x509_certificate(chain.certificates.read_bytes())
        for chain in authority.chains
    ]
    assert isinstance(leaves[0].public_key(), ec.EllipticCurvePublicKey)
    assert isinstance(leaves[1].public_key(), rsa.RSAPublicKey)
    assert leaves[1].public_key().key_size == 2048
    for leaf, root in zip(leaves, roots, strict=True):
        leaf.verify_directly_issued_by(root)


def test_strict_verifiers_accept_both_chains_for_every_name(tmp_path):
    authority = open_local_authority(tmp_path, NAMES, now=NOW)
    store = Store(x509.load_pem_x509_certificates(authority.ca.read_bytes()))
    policy = PolicyBuilder().store(store).time(NOW)
    for leaf in server_certificates(tmp_path):
        policy.build_server_verifier(x509.DNSName("hub.example")).verify(leaf, [])
        for address in ("127.0.0.1", "::1"):
            name = x509.IPAddress(ipaddress.ip_address(address))
            policy.build_server_verifier(name).verify(leaf, [])


def test_openssl_in_strict_mode_accepts_both_chains(tmp_path):
    authority = open_local_authority(tmp_path, NAMES)
    for chain in authority.chains:
        outcome = subprocess.run(
            [
                *("openssl", "verify", "-x509_strict", "-purpose", "sslserver"),
                *("-verify_hostname", "localhost", "-CAfile", authority.ca, chain.certificates),
            ],
            capture_output=True,
            text=True,
        )
        assert outcome.returncode == 0, outcome.stderr


def test_private_files_are_readable_by_their_owner_only(tmp_path):
    folder = tmp_path / "pki"
    open_local_authority(folder, NAMES, now=NOW)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        expected = 0o644 if path.name == "ca.pem" else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path.name
    assert b"PRIVATE" not in (folder / "ca.pem").read_bytes()


def test_files_that_were_opened_to_others_are_closed_again(tmp_path):
    open_local_authority(tmp_path, NAMES, now=NOW)
    (tmp_path / "root-rsa.pem").chmod(0o644)
    tmp_path.chmod(0o755)
    open_local_authority(tmp_path, NAMES, now=NOW)
    assert stat.S_IMODE((tmp_path / "root-rsa.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_a_restart_changes_nothing(tmp_path):
    open_local_authority(tmp_path, NAMES, now=NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    open_local_authority(tmp_path, NAMES, now=NOW + timedelta(days=300))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_new_names_renew_the_servers_and_keep_the_roots(tmp_path):
    open_local_authority(tmp_path, NAMES, now=NOW)
    roots = (tmp_path / "ca.pem").read_bytes()
    open_local_authority(tmp_path, (*NAMES, "factory.example"), now=NOW)
    assert (tmp_path / "ca.pem").read_bytes() == roots
    for leaf in server_certificates(tmp_path):
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert "factory.example" in names.get_values_for_type(x509.DNSName)


def test_the_order_and_case_of_names_do_not_renew(tmp_path):
    open_local_authority(tmp_path, NAMES, now=NOW)
    before = server_certificates(tmp_path)
    shuffled = ("LOCALHOST", "::1", "0:0:0:0:0:0:0:1", "127.0.0.1", "Hub.Example")
    open_local_authority(tmp_path, shuffled, now=NOW)
    assert server_certificates(tmp_path) == before


def test_server_certificates_are_renewed_when_a_third_of_their_life_is_left(tmp_path):
    open_local_authority(tmp_path, NAMES, now=NOW)
    before = server_certificates(tmp_path)
    later = NOW + timedelta(days=560)
    open_local_authority(tmp_path, NAMES, now=later)
    for old, new in zip(before, server_certificates(tmp_path), strict=True):
        assert new.serial_number != old.serial_number
        assert new.not_valid_after_utc > old.not_valid_after_utc
        assert new.issuer == old.issuer


def test_a_renewed_root_joins_the_old_one_in_the_file_of_roots(tmp_path):
    open_local_authority(tmp_path, NAMES, now=NOW)
    old = x509.load_pem_x509_certificates((tmp_path / "ca.pem").read_bytes())
    later = NOW + timedelta(days=19 * 365)
    open_local_authority(tmp_path, NAMES, now=later)
    roots = x509.load_pem_x509_certificates((tmp_path / "ca.pem").read_bytes())
    assert len(roots) == 4
    assert roots[2:] == old
    for leaf, root in zip(server_certificates(tmp_path), roots, strict=False):
        leaf.verify_directly_issued_by(root)
    much_later = NOW + timedelta(days=21 * 365)
    open_local_authority(tmp_path, NAMES, now=much_later)
    roots = x509.load_pem_x509_certificates((tmp_path / "ca.pem").read_bytes())
    assert all(root not in roots for root in old)


def test_a_root_key_kept_elsewhere_is_missed_only_at_renewal(tmp_path):
    open_local_authority(tmp_path, NAMES, now=NOW)
    path = tmp_path / "root-p256.pem"
    public, _, _ = path.read_bytes().partition(b"-----BEGIN PRIVATE KEY-----")
    path.write_bytes(public)
    open_local_authority(tmp_path, NAMES, now=NOW)
    with pytest.raises(ConfigError, match=r"root-p256\.pem .* holds no private key"):
        open_local_authority(tmp_path, ("other.example",), now=NOW)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 900])
def test_a_damaged_file_is_named_and_never_replaced(tmp_path, content):
    open_local_authority(tmp_path, NAMES, now=NOW)
    path = tmp_path / "root-rsa.pem"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"root-rsa\.pem is damaged"):
        open_local_authority(tmp_path, NAMES, now=NOW)
    assert path.read_bytes() == content


def test_a_key_of_another_certificate_is_refused(tmp_path):
    open_local_authority(tmp_path / "a", NAMES, now=NOW)
    open_local_authority(tmp_path / "b", NAMES, now=NOW)
    ours, theirs = tmp_path / "a/server-p256.pem", tmp_path / "b/server-p256.pem"
    mark = b"-----BEGIN PRIVATE KEY-----"
    ours.write_bytes(
        ours.read_bytes().partition(mark)[0] + mark + theirs.read_bytes().partition(mark)[2]
    )
    with pytest.raises(ConfigError, match="does not belong"):
        open_local_authority(tmp_path / "a", NAMES, now=NOW)


def test_a_damaged_file_of_roots_is_written_anew(tmp_path):
    open_local_authority(tmp_path, NAMES, now=NOW)
    good = (tmp_path / "ca.pem").read_bytes()
    (tmp_path / "ca.pem").write_bytes(
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    )
    open_local_authority(tmp_path, NAMES, now=NOW)
    assert (tmp_path / "ca.pem").read_bytes() == good


@pytest.mark.parametrize("name", ["", "a b", "hüb.example", "a..b", "x" * 64, "*", "host:8883"])
def test_names_that_no_certificate_can_carry_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot stand in a server certificate"):
        open_local_authority(tmp_path, (name,), now=NOW)


def test_long_names_and_wildcards_stand_in_the_alternative_names(tmp_path):
    long = ".".join(["label" * 4] * 5)
    open_local_authority(tmp_path, (long, "*.hubs.example"), now=NOW)
    for leaf in server_certificates(tmp_path):
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert set(names.get_values_for_type(x509.DNSName)) == {long, "*.hubs.example"}


def test_the_machines_own_names_include_the_loopback():
    assert {"localhost", "127.0.0.1", "::1"} <= set(local_names())
