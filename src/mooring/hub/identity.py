"""Identities: the devices and modules that a hub knows. Nothing connects without one."""

import base64
import binascii
import re
import secrets
from typing import NamedTuple

import msgspec

from mooring.errors import ArgumentInvalid

ID_PATTERN = re.compile(r"[A-Za-z0-9\-:.+%_#*?!(),=@;$']{1,128}")
"""What device and module ids may be (service-apis reference §1.1)."""

AUTH_TYPES = ("sas", "selfSigned", "certificateAuthority", "none")
SYSTEM_MODULES = ("$edgeAgent", "$edgeHub")
EDGE_SCOPE_PREFIX = "ms-azure-iot-edge://"
MAX_STATUS_REASON = 128

KEY_BYTES = 32
MIN_KEY_BYTES = 16
MAX_KEY_BYTES = 64

_THUMBPRINT = re.compile(r"[0-9A-F]{40}|[0-9A-F]{64}")  # SHA-1 or SHA-256
_TICKS_AT_1970 = 621_355_968_000_000_000


class Ref(NamedTuple):
    """Names one identity of a hub: a device (`module_id` empty) or a module of it."""

    device_id: str
    module_id: str = ""

    def __str__(self) -> str:
        return f"{self.device_id}/{self.module_id}" if self.module_id else self.device_id

    @property
    def path(self) -> str:
        """Its resource path under the hub: `devices/d1` or `devices/d1/modules/m1`."""
        if self.module_id:
            return f"devices/{self.device_id}/modules/{self.module_id}"
        return f"devices/{self.device_id}"

    @property
    def is_possible(self) -> bool:
        """Whether an identity can have this name; clients may claim any."""
        return (
            ID_PATTERN.fullmatch(self.device_id) is not None
            and ID_PATTERN.fullmatch(self.module_id or self.device_id) is not None
        )


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """One registry entry. Times are milliseconds since 1970 UTC, 0 meaning never."""

    device_id: str
    module_id: str = ""
    generation_id: str
    version: int = 1  # what the ETag is made of; +1 on every write
    status: str = "enabled"  # "enabled" | "disabled"; a module follows its device
    status_reason: str | None = None
    status_updated: int = 0
    auth_type: str = "sas"  # "sas" | "selfSigned" | "certificateAuthority" | "none"
    primary_key: str | None = None  # base64 text
    secondary_key: str | None = None
    primary_thumbprint: str | None = None  # upper-case hex
    secondary_thumbprint: str | None = None
    managed_by: str | None = None  # modules only
    iot_edge: bool = False
    device_scope: str | None = None
    parent_scopes: list[str] = []

    def __repr__(self) -> str:
        # The derived one would print the keys.
        return f"Identity({str(self.ref)!r}, {self.status}, {self.auth_type}, v{self.version})"

    @property
    def ref(self) -> Ref:
        return Ref(self.device_id, self.module_id)

    @property
    def enabled(self) -> bool:
        return self.status == "enabled"

    @property
    def etag(self) -> str:
        """Base64 of the version in decimal, as Azure's device ETags are."""
        return base64.b64encode(str(self.version).encode()).decode()

    @property
    def keys(self) -> tuple[str, ...]:
        """The symmetric keys that prove it; none unless it authenticates with `sas`."""
        if self.auth_type != "sas":
            return ()
        return tuple(key for key in (self.primary_key, self.secondary_key) if key)


def check_id(text: str, what: str = "deviceId") -> str:
    """The id itself if it is a legal one. Raises ArgumentInvalid."""
    if ID_PATTERN.fullmatch(text) is None:
        raise ArgumentInvalid(
            f"{what} must be 1 to 128 characters of A-Z, a-z, 0-9 and -:.+%_#*?!(),=@;$'"
        )
    return text


def new_key() -> str:
    """A random symmetric key: base64 text of 32 bytes."""
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def check_key(text: str) -> str:
    """The key itself if it is base64 of 16 to 64 bytes. Raises ArgumentInvalid."""
    try:
        size = len(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if not MIN_KEY_BYTES <= size <= MAX_KEY_BYTES:
        raise ArgumentInvalid(
            f"A symmetric key must be base64 of {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes"
        )
    return text


def normal_thumbprint(text: str) -> str:
    """A SHA-1 or SHA-256 thumbprint as upper-case hex, without the separators that tools print.

    Raises ArgumentInvalid."""
    digits = re.sub(r"[:\s-]", "", text).upper()
    if _THUMBPRINT.fullmatch(digits) is None:
        raise ArgumentInvalid("A thumbprint must be 40 (SHA-1) or 64 (SHA-256) hexadecimal digits")
    return digits


def ticks(ms: int) -> int:
    """.NET ticks, of which generation ids and device scopes are made."""
    return _TICKS_AT_1970 + ms * 10_000
