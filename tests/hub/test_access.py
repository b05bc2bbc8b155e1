"""Access: who gets through the door, and what everybody else is told."""

import base64
import time
from urllib.parse import quote

import pytest
from tests.events import MemoryEvents
from tests.state import MemoryState

from mooring.errors import (
    DeviceDisabled,
    DeviceNotFound,
    HubError,
    IotHubUnauthorized,
    IotHubUnauthorizedAccess,
    ModuleNotFound,
)
from mooring.hub.access import Principal, local_operator
from mooring.hub.hub import Hub
from mooring.hub.identity import Ref
from mooring.hub.policies import ALL_RIGHTS, Right
from mooring.hub.registry import IdentityRequest
from mooring.hub.settings import HubSettings
from mooring.wire import sas

D1, D2, M1 = Ref("d1"), Ref("d2"), Ref("d1", "m1")
WRONG_KEY = base64.b64encode(b"w" * 32).decode()
SOON = int(time.time()) + 3600


@pytest.fixture
async def hub() -> Hub:
    hub = Hub(
        "hub.example.org",
        MemoryState(),
        MemoryEvents(),
        HubSettings(),
        aliases=["localhost", "::1"],
    )
    await hub.policies.open()
    for ref in (D1, D2, M1):
        await hub.registry.create(_request(ref))
    return hub


def _request(ref: Ref, **fields: object) -> IdentityRequest:
    return IdentityRequest(device_id=ref.device_id, module_id=ref.module_id, **fields)  # type: ignore[arg-type]


async def key_of(hub: Hub, ref: Ref, slot: str = "primary") -> str:
    return getattr(await hub.registry.get(ref), f"{slot}_key")


async def token_of(hub: Hub, ref: Ref, *, resource: str = "", expires: int = SOON) -> str:
    key = await key_of(hub, ref)
    return sas.generate(key, resource or f"hub.example.org/{ref.path}", expires)


def policy_token(
    hub: Hub,
    name: str,
    *,
    resource: str = "hub.example.org",
    slot: str = "primary",
    expires: int = SOON,
    raw_text: bool = False,
) -> str:
    policy = hub.policies.get(name)
    assert policy is not None
    key = getattr(policy, f"{slot}_key")
    return sas.generate(key, resource, expires, policy=name, raw_text=raw_text)


# An identity's own key


@pytest.mark.parametrize("slot", ["primary", "secondary"])
async def test_a_device_proves_itself_with_either_key(hub: Hub, slot: str) -> None:
    key = await key_of(hub, D1, slot)
    token = sas.generate(key, "hub.example.org/devices/d1", SOON)
    for principal in (await hub.access.connect(D1, token), await hub.access.authenticate(token)):
        device = await hub.registry.get(D1)
        assert principal == Principal(
            hub="hub.example.org",
            rights=Right.DEVICE_CONNECT,
            ref=D1,
            scope="hub.example.org/devices/d1",
            expires=SOON,
            key_digest=principal.key_digest,
            generation_id=device.generation_id,
            auth_method=(
                '{"scope":"device","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}'
            ),
        )
        assert len(principal.key_digest) == 32
        assert await hub.access.still_holds(principal) is None


async def test_a_module_proves_itself_with_its_own_key(hub: Hub) -> None:
    token = await token_of(hub, M1)
    for principal in (await hub.access.connect(M1, token), await hub.access.authenticate(token)):
        assert principal.ref == M1
        assert '"scope":"module"' in principal.auth_method


@pytest.mark.parametrize(
    "resource",
    [
        "localhost/devices/d1",
        "HUB.Example.ORG/devices/d1",
        "hub.example.org:8883/devices/d1",
        "hub.example.org./devices/d1",
        "[::1]:443/devices/d1",
        "amqps://hub.example.org/devices/d1",
        "hub.example.org/Devices/d1",
        "hub.example.org/devices/d1/",
        "hub.example.org/devices/d1/api-version=2016-11-14",
    ],
)
async def test_spellings_of_a_devices_scope(hub: Hub, resource: str) -> None:
    token = await token_of(hub, D1, resource=resource)
    assert (await hub.access.connect(D1, token)).ref == D1
    assert (await hub.access.authenticate(token)).ref == D1


@pytest.mark.parametrize("resource", ["hub.example.org", "hub.example.org/devices"])
async def test_a_wide_scope_makes_a_devices_key_no_wider(hub: Hub, resource: str) -> None:
    principal = await hub.access.connect(D1, await token_of(hub, D1, resource=resource))
    assert principal.scope == "hub.example.org/devices/d1"
    with pytest.raises(IotHubUnauthorizedAccess):
        hub.access.require(principal, Right.DEVICE_CONNECT, "devices/d2/messages/events")


async def test_odd_ids_singly_and_doubly_encoded(hub: Hub) -> None:
    ref = Ref("a+b%c,(d)=@;$'!*#?:_-.")
    await hub.registry.create(_request(ref))
    for name in (ref.device_id, quote(ref.device_id, safe="")):
        token = await token_of(hub, ref, resource=f"hub.example.org/devices/{name}")
        assert (await hub.access.connect(ref, token)).ref == ref
        assert (await hub.access.authenticate(token)).ref == ref


async def test_an_id_that_looks_encoded_is_taken_as_it_is_first(hub: Hub) -> None:
    odd, plain = Ref("a%41"), Ref("aA")
    for ref in (odd, plain):
        await hub.registry.create(_request(ref))
    token = policy_token(hub, "device", resource="hub.example.org/devices/a%41")
    assert (await hub.access.connect(odd, token)).ref == odd
    with pytest.raises(IotHubUnauthorizedAccess):
        await hub.access.connect(plain, token)


# Refusals of a stranger


async def refused(hub: Hub, ref: Ref, token: str | None) -> HubError:
    with pytest.raises(HubError) as caught:
        await hub.access.connect(ref, token)
    assert type(caught.value) is IotHubUnauthorized
    if token is not None:
        # Nothing that signs, and nothing that was signed with, may get out.
        for secret in (token.partition("sig=")[2].partition("&")[0], WRONG_KEY):
            assert not secret or secret not in caught.value.reason + caught.value.message
    return caught.value


async def test_wrong_key_unknown_device_and_certificates_look_alike(hub: Hub) -> None:
    await hub.registry.create(
        _request(Ref("x509"), auth_type="selfSigned", primary_thumbprint="AB" * 20)
    )
    await hub.registry.create(_request(Ref("off"), status="disabled"))
    errors = {
        name: await refused(
            hub, Ref(name), sas.generate(WRONG_KEY, f"hub.example.org/devices/{name}", SOON)
        )
        for name in ("d1", "absent", "x509", "off")
    }
    assert len({error.message for error in errors.values()}) == 1
    assert {name: error.reason for name, error in errors.items()} == {
        "d1": "no key of d1 made the sig",
        "absent": "there is no identity absent",
        "x509": "x509 authenticates with selfSigned, not with a key",
        "off": "no key of off made the sig",
    }


async def test_they_cost_the_same_signatures(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []
    real = sas.verify

    def counting(token: sas.Token, key: str, *, raw_text: bool = False) -> bool:
        keys.append(key)
        return real(token, key, raw_text=raw_text)

    monkeypatch.setattr(sas, "verify", counting)
    counts = {}
    for name in ("d1", "absent"):
        keys.clear()
        await refused(
            hub, Ref(name), sas.generate(WRONG_KEY, f"hub.example.org/devices/{name}", SOON)
        )
        counts[name] = len(keys)
    for name in ("service", "absent"):
        keys.clear()
        with pytest.raises(IotHubUnauthorized):
            await hub.access.authenticate(
                sas.generate(WRONG_KEY, "hub.example.org", SOON, policy=name)
            )
        counts[f"policy {name}"] = len(keys)
    assert set(counts.values()) == {2}


async def test_they_cost_the_same_reads(hub: Hub) -> None:
    state = hub.state
    assert isinstance(state, MemoryState)
    await hub.access.connect(D1, await token_of(hub, D1))  # d1 is remembered now
    costs = []
    for name in ("d1", "absent", "absent", "d2", "d2"):
        reads = state.reads
        await refused(
            hub, Ref(name), sas.generate(WRONG_KEY, f"hub.example.org/devices/{name}", SOON)
        )
        costs.append(state.reads - reads)
    assert costs == [1] * 5


async def test_tokens_that_are_for_something_else(hub: Hub) -> None:
    reasons = {}
    for resource in (
        "hub.example.org/devices/d2",
        "hub.example.org/devices/D1",
        "hub.example.org/devices/d",
        "hub.example.org/devices/d1/modules/m1",
        "hub.example.org/twins/d1",
    ):
        error = await refused(hub, D1, await token_of(hub, D1, resource=resource))
        reasons[resource] = error.reason
    assert set(reasons.values()) == {"the token's sr is not for d1"}
    for resource in ("other.example.org/devices/d1", "hub.example.org.evil/devices/d1"):
        error = await refused(hub, D1, await token_of(hub, D1, resource=resource))
        assert error.reason == "the token's sr names another host than this hub's"


async def test_a_devices_key_does_not_open_its_modules_nor_the_reverse(hub: Hub) -> None:
    device_key, module_key = await key_of(hub, D1), await key_of(hub, M1)
    for ref, key in ((M1, device_key), (D1, module_key)):
        await refused(hub, ref, sas.generate(key, f"hub.example.org/{ref.path}", SOON))
    await refused(hub, M1, await token_of(hub, D1))
    principal = await hub.access.connect(D1, await token_of(hub, D1))
    with pytest.raises(IotHubUnauthorizedAccess):
        hub.access.require(principal, Right.DEVICE_CONNECT, "devices/d1/modules/m1/messages/events")


async def test_an_expired_token(hub: Hub) -> None:
    error = await refused(hub, D1, await token_of(hub, D1, expires=int(time.time()) - 1))
    assert "is past" in error.reason
    with pytest.raises(IotHubUnauthorized):
        await hub.access.authenticate(policy_token(hub, "service", expires=int(time.time()) - 1))


async def test_a_token_may_last_for_ages(hub: Hub) -> None:
    principal = await hub.access.connect(D1, await token_of(hub, D1, expires=99_999_999_999))
    assert principal.expires == 99_999_999_999


@pytest.mark.parametrize(
    "token",
    [
        None,
        "",
        "Bearer eyJ",
        "SharedAccessSignature ",
        "SharedAccessSignature sr=hub.example.org&sig=AAAA&se=x",
        "SharedAccessSignature sr=hub.example.org&se=9999999999",
        "SharedAccessSignature sr=&sig=" + "A" * 43 + "%3D&se=9999999999",
        "SharedAccessSignature sr=%ff&sig=" + "A" * 43 + "%3D&se=9999999999",
        "SharedAccessSignature sr=hub.example.org&sig=" + "A" * 43 + "%3D&se=-5",
        "SharedAccessSignature " + "x" * 10_000,
        "\x00\ud800",
    ],
)
async def test_what_is_no_token(hub: Hub, token: str | None) -> None:
    error = await refused(hub, D1, token)
    assert error.reason


async def test_a_token_without_skn_must_name_a_device(hub: Hub) -> None:
    with pytest.raises(IotHubUnauthorized) as caught:
        await hub.access.authenticate(await token_of(hub, D1, resource="hub.example.org"))
    assert caught.value.reason == "a token without skn must name a device in sr"


async def test_only_who_holds_the_key_learns_that_a_device_is_disabled(hub: Hub) -> None:
    token = await token_of(hub, D1)
    module = await token_of(hub, M1)
    await hub.registry.update(_request(D1, status="disabled"))
    for ref, text in ((D1, token), (M1, module)):
        for work in (hub.access.connect(ref, text), hub.access.authenticate(text)):
            with pytest.raises(DeviceDisabled):
                await work
    await refused(hub, D1, sas.generate(WRONG_KEY, "hub.example.org/devices/d1", SOON))


# Policies


@pytest.mark.parametrize("slot", ["primary", "secondary"])
@pytest.mark.parametrize("raw_text", [False, True])
async def test_a_policy_signs_with_either_key_in_either_reading(
    hub: Hub, slot: str, raw_text: bool
) -> None:
    token = policy_token(hub, "iothubowner", slot=slot, raw_text=raw_text)
    principal = await hub.access.authenticate(token)
    assert (principal.ref, principal.policy) == (None, "iothubowner")
    assert principal.rights == ALL_RIGHTS
    assert '"scope":"hub"' in principal.auth_method
    assert await hub.access.still_holds(principal) is None


async def test_a_devices_key_is_never_read_as_text(hub: Hub) -> None:
    key = await key_of(hub, D1)
    token = sas.generate(key, "hub.example.org/devices/d1", SOON, raw_text=True)
    await refused(hub, D1, token)


async def test_an_unknown_policy_and_a_wrong_key_look_alike(hub: Hub) -> None:
    messages = set()
    for name in ("service", "absent", "Service"):
        with pytest.raises(IotHubUnauthorized) as caught:
            await hub.access.authenticate(
                sas.generate(WRONG_KEY, "hub.example.org", SOON, policy=name)
            )
        messages.add(caught.value.message)
    assert len(messages) == 1


async def test_a_policy_that_may_connect_devices_acts_for_them(hub: Hub) -> None:
    await hub.registry.create(_request(Ref("x509"), auth_type="none"))
    for ref in (D1, M1, Ref("x509")):
        principal = await hub.access.connect(ref, policy_token(hub, "device"))
        assert (principal.ref, principal.policy) == (ref, "device")
        assert principal.rights == Right.DEVICE_CONNECT
        assert principal.scope == f"hub.example.org/{ref.path}"
        identity = await hub.registry.get(ref)
        assert principal.generation_id == identity.generation_id
        assert await hub.access.still_holds(principal) is None


async def test_acting_for_a_device_grants_no_more_than_that(hub: Hub) -> None:
    principal = await hub.access.connect(D1, policy_token(hub, "iothubowner"))
    for right, resource in (
        (Right.SERVICE_CONNECT, "devices/d1"),
        (Right.DEVICE_CONNECT, "devices/d2"),
        (Right.DEVICE_CONNECT, "devices/d1/modules/m1"),
    ):
        with pytest.raises(IotHubUnauthorizedAccess):
            hub.access.require(principal, right, resource)


async def test_a_policy_without_the_right_or_the_scope(hub: Hub) -> None:
    for token in (
        policy_token(hub, "service"),
        policy_token(hub, "device", resource="hub.example.org/devices/d2"),
        policy_token(hub, "device", resource="hub.example.org/devices/d"),
        policy_token(hub, "device", resource="hub.example.org/messages/events"),
    ):
        with pytest.raises(IotHubUnauthorizedAccess) as caught:
            await hub.access.connect(D1, token)
        assert "does not allow access for 'devices/d1'" in caught.value.message


async def test_a_policys_holder_is_told_what_is_missing(hub: Hub) -> None:
    token = policy_token(hub, "device")
    with pytest.raises(DeviceNotFound):
        await hub.access.connect(Ref("absent"), token)
    with pytest.raises(ModuleNotFound):
        await hub.access.connect(Ref("d1", "absent"), token)
    await hub.registry.update(_request(D1, status="disabled"))
    for ref in (D1, M1):
        with pytest.raises(DeviceDisabled):
            await hub.access.connect(ref, token)


@pytest.mark.parametrize(
    ("resource", "wanted", "allowed"),
    [
        ("hub.example.org", "", True),
        ("hub.example.org", "devices/d1", True),
        ("hub.example.org/devices", "devices/d1", True),
        ("hub.example.org/devices", "devices", True),
        ("hub.example.org/DEVICES", "devices/d1", True),
        ("hub.example.org/devices/d1", "devices/d1/modules/m1", True),
        ("hub.example.org/devices/d1/MODULES/m1", "devices/d1/modules/m1", True),
        ("hub.example.org/devices/d1", "devices/d1", True),
        ("hub.example.org/devices/d1", "devices/D1", False),
        ("hub.example.org/devices/d1", "devices/d10", False),
        ("hub.example.org/devices/d1/modules/m1", "devices/d1/modules/M1", False),
        ("hub.example.org/devices/d1", "devices", False),
        ("hub.example.org/devices", "twins/d1", False),
        ("hub.example.org/devices", "", False),
        ("sb://hub.example.org/hub", "messages/events", True),
        ("sb://hub.example.org/hub", "messages/events/ConsumerGroups/$Default", True),
        ("sb://hub.example.org/hub", "twins/d1", False),
        ("hub.example.org/messages/events", "messages/events/ConsumerGroups/x", True),
        ("hub.example.org/messages/serviceBound", "messages/servicebound/feedback", True),
    ],
)
async def test_a_scope_covers_what_lies_under_it(
    hub: Hub, resource: str, wanted: str, allowed: bool
) -> None:
    principal = await hub.access.authenticate(policy_token(hub, "iothubowner", resource=resource))
    if allowed:
        hub.access.require(principal, Right.SERVICE_CONNECT, wanted)
    else:
        with pytest.raises(IotHubUnauthorizedAccess):
            hub.access.require(principal, Right.SERVICE_CONNECT, wanted)


@pytest.mark.parametrize("policy", ["service", "device", "registryRead", "registryReadWrite"])
@pytest.mark.parametrize("right", list(Right))
async def test_a_policy_grants_its_rights_only(hub: Hub, policy: str, right: Right) -> None:
    granted = {
        "service": {Right.SERVICE_CONNECT},
        "device": {Right.DEVICE_CONNECT},
        "registryRead": {Right.REGISTRY_READ},
        "registryReadWrite": {Right.REGISTRY_READ, Right.REGISTRY_WRITE},
    }
    principal = await hub.access.authenticate(policy_token(hub, policy))
    if right in granted[policy]:
        hub.access.require(principal, right, "devices/d1")
    else:
        with pytest.raises(IotHubUnauthorizedAccess):
            hub.access.require(principal, right, "devices/d1")


# Acting for, holding still


async def test_an_identity_speaks_for_itself_only(hub: Hub) -> None:
    principal = await hub.access.authenticate(await token_of(hub, D1))
    assert await hub.access.act_for(principal, D1) is principal
    for ref in (D2, M1):
        with pytest.raises(IotHubUnauthorizedAccess):
            await hub.access.act_for(principal, ref)


async def test_a_principal_stops_to_hold_when_its_time_is_up(hub: Hub) -> None:
    now = time.time()
    hub = Hub(hub.name, hub.state, hub.events, hub.settings, now=lambda: now)
    await hub.policies.open()
    principal = await hub.access.connect(D1, await token_of(hub, D1))
    now = SOON + 1
    assert isinstance(await hub.access.still_holds(principal), IotHubUnauthorized)
    with pytest.raises(IotHubUnauthorized):
        hub.access.require(principal, Right.DEVICE_CONNECT, "devices/d1")


async def test_a_principal_stops_to_hold_with_its_generation(hub: Hub) -> None:
    principal = await hub.access.connect(D1, policy_token(hub, "device"))
    await hub.registry.delete(D1)
    assert isinstance(await hub.access.still_holds(principal), DeviceNotFound)
    await hub.registry.create(_request(D1))
    assert isinstance(await hub.access.still_holds(principal), DeviceNotFound)


async def test_the_local_operator_may_do_everything(hub: Hub) -> None:
    operator = local_operator(hub.name)
    for right in Right:
        hub.access.require(operator, right, "devices/d1")
        hub.access.require(operator, right)
    assert await hub.access.still_holds(operator) is None
    assert (await hub.access.act_for(operator, D1)).ref == D1


async def test_the_repr_of_a_principal_shows_no_digest(hub: Hub) -> None:
    principal = await hub.access.connect(D1, await token_of(hub, D1))
    assert repr(principal.key_digest) not in repr(principal)


async def test_a_name_that_nobody_can_have_is_not_repeated_in_the_log(hub: Hub) -> None:
    token = await token_of(hub, D1)
    with pytest.raises(IotHubUnauthorized) as refusal:
        await hub.access.connect(Ref("d" * 60_000), token)
    assert len(refusal.value.reason) < 200


@pytest.mark.parametrize("collection", ["devices", "twins", "digitaltwins", "jobs"])
async def test_ids_in_a_scope_are_compared_in_their_case(hub: Hub, collection: str) -> None:
    token = policy_token(hub, "iothubowner", resource=f"hub.example.org/{collection}/Abc")
    principal = await hub.access.authenticate(token)
    hub.access.require(principal, Right.SERVICE_CONNECT, f"{collection}/Abc")
    hub.access.require(principal, Right.SERVICE_CONNECT, f"{collection}/Abc/methods")
    with pytest.raises(IotHubUnauthorizedAccess):
        hub.access.require(principal, Right.SERVICE_CONNECT, f"{collection}/abc")
