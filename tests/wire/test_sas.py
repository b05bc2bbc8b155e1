"""Shared access signatures: what the official clients write, what people write, what is refused."""

import base64
import hashlib
import hmac
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.wire import sas
from mooring.wire.errors import WireError

KEY = base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.b64encode(bytes(range(1, 33))).decode()


def signature(key: bytes, text: str) -> str:
    return base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()


def hand_made(signed: str, shown: str, key: bytes = base64.b64decode(KEY)) -> str:
    sig = quote(signature(key, f"{signed}\n1700000000"), safe="")
    return f"SharedAccessSignature sr={shown}&sig={sig}&se=1700000000"


def test_a_generated_token_verifies_and_says_what_it_claims() -> None:
    text = sas.generate(KEY, "Localhost/devices/d 1", 1700000000, policy="device")
    token = sas.parse(text)
    assert token.policy == "device"
    assert token.expires == 1700000000
    assert token.scope == sas.Scope("localhost", ("devices", "d 1"))
    assert str(token.scope) == "localhost/devices/d 1"
    assert sas.verify(token, KEY)
    assert not sas.verify(token, OTHER_KEY)


@pytest.mark.parametrize(
    ("signed", "shown"),
    [
        ("hub%2Fdevices%2Fd1", "hub%2Fdevices%2Fd1"),
        ("hub%2fdevices%2fd1", "hub%2fdevices%2fd1"),
        ("hub/devices/d1", "hub/devices/d1"),
        ("hub/devices/d1", "hub%2fdevices%2fd1"),
        ("hub%2Fdevices%2Fd1", "hub%2fdevices%2fd1"),
        ("hub%2fdevices%2fd1", "hub/devices/d1"),
        (quote_plus("hub/devices/d%1"), quote_plus("hub/devices/d%1")),
    ],
)
def test_every_spelling_that_clients_sign_verifies(signed: str, shown: str) -> None:
    assert sas.verify(sas.parse(hand_made(signed, shown)), KEY)


def test_event_hubs_clients_sign_with_the_text_of_the_key() -> None:
    token = sas.parse(sas.generate(KEY, "sb://hub/events", 1700000000, policy="p", raw_text=True))
    assert sas.verify(token, KEY, raw_text=True)
    assert not sas.verify(token, KEY)
    assert token.scope == sas.Scope("hub", ("events",))
    with_text = sas.generate("not base64!", "hub", 1, raw_text=True)
    assert sas.verify(sas.parse(with_text), "not base64!", raw_text=True)
    assert not sas.verify(sas.parse(with_text), "not base64!")
    with pytest.raises(WireError):
        sas.generate("not base64!", "hub", 1)


def test_fields_come_in_any_order_and_the_prefix_in_any_case() -> None:
    sig = quote(signature(base64.b64decode(KEY), "hub\n5"), safe="")
    token = sas.parse(f"sharedaccesssignature skn=p&se=5&sig={sig}&sr=hub")
    assert (token.policy, token.expires, token.resource) == ("p", 5, "hub")
    assert sas.verify(token, KEY)


def test_an_unencoded_signature_is_read_too() -> None:
    for se in range(64):  # some of them hold '+' and '/'
        sig = signature(base64.b64decode(KEY), f"hub\n{se}")
        assert sas.verify(sas.parse(f"SharedAccessSignature sr=hub&sig={sig}&se={se}"), KEY)


def test_changing_any_part_breaks_it() -> None:
    text = sas.generate(KEY, "hub/devices/d1", 1700000000)
    for changed in (text.replace("d1", "d2"), text.replace("se=17", "se=18")):
        assert not sas.verify(sas.parse(changed), KEY)


GOOD_SIG = quote(base64.b64encode(bytes(32)).decode(), safe="")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "begin"),
        ("Bearer abc", "begin"),
        (f"SharedAccessSignature sr=h&sig={GOOD_SIG}&se=1&x=1", "other than"),
        (f"SharedAccessSignature sr=h&sig={GOOD_SIG}&se=1&", "other than"),
        (f"SharedAccessSignature sr=h&sr=h&sig={GOOD_SIG}&se=1", "sr twice"),
        (f"SharedAccessSignature sig={GOOD_SIG}&se=1", "lacks the field sr"),
        ("SharedAccessSignature sr=h&se=1", "lacks the field sig"),
        (f"SharedAccessSignature sr=h&sig={GOOD_SIG}", "lacks the field se"),
        (f"SharedAccessSignature sr=h&sig={GOOD_SIG}&se=-1", "whole number"),
        (f"SharedAccessSignature sr=h&sig={GOOD_SIG}&se=1.5", "whole number"),
        (f"SharedAccessSignature sr=h&sig={GOOD_SIG}&se={'9' * 16}", "whole number"),
        (f"SharedAccessSignature sr=h&sig={GOOD_SIG}&se=\u0661", "whole number"),
        ("SharedAccessSignature sr=h&sig=%%%&se=1", "not base64"),
        ("SharedAccessSignature sr=h&sig=AAAA&se=1", "not an HMAC"),
        (f"SharedAccessSignature sr=%ff&sig={GOOD_SIG}&se=1", "UTF-8"),
        (f"SharedAccessSignature sr=h&sig={GOOD_SIG}&se=1&skn=%ff", "UTF-8"),
        ("SharedAccessSignature sr=" + "a" * 5000, "longer"),
    ],
)
def test_what_is_no_token_is_refused(text: str, says: str) -> None:
    with pytest.raises(WireError, match=says):
        sas.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hub.Example", ("hub.example",)),
        ("hub/", ("hub",)),
        ("hub:5671/x", ("hub", "x")),
        (
            "sb://Hub/Events/ConsumerGroups/$Default",
            ("hub", "Events", "ConsumerGroups", "$Default"),
        ),
        ("AMQPS://hub/devices/d1", ("hub", "devices", "d1")),
        ("https://hub/devices/d1/api-version=2016-11-14", ("hub", "devices", "d1")),
        ("hub/devices/d1/?api-version=2016-11-14", ("hub", "devices", "d1")),
        ("[::1]/devices", ("[::1]", "devices")),
    ],
)
def test_scopes(text: str, expected: tuple[str, ...]) -> None:
    scope = sas.parse_scope(text)
    assert (scope.host, *scope.segments) == expected


@pytest.mark.parametrize("text", ["", "/devices/d1", "sb:///x", ":5671/x"])
def test_a_scope_needs_a_host(text: str) -> None:
    with pytest.raises(WireError):
        sas.parse_scope(text)


def test_nothing_shows_the_signature() -> None:
    text = sas.generate(KEY, "hub", 1)
    token = sas.parse(text)
    assert token.signature.hex() not in repr(token)
    assert repr(token.signature) not in repr(token)
    assert text.partition("sig=")[2].partition("&")[0] not in repr(token)


@given(st.text(max_size=200) | st.text(max_size=200).map(lambda t: "SharedAccessSignature " + t))
def test_arbitrary_text_is_a_token_or_a_wire_error(text: str) -> None:
    try:
        token = sas.parse(text)
        sas.verify(token, KEY, raw_text=True)
        _ = token.scope
    except WireError:
        pass


@given(
    st.lists(
        st.sampled_from(["sr=", "sig=", "se=", "skn=", "&", "%2", "%2f", "hub", GOOD_SIG, "1"])
    )
)
def test_shuffled_fields_are_a_token_or_a_wire_error(parts: list[str]) -> None:
    try:
        sas.verify(sas.parse("SharedAccessSignature " + "".join(parts)), KEY)
    except WireError:
        pass


@given(
    st.text("abcXYZ019-:.+%_#*?!(),=@;$'", min_size=1, max_size=128),
    st.integers(0, 10**12),
)
def test_every_legal_device_id_round_trips(device_id: str, expires: int) -> None:
    token = sas.parse(sas.generate(KEY, f"hub/devices/{device_id}", expires))
    assert sas.verify(token, KEY)
    assert token.expires == expires
    assert token.scope.segments == ("devices", device_id)
