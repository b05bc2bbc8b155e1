"""The hub's MQTT topics: user names, property bags, and what may be published and subscribed.

Legality is a table, in `_PUBLISHABLE` and `_SUBSCRIBABLE`: what is not in them is refused, with a
reason that names the rule and never repeats a payload or a property. Identities are written into
topics as they are, not percent-encoded (azure-iot-device 2.14, pipeline_stages_iothub_mqtt.py);
only property bags, and the values of a user name's query, are encoded.

Sources: device-protocols reference §1.2 and §1.6 to §1.11.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from .errors import WireError

MAX_RID: Final = 256
"""Characters of a request id; the official clients send a GUID or a small number."""


class TopicError(WireError):
    """The topic, bag or user name is not one that this identity may use here."""


# User names --------------------------------------------------------------------------------------


class Username(NamedTuple):
    """What a CONNECT says about itself (reference §1.2)."""

    host: str  # lower case
    device_id: str
    module_id: str = ""
    api_version: str = ""
    model_id: str = ""
    client_type: str = ""


_QUERY = re.compile(r"[A-Za-z-]+=")


def parse_username(username: str, client_id: str) -> Username:
    """The identity and options of a CONNECT. Raises TopicError.

    The accepted forms are `{host}/{client id}`, then nothing, `/`, `/?{query}` or, from old
    clients, `/{query}`. Ids may hold any of `?`, `=` and `&`, so the client id, which is the bare
    `{device}` or `{device}/{module}`, tells where the identity ends; and so they must agree."""
    device_id, slash, module_id = client_id.partition("/")
    if not device_id or "/" in module_id or bool(slash) != bool(module_id):
        raise TopicError("the client id is neither a device id nor device/module")
    host, _, rest = username.partition("/")
    if not host:
        raise TopicError("the user name names no host")
    query = rest.removeprefix(client_id)
    if len(query) == len(rest) or query[:1] not in ("", "/"):
        raise TopicError("the user name and the client id name different identities")
    query = query[1:]
    if query.startswith("?"):
        query = query[1:]
    elif query and not _QUERY.match(query):
        raise TopicError("the user name and the client id name different identities")
    options: dict[str, str] = {}
    for part in query.split("&"):
        name, _, value = part.partition("=")
        options.setdefault(name.lower(), value)
    return Username(
        host.lower(),
        device_id,
        module_id,
        _decoded(options.get("api-version", "")),
        _decoded(options.get("model-id") or options.get("digital-twin-model-id", "")),
        _decoded(options.get("deviceclienttype", "")),
    )


# Property bags -----------------------------------------------------------------------------------

# Bag key -> system property, in the order in which a bag is written (reference §1.7, §1.8).
SYSTEM_PROPERTIES: Final[Mapping[str, str]] = {
    "$.mid": "message-id",
    "$.cid": "correlation-id",
    "$.uid": "user-id",
    "$.to": "to",
    "$.ct": "content-type",
    "$.ce": "content-encoding",
    "$.exp": "absolute-expiry-time",
    "$.ctime": "iothub-creation-time-utc",
    "$.ifid": "iothub-interface-id",
    "$.sub": "dt-subject",
    "$.on": "iothub-outputname",
    "$.schema": "iothub-message-schema",
    "$.diagid": "Diagnostic-Id",
    "$.diagctx": "Correlation-Context",
}
_BAG_KEYS: Final = {name: quote(key, safe="") for key, name in SYSTEM_PROPERTIES.items()}


def parse_bag(bag: str) -> tuple[dict[str, str], dict[str, str | None]]:
    """System and application properties of a bag. Raises TopicError if it is not UTF-8 inside.

    Both sides are decoded once; `+` stays `+`; a key without `=` has the value None; of a key that
    comes twice the last counts; one trailing `/` belongs to the topic (Java always writes it)."""
    system: dict[str, str] = {}
    properties: dict[str, str | None] = {}
    for part in bag.removesuffix("/").split("&"):
        if not part:
            continue
        key, equals, value = part.partition("=")
        key = _decoded(key)
        name = SYSTEM_PROPERTIES.get(key)
        if name is not None:
            if equals:
                system[name] = _decoded(value)
        elif key:
            properties[key] = _decoded(value) if equals else None
    return system, properties


def build_bag(system: Mapping[str, str], properties: Mapping[str, str | None]) -> str:
    """The bag of a message, system properties first and in their customary order.

    Everything but unreserved characters is encoded: the C client looks for `%24.`, and Python's
    and Node's take the bag for exactly one topic level."""
    parts = [f"{key}={_encoded(system[name])}" for name, key in _BAG_KEYS.items() if name in system]
    parts += (
        _encoded(name) if value is None else f"{_encoded(name)}={_encoded(value)}"
        for name, value in properties.items()
    )
    return "&".join(parts)


def _encoded(text: str) -> str:
    return quote(text, safe="")


def _decoded(text: str) -> str:
    if "%" not in text:
        return text
    try:
        decoded = unquote(text, errors="strict")
        decoded.encode()
    except UnicodeError as error:
        raise TopicError("a percent-encoded name or value is not UTF-8") from error
    return decoded


# What an identity publishes ----------------------------------------------------------------------


class Telemetry(NamedTuple):
    """A message to the hub."""

    system: dict[str, str]
    properties: dict[str, str | None]


class TwinGet(NamedTuple):
    """A request for the whole twin."""

    rid: str


class TwinPatch(NamedTuple):
    """A change of the reported properties, on top of `version` if the client says so."""

    rid: str
    version: int | None


class MethodResponse(NamedTuple):
    """The answer to a direct method."""

    rid: str
    status: int


Publication = Telemetry | TwinGet | TwinPatch | MethodResponse

_STATUS = re.compile(r"-?[0-9]{1,10}")
_VERSION = re.compile(r"[0-9]{1,18}")


def _request(rest: str) -> tuple[str, dict[str, str]]:
    """`?$rid={rid}[&name=value…]`: the rid as written, and the others."""
    if not rest.startswith("?"):
        raise TopicError("a request topic lacks ?$rid=")
    fields: dict[str, str] = {}
    for part in rest[1:].split("&"):
        name, _, value = part.partition("=")
        fields.setdefault(_decoded(name), value)
    rid = fields.get("$rid", "")
    if not rid or len(rid) > MAX_RID:
        raise TopicError("a request topic lacks a $rid of at most 256 characters")
    return rid, fields


def _twin_get(rest: str) -> Publication:
    return TwinGet(_request(rest)[0])


def _twin_patch(rest: str) -> Publication:
    rid, fields = _request(rest)
    version = fields.get("$version")
    if version is None:
        return TwinPatch(rid, None)
    if not _VERSION.fullmatch(version):
        raise TopicError("a twin patch has a $version that is not a number")
    return TwinPatch(rid, int(version))


def _method_response(rest: str) -> Publication:
    status, slash, query = rest.partition("/")
    if not slash or not _STATUS.fullmatch(status) or not -(2**31) <= int(status) < 2**31:
        raise TopicError("a method response has a status that is not a 32-bit number")
    return MethodResponse(_request(query)[0], int(status))


# The topics other than telemetry that may be published: prefix -> how the rest reads.
_PUBLISHABLE: Final[dict[str, Callable[[str], Publication]]] = {
    "$iothub/twin/GET/": _twin_get,
    "$iothub/twin/PATCH/properties/reported/": _twin_patch,
    "$iothub/methods/res/": _method_response,
}


def base(device_id: str, module_id: str = "") -> str:
    """`devices/{device}` or `devices/{device}/modules/{module}`."""
    return f"devices/{device_id}/modules/{module_id}" if module_id else f"devices/{device_id}"


def parse_publish(topic: str, device_id: str, module_id: str = "") -> Publication:
    """What a PUBLISH of this identity to `topic` means.

    Raises TopicError, after which the connection is to be closed (reference §1.6)."""
    if topic.startswith("devices/"):
        events = f"{base(device_id, module_id)}/messages/events"
        if topic == events:
            return Telemetry({}, {})
        if topic.startswith(events + "/"):
            return Telemetry(*parse_bag(topic[len(events) + 1 :]))
        raise TopicError(
            "devices/… may be published to as the identity's own messages/events/ only"
        )
    for prefix, parse in _PUBLISHABLE.items():
        if topic.startswith(prefix):
            return parse(topic[len(prefix) :])
    raise TopicError("no topic that a device may publish to")


# What an identity subscribes to ------------------------------------------------------------------

# Topics that the hub sends on: a filter is granted if it lies below one of these. `{b}` is `base`.
_SUBSCRIBABLE: Final = (
    "{b}/messages/devicebound/",
    "$iothub/twin/res/",
    "$iothub/twin/PATCH/properties/desired/",
    "$iothub/methods/POST/",
)
_SUBSCRIBABLE_BY_MODULES: Final = (*_SUBSCRIBABLE, "{b}/inputs/")
# A queue is drained or not: nobody may ask for the messages with one certain bag.
_WHOLE: Final = frozenset({"{b}/messages/devicebound/"})
MAX_FILTER: Final = 1024
"""Characters of a filter: the longest topic that the hub sends has far fewer before its bag."""


def check_filter(name: str, device_id: str, module_id: str = "") -> str | None:
    """Why this identity may not subscribe to this filter, or None if it may.

    A refused one is answered with 0x80; the session goes on."""
    if len(name) > MAX_FILTER:
        return "the filter is longer than any topic the hub sends on"
    for level, last in _levels(name):
        if ("#" in level and (level != "#" or not last)) or ("+" in level and level != "+"):
            return "the filter has a wildcard inside a level, or a # before its end"
    own = base(device_id, module_id)
    if module_id and name == own + "/#":  # the C and C# clients' form of the inputs
        return None
    for form in _SUBSCRIBABLE_BY_MODULES if module_id else _SUBSCRIBABLE:
        prefix = form.replace("{b}", own)
        if len(name) > len(prefix) and name.startswith(prefix):
            if form in _WHOLE and name[len(prefix) :] not in ("#", "+"):
                return "a queue can be subscribed to as a whole only"
            return None
    return "the hub sends nothing to that filter"


def _levels(name: str) -> list[tuple[str, bool]]:
    levels = name.split("/")
    return [(level, at == len(levels) - 1) for at, level in enumerate(levels)]


def concerns(name: str, prefix: str) -> bool:
    """Whether a filter that `check_filter` passed takes in topics that begin with `prefix`."""
    return name.startswith(prefix) or (name.endswith("/#") and prefix.startswith(name[:-1]))


def matches(name: str, topic: str) -> bool:
    """Whether a filter that `check_filter` passed takes in a topic (MQTT 3.1.1 §4.7)."""
    if name.endswith("/#") and topic.startswith(name[:-1]):  # the common case, no other wildcard
        return True
    wanted, got = name.split("/"), topic.split("/")
    for at, level in enumerate(wanted):
        if level == "#":
            return True
        if at >= len(got) or level not in ("+", got[at]):
            return False
    return len(wanted) == len(got)


# What the hub sends on ---------------------------------------------------------------------------

TWIN_RESPONSES: Final = "$iothub/twin/res/"
DESIRED: Final = "$iothub/twin/PATCH/properties/desired/"
METHODS: Final = "$iothub/methods/POST/"
_PLAIN_NAME: Final = "!$&'()*,-.:;=@_~"


def devicebound_prefix(device_id: str, module_id: str = "") -> str:
    """The topic of cloud-to-device messages up to the bag."""
    return f"{base(device_id, module_id)}/messages/devicebound/"


def devicebound(
    device_id: str,
    module_id: str,
    system: Mapping[str, str],
    properties: Mapping[str, str | None],
) -> str:
    """The topic of a cloud-to-device message.

    Its bag is never empty, since the C# client reads the topic's fifth level unconditionally: a
    message that was sent without `to` gets the one of its queue."""
    if not system.get("to"):
        queue = devicebound_prefix(device_id, module_id).removesuffix("/")
        system = {**system, "to": f"/{queue}"}
    return devicebound_prefix(device_id, module_id) + build_bag(system, properties)


def twin_response(status: int, rid: str, version: int | None = None) -> str:
    """The topic of a twin response: `?$rid=` first, since the C client compares that prefix."""
    tail = "" if version is None else f"&$version={version}"
    return f"{TWIN_RESPONSES}{status}/?$rid={rid}{tail}"


def desired_patch(version: int) -> str:
    """The topic of a desired-property notification."""
    return f"{DESIRED}?$version={version}"


def method_call(name: str, rid: str) -> str:
    """The topic of a direct method. The name is encoded only where a topic could not hold it:
    Python's client decodes it, Node's and C's do not."""
    return f"{METHODS}{quote(name, safe=_PLAIN_NAME)}/?$rid={rid}"
