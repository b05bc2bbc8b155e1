"""What a CONNECT must satisfy to become a session (device-protocols reference §1.2 to §1.4).

Every refusal is a HubError. `return_code` says which CONNACK it is: 5 for whatever the credentials
or the identity are at fault for, without telling which, and 3 for what may be better in a moment.
Azure's hub uses no other code, and clients treat others as final.
"""

from typing import TYPE_CHECKING, NamedTuple

from mooring.errors import HubError, IotHubNotFound, IotHubUnauthorized
from mooring.hub.access import Principal
from mooring.hub.hub import Hub
from mooring.hub.identity import Ref
from mooring.wire import mqtt, topics

if TYPE_CHECKING:
    from mooring.hub.hubs import Hubs

MAX_MODEL_ID = 2048
"""Characters of a model id (DTDL: an interface's DTMI)."""


class Will(NamedTuple):
    """What the session publishes for a client that disappears: telemetry of its own."""

    system: dict[str, str]
    properties: dict[str, str | None]
    payload: bytes


class Admission(NamedTuple):
    """An accepted CONNECT."""

    hub: Hub
    principal: Principal
    ref: Ref
    model_id: str
    will: Will | None
    will_ignored: str  # why a will was left out, empty if none was
    clean: bool
    keep_alive: int


def claimed(packet: mqtt.Connect) -> str:
    """Whom a CONNECT claims to be, for the log; shortened, since nobody vouches for it."""
    return packet.client_id[:256]


def return_code(error: HubError) -> int:
    """The CONNACK that tells a client of this refusal."""
    if error.status >= 500 or error.status == 429:
        return mqtt.REFUSED_UNAVAILABLE
    return mqtt.REFUSED_NOT_AUTHORIZED


async def admit(hubs: "Hubs", packet: mqtt.Connect, sni: str | None) -> Admission:
    """Judge a CONNECT. Raises HubError."""
    try:
        name = topics.parse_username(packet.username or "", packet.client_id)
    except topics.TopicError as error:
        raise _unauthorized(str(error)) from None
    hub = hubs.find(name.host)
    if hub is None:
        raise IotHubNotFound(reason="the user name's host is no hub of this server")
    # Behind a gateway SNI names the gateway: it says something only if it names another hub.
    other = hubs.find(sni) if sni else None
    if other is not None and other is not hub:
        raise _unauthorized("the user name and the TLS server name are of different hubs")
    if len(name.model_id) > MAX_MODEL_ID:
        raise _unauthorized("the model id is longer than a DTMI can be")
    ref = Ref(name.device_id, name.module_id)
    principal = await hub.access.connect(ref, _token(packet.password))
    if name.model_id:
        await hub.twins.set_model_id(ref, name.model_id)
    will, will_ignored = _will(packet.will, ref)
    return Admission(
        hub,
        principal,
        ref,
        name.model_id,
        will,
        will_ignored,
        packet.clean_session,
        packet.keep_alive,
    )


def _token(password: bytes | None) -> str | None:
    if not password:
        return None
    try:
        return password.decode()
    except UnicodeDecodeError:
        raise _unauthorized("the password is not UTF-8 and so is no token") from None


def _will(will: mqtt.Publish | None, ref: Ref) -> tuple[Will | None, str]:
    """A will as the telemetry that it becomes, or why it becomes nothing."""
    if will is None:
        return None, ""
    try:
        meaning = topics.parse_publish(will.topic.decode(), *ref)
    except topics.TopicError as error:
        return None, str(error)
    if not isinstance(meaning, topics.Telemetry):
        return None, "a will can be telemetry only"
    properties = {**meaning.properties, "iothub-MessageType": "Will"}
    if will.retain:
        properties["mqtt-retain"] = "true"
    return Will(meaning.system, properties, will.payload), ""


def _unauthorized(reason: str) -> IotHubUnauthorized:
    return IotHubUnauthorized("Unauthorized", reason=reason)
