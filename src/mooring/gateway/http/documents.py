"""The JSON documents of the registry: what clients write, and what they are shown.

Clients echo whole documents back, so fields that only the server sets are ignored on the way in
(service-apis reference §1.1, §1.2).
"""

from typing import Any

import msgspec

from mooring.errors import ArgumentInvalid
from mooring.hub.bulk import Failure, Item, Outcome, Rotation
from mooring.hub.identity import Identity, Ref
from mooring.hub.registry import Described, IdentityRequest
from mooring.hub.timestamps import iso

Json = dict[str, Any]


class SymmetricKey(msgspec.Struct, frozen=True, rename="camel"):
    """A pair of keys, base64 text."""

    primary_key: str | None = None
    secondary_key: str | None = None

    def __repr__(self) -> str:
        # The derived one would print the keys.
        return "SymmetricKey()"


class Thumbprints(msgspec.Struct, frozen=True, rename="camel"):
    """A pair of certificate thumbprints, hex."""

    primary_thumbprint: str | None = None
    secondary_thumbprint: str | None = None


class Authentication(msgspec.Struct, frozen=True, rename="camel"):
    """How an identity proves itself."""

    symmetric_key: SymmetricKey | None = None
    x509_thumbprint: Thumbprints | None = None
    type: str | None = None

    @property
    def effective_type(self) -> str:
        """The type, or what the credentials given imply."""
        if self.type:
            return self.type
        prints = self.x509_thumbprint or Thumbprints()
        return "selfSigned" if prints.primary_thumbprint or prints.secondary_thumbprint else "sas"


class Capabilities(msgspec.Struct, frozen=True, rename="camel"):
    """What kind of device it is."""

    iot_edge: bool | None = None


class IdentityDocument(msgspec.Struct, frozen=True, rename="camel"):
    """A device or a module as clients write it."""

    device_id: str | None = None
    module_id: str | None = None
    managed_by: str | None = None
    status: str | None = None
    status_reason: str | None = None
    authentication: Authentication | None = None
    capabilities: Capabilities | None = None
    device_scope: str | None = None
    parent_scopes: list[str] | None = None


class TwinProperties(msgspec.Struct, frozen=True):
    """The part of a bulk item's properties that counts."""

    desired: Json | None = None


class BulkDocument(msgspec.Struct, frozen=True, rename="camel"):
    """One item of a bulk operation, ExportImportDevice in the SDKs."""

    id: str
    module_id: str | None = None
    e_tag: str | None = None
    import_mode: str | None = None
    status: str | None = None
    status_reason: str | None = None
    authentication: Authentication | None = None
    twin_etag: str | None = msgspec.field(default=None, name="twinETag")
    tags: Json | None = None
    properties: TwinProperties | None = None
    capabilities: Capabilities | None = None
    managed_by: str | None = None
    device_scope: str | None = None
    parent_scopes: list[str] | None = None


class RegenerateTarget(msgspec.Struct, frozen=True, rename="camel"):
    """One identity whose keys shall change."""

    id: str
    module_id: str | None = None


class RegenerateDocument(msgspec.Struct, frozen=True, rename="camel"):
    """A key regeneration; `policy_key` is primaryKey, secondaryKey or both."""

    policy_key: str
    devices: list[RegenerateTarget]


def identity_request(document: IdentityDocument, ref: Ref) -> IdentityRequest:
    """What a PUT at `ref` asks for. Raises ArgumentInvalid if the body names another identity."""
    if document.device_id not in (None, ref.device_id):
        raise ArgumentInvalid("deviceId in the body is not the one in the path")
    if document.module_id not in (None, "", ref.module_id):
        raise ArgumentInvalid("moduleId in the body is not the one in the path")
    return _request(ref, document)


def bulk_item(document: BulkDocument) -> Item:
    """One bulk operation; without a mode it creates or updates, as import does."""
    ref = Ref(document.id, document.module_id or "")
    return Item(
        mode=document.import_mode or "createOrUpdate",
        request=_request(ref, document),
        etag=document.e_tag,
        twin_etag=document.twin_etag,
        tags=document.tags,
        desired=document.properties.desired if document.properties is not None else None,
    )


def regenerate_slot(document: RegenerateDocument) -> str:
    """The registry's name of the slot. Raises ArgumentInvalid."""
    slots = {"primarykey": "primary", "secondarykey": "secondary", "both": "both"}
    slot = slots.get(document.policy_key.lower())
    if slot is None:
        raise ArgumentInvalid("policyKey is one of primaryKey, secondaryKey, both")
    return slot


def _request(ref: Ref, document: IdentityDocument | BulkDocument) -> IdentityRequest:
    authentication = document.authentication
    keys, prints = SymmetricKey(), Thumbprints()
    if authentication is not None:
        keys = authentication.symmetric_key or keys
        prints = authentication.x509_thumbprint or prints
    capabilities = document.capabilities
    return IdentityRequest(
        device_id=ref.device_id,
        module_id=ref.module_id,
        status=document.status,
        status_reason=document.status_reason,
        auth_type=authentication.effective_type if authentication is not None else None,
        primary_key=keys.primary_key,
        secondary_key=keys.secondary_key,
        primary_thumbprint=prints.primary_thumbprint,
        secondary_thumbprint=prints.secondary_thumbprint,
        managed_by=document.managed_by,
        iot_edge=capabilities.iot_edge if capabilities is not None else None,
        device_scope=document.device_scope,
        parent_scopes=document.parent_scopes,
    )


def identity_view(described: Described) -> Json:
    """A device or module as its reader sees it, keys included: reading them is the right."""
    identity, presence, queued = described
    state: Json = {
        "generationId": identity.generation_id,
        "etag": identity.etag,
        "connectionState": "Connected" if presence.connected else "Disconnected",
        "connectionStateUpdatedTime": iso(presence.changed),
        "lastActivityTime": iso(presence.active),
        "cloudToDeviceMessageCount": queued,
        "authentication": _authentication_view(identity),
    }
    if identity.module_id:
        return {
            "moduleId": identity.module_id,
            "managedBy": identity.managed_by,
            "deviceId": identity.device_id,
            **state,
        }
    view: Json = {
        "deviceId": identity.device_id,
        **state,
        "status": identity.status,
        "statusReason": identity.status_reason,
        "statusUpdatedTime": iso(identity.status_updated),
        "capabilities": {"iotEdge": identity.iot_edge},
        "parentScopes": identity.parent_scopes,
    }
    if identity.device_scope is not None:
        view["deviceScope"] = identity.device_scope
    return view


def outcome_view(outcome: Outcome) -> Json:
    """The result of a bulk operation."""
    return {
        "isSuccessful": not outcome.errors,
        "errors": [
            {**_failure(failure), "operation": failure.operation} for failure in outcome.errors
        ],
        "warnings": [
            {
                "deviceId": failure.ref.device_id,
                "warningCode": "DeviceRegisteredWithoutTwin",
                "warningStatus": failure.error.message,
            }
            for failure in outcome.warnings
        ],
    }


def rotation_view(rotation: Rotation, policy_key: str) -> Json:
    """The result of a key regeneration."""
    return {
        "policyKey": policy_key,
        "rotatedKeys": [
            {
                "id": identity.device_id,
                "moduleId": identity.module_id or None,
                "primaryKey": identity.primary_key,
                "secondaryKey": identity.secondary_key,
            }
            for identity in rotation.rotated
        ],
        "errors": [
            {
                "id": failure.ref.device_id,
                "moduleId": failure.ref.module_id or None,
                "errorCode": failure.error.name,
                "errorStatus": failure.error.message,
            }
            for failure in rotation.errors
        ],
    }


def _failure(failure: Failure) -> Json:
    return {
        "deviceId": failure.ref.device_id,
        "moduleId": failure.ref.module_id or None,
        "errorCode": failure.error.name,
        "errorStatus": failure.error.message,
    }


def _authentication_view(identity: Identity) -> Json:
    return {
        "symmetricKey": {
            "primaryKey": identity.primary_key,
            "secondaryKey": identity.secondary_key,
        },
        "x509Thumbprint": {
            "primaryThumbprint": identity.primary_thumbprint,
            "secondaryThumbprint": identity.secondary_thumbprint,
        },
        "type": identity.auth_type,
    }
