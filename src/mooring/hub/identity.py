"""Identities: the devices and modules that a hub knows. Nothing connects without one."""

from typing import NamedTuple

import msgspec


class Ref(NamedTuple):
    """Names one identity of a hub: a device (`module_id` empty) or a module of it."""

    device_id: str
    module_id: str = ""

    def __str__(self) -> str:
        return f"{self.device_id}/{self.module_id}" if self.module_id else self.device_id


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

    @property
    def ref(self) -> Ref:
        return Ref(self.device_id, self.module_id)
