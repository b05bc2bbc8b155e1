"""Identities: which ids, keys and thumbprints are legal, and how they are shown."""

import base64

import pytest

from mooring.errors import ArgumentInvalid
from mooring.hub.identity import (
    Identity,
    Ref,
    check_id,
    check_key,
    new_key,
    normal_thumbprint,
    ticks,
)

SHA1, SHA256 = "AB" * 20, "0F" * 32


@pytest.mark.parametrize(
    "text", ["d", "D1", "a%41", "x" * 128, "-:.+%_#*?!(),=@;$'", "..", "query"]
)
def test_legal_ids(text: str) -> None:
    assert check_id(text) == text


@pytest.mark.parametrize(
    "text", ["", "x" * 129, "a/b", "a b", "ä", "a\n", "a~", "a&b", 'a"b', "a\\b", "{a}", "a\x00"]
)
def test_illegal_ids(text: str) -> None:
    with pytest.raises(ArgumentInvalid):
        check_id(text)


def test_new_keys_are_32_random_bytes() -> None:
    keys = {new_key() for _ in range(20)}
    assert len(keys) == 20
    assert {len(base64.b64decode(key)) for key in keys} == {32}


@pytest.mark.parametrize("size", [16, 32, 64])
def test_legal_keys(size: int) -> None:
    key = base64.b64encode(bytes(size)).decode()
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key",
    [
        base64.b64encode(bytes(15)).decode(),
        base64.b64encode(bytes(65)).decode(),
        "not base64!",
        "AAAA",
        base64.b64encode(bytes(32)).decode().rstrip("="),
        base64.b64encode(bytes(32)).decode() + "\n",
        "ä" * 44,
    ],
)
def test_illegal_keys_are_refused_without_repeating_them(key: str) -> None:
    with pytest.raises(ArgumentInvalid) as refused:
        check_key(key)
    assert key not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (SHA1, SHA1),
        (SHA256.lower(), SHA256),
        (":".join("ab" for _ in range(20)), SHA1),
        (" ".join("AB" for _ in range(20)), SHA1),
    ],
)
def test_thumbprints_are_stored_in_one_form(text: str, normal: str) -> None:
    assert normal_thumbprint(text) == normal


@pytest.mark.parametrize("text", ["", "AB", "G" * 40, "A" * 41, "A" * 63])
def test_illegal_thumbprints(text: str) -> None:
    with pytest.raises(ArgumentInvalid):
        normal_thumbprint(text)


def test_etag_is_base64_of_the_decimal_version() -> None:
    identity = Identity(device_id="d1", generation_id="1", version=530254372)
    assert identity.etag == "NTMwMjU0Mzcy"


def test_ticks_have_18_digits() -> None:
    assert ticks(0) == 621355968000000000
    assert len(str(ticks(1_700_000_000_000))) == 18


def test_a_ref_names_its_path() -> None:
    assert Ref("d1").path == "devices/d1"
    assert Ref("d1", "m1").path == "devices/d1/modules/m1"


def test_only_sas_identities_have_keys_that_prove_them() -> None:
    sas = Identity(device_id="d1", generation_id="1", primary_key="a", secondary_key="b")
    x509 = Identity(device_id="d1", generation_id="1", auth_type="selfSigned", primary_key="a")
    assert sas.keys == ("a", "b")
    assert x509.keys == ()


def test_the_repr_shows_no_key() -> None:
    identity = Identity(device_id="d1", generation_id="1", primary_key="SECRET")
    assert "SECRET" not in repr(identity)
