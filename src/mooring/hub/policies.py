"""Shared access policies: named hub-level keys and the rights that they grant."""

import enum

import msgspec


class Right(enum.Flag):
    """What a credential may do (service-apis reference §10.1). Write implies read."""

    REGISTRY_READ = enum.auto()
    REGISTRY_WRITE = enum.auto()
    SERVICE_CONNECT = enum.auto()
    DEVICE_CONNECT = enum.auto()


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """One shared access policy; keys are base64 text of 32 random bytes."""

    name: str
    rights: int  # Right.value
    primary_key: str
    secondary_key: str
