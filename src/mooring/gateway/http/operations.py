"""The HTTP operations: one table of what can be asked, with which right, of which resource.

Rules:

- What is not in the table does not exist: a route that only the framework knows is never reached.
- Azure's paths match in any case, with trailing slashes, and with slashes that were percent-encoded
  (IoT Explorer encodes whole paths; no id may hold a slash). Ids keep their case and are decoded
  once. Requests leave here in the one spelling that the routes are written in.
- `POST /devices/query` is an operation and `GET /devices/query` the device `query`. Where a word
  stands in the place of an id its route is written with a `~`, which no id may hold.
- The resource that rights are checked for is the path itself.
"""

from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from mooring.errors import ArgumentInvalid, GenericMethodNotAllowed, GenericNotFound
from mooring.hub.identity import Ref
from mooring.hub.policies import Right

READ, WRITE = Right.REGISTRY_READ, Right.REGISTRY_WRITE
SERVICE, DEVICE = Right.SERVICE_CONNECT, Right.DEVICE_CONNECT

MAX_SEGMENTS = 12


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. With `DEVICE` the caller speaks as the identity that the path names."""

    method: str
    pattern: str
    right: Right
    words: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.pattern.strip("/").split("/")))

    @property
    def name(self) -> str:
        """For logs: the method and the pattern."""
        return f"{self.method} {self.pattern}"


OPERATIONS: tuple[Operation, ...] = (
    # Registry
    Operation("GET", "/devices", READ),
    Operation("POST", "/devices", WRITE),
    Operation("POST", "/devices/~query", SERVICE),
    Operation("POST", "/devices/~keys/regenerate", WRITE),
    Operation("GET", "/devices/{device_id}", READ),
    Operation("PUT", "/devices/{device_id}", WRITE),
    Operation("DELETE", "/devices/{device_id}", WRITE),
    Operation("GET", "/devices/{device_id}/modules", READ),
    Operation("GET", "/devices/{device_id}/modules/{module_id}", READ),
    Operation("PUT", "/devices/{device_id}/modules/{module_id}", WRITE),
    Operation("DELETE", "/devices/{device_id}/modules/{module_id}", WRITE),
    Operation("POST", "/devices/{device_id}/applyConfigurationContent", SERVICE),
    Operation("GET", "/statistics/devices", READ),
    Operation("GET", "/statistics/service", READ),
    # Twins, methods, cloud-to-device
    Operation("GET", "/twins/{device_id}", SERVICE),
    Operation("PATCH", "/twins/{device_id}", SERVICE),
    Operation("PUT", "/twins/{device_id}", SERVICE),
    Operation("GET", "/twins/{device_id}/modules/{module_id}", SERVICE),
    Operation("PATCH", "/twins/{device_id}/modules/{module_id}", SERVICE),
    Operation("PUT", "/twins/{device_id}/modules/{module_id}", SERVICE),
    Operation("POST", "/twins/{device_id}/methods", SERVICE),
    Operation("POST", "/twins/{device_id}/modules/{module_id}/methods", SERVICE),
    Operation("DELETE", "/devices/{device_id}/commands", SERVICE),
    Operation("POST", "/messages/deviceBound", SERVICE),
    Operation("GET", "/messages/serviceBound/feedback", SERVICE),
    Operation("DELETE", "/messages/serviceBound/feedback/{lock_token}", SERVICE),
    Operation("POST", "/messages/serviceBound/feedback/{lock_token}/abandon", SERVICE),
    Operation("GET", "/messages/serviceBound/filenotifications", SERVICE),
    # Jobs, configurations, digital twins
    Operation("POST", "/jobs/create", WRITE),
    Operation("GET", "/jobs", READ),
    Operation("GET", "/jobs/{job_id}", READ),
    Operation("DELETE", "/jobs/{job_id}", WRITE),
    Operation("GET", "/jobs/v2/query", SERVICE),
    Operation("GET", "/jobs/v2/{job_id}", SERVICE),
    Operation("PUT", "/jobs/v2/{job_id}", SERVICE),
    Operation("POST", "/jobs/v2/{job_id}/cancel", SERVICE),
    Operation("GET", "/configurations", SERVICE),
    Operation("POST", "/configurations/testQueries", SERVICE),
    Operation("GET", "/configurations/{configuration_id}", SERVICE),
    Operation("PUT", "/configurations/{configuration_id}", SERVICE),
    Operation("DELETE", "/configurations/{configuration_id}", SERVICE),
    Operation("GET", "/digitaltwins/{device_id}", SERVICE),
    Operation("PATCH", "/digitaltwins/{device_id}", SERVICE),
    Operation("POST", "/digitaltwins/{device_id}/commands/{command}", SERVICE),
    Operation("POST", "/digitaltwins/{device_id}/components/{path}/commands/{command}", SERVICE),
    # What devices ask
    Operation("POST", "/devices/{device_id}/messages/events", DEVICE),
    Operation("GET", "/devices/{device_id}/messages/deviceBound", DEVICE),
    Operation("DELETE", "/devices/{device_id}/messages/deviceBound/{lock_token}", DEVICE),
    Operation("POST", "/devices/{device_id}/messages/deviceBound/{lock_token}/abandon", DEVICE),
    Operation("POST", "/devices/{device_id}/files", DEVICE),
    Operation("POST", "/devices/{device_id}/files/notifications", DEVICE),
    Operation("POST", "/devices/{device_id}/modules/{module_id}/messages/events", DEVICE),
)

# By length, with the patterns that have more fixed words in front before those with more ids.
_BY_LENGTH: dict[int, list[Operation]] = {}
for _operation in sorted(
    OPERATIONS, key=lambda operation: [word.startswith("{") for word in operation.words]
):
    _BY_LENGTH.setdefault(len(_operation.words), []).append(_operation)


class Match(NamedTuple):
    """A request as it was understood."""

    operation: Operation
    path: str
    """As the routes are written."""
    resource: str
    """As rights are checked: `devices/d1/modules`."""
    ids: dict[str, str]

    @property
    def ref(self) -> Ref | None:
        """The identity that the path names."""
        if "device_id" not in self.ids:
            return None
        return Ref(self.ids["device_id"], self.ids.get("module_id", ""))


def match(method: str, raw_path: bytes) -> Match:
    """What a request line asks for. Raises GenericNotFound, GenericMethodNotAllowed, and
    ArgumentInvalid if the path is not UTF-8."""
    segments = _segments(raw_path)
    other = ""
    for operation in _BY_LENGTH.get(len(segments), ()):
        ids = _ids(operation, segments)
        if ids is None:
            continue
        if operation.method != method:
            other = operation.pattern
            continue
        path = "/".join(word.format(**ids) for word in operation.words)
        resource = "/".join(word.lstrip("~").format(**ids) for word in operation.words)
        return Match(operation, f"/{path}", resource, ids)
    if other:
        raise GenericMethodNotAllowed(f"{other} cannot be asked this way")
    raise GenericNotFound("There is nothing at this path")


def _segments(raw_path: bytes) -> list[str]:
    path = raw_path.partition(b"?")[0].replace(b"%2F", b"/").replace(b"%2f", b"/")
    parts = [part for part in path.split(b"/") if part]
    if len(parts) > MAX_SEGMENTS:
        raise GenericNotFound("There is nothing at this path")
    try:
        return [unquote_to_bytes(part).decode() for part in parts]
    except UnicodeDecodeError:
        raise ArgumentInvalid("The path is not UTF-8") from None


def _ids(operation: Operation, segments: list[str]) -> dict[str, str] | None:
    ids = {}
    for word, segment in zip(operation.words, segments, strict=True):
        if word.startswith("{"):
            ids[word[1:-1]] = segment
        elif word.lstrip("~").lower() != segment.lower():
            return None
    return ids
