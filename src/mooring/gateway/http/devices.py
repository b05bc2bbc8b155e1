"""The registry's routes: devices and modules, singly and in bulk (service-apis reference §1)."""

from litestar import Response, Router, delete, get, post, put
from litestar.params import FromQuery, RawBody

from mooring.hub.hub import Hub
from mooring.hub.identity import Identity, Ref
from mooring.hub.registry import MAX_PAGE

from .call import IfMatch, TheHub, TheRef
from .documents import (
    BulkDocument,
    IdentityDocument,
    RegenerateDocument,
    bulk_item,
    identity_request,
    identity_view,
    outcome_view,
    regenerate_slot,
    rotation_view,
)
from .replies import parse, reply

# A hundred devices with twins of the largest size.
MAX_BULK_BODY = 8 * 1024 * 1024


PATHS = ["/devices/{device_id:str}", "/devices/{device_id:str}/modules/{module_id:str}"]


@get("/devices")
async def list_devices(hub: TheHub, top: FromQuery[int] = MAX_PAGE) -> Response[bytes]:
    """Up to `top` devices by id."""
    described = await hub.registry.describe(await hub.registry.devices(top))
    return reply([identity_view(one) for one in described])


@get("/devices/{device_id:str}/modules")
async def list_modules(hub: TheHub, ref: TheRef) -> Response[bytes]:
    """A device's modules by id."""
    described = await hub.registry.describe(await hub.registry.modules(ref.device_id))
    return reply([identity_view(one) for one in described])


@get(PATHS)
async def get_identity(hub: TheHub, ref: TheRef) -> Response[bytes]:
    """One device or module with its keys."""
    return await _shown(hub, await hub.registry.get(ref))


@put(PATHS)
async def put_identity(
    hub: TheHub, ref: TheRef, body: RawBody, if_match: IfMatch
) -> Response[bytes]:
    """Create, or with If-Match update."""
    request = identity_request(parse(body, IdentityDocument), ref)
    if if_match is None:
        identity = await hub.registry.create(request)
    else:
        identity = await hub.registry.update(request, if_match=if_match)
    return await _shown(hub, identity)


@delete(PATHS, status_code=204)
async def delete_identity(hub: TheHub, ref: TheRef, if_match: IfMatch) -> None:
    """Remove a module, or a device with its modules, and their twins and queues."""
    await hub.registry.delete(ref, if_match=if_match)


@post("/devices", status_code=200, request_max_body_size=MAX_BULK_BODY)
async def run_bulk(hub: TheHub, body: RawBody) -> Response[bytes]:
    """Up to 100 operations; 400 with the same body if any failed."""
    documents = parse(body, list[BulkDocument])
    outcome = await hub.bulk.run([bulk_item(document) for document in documents])
    return reply(outcome_view(outcome), status=400 if outcome.errors else 200)


@post("/devices/~keys/regenerate", status_code=200)
async def regenerate_keys(hub: TheHub, body: RawBody) -> Response[bytes]:
    """New keys for up to 100 identities; 207 if some failed, 400 if all did."""
    document = parse(body, RegenerateDocument)
    refs = [Ref(target.id, target.module_id or "") for target in document.devices]
    rotation = await hub.bulk.regenerate(refs, regenerate_slot(document))
    status = 200
    if rotation.errors:
        status = 207 if rotation.rotated else 400
    return reply(rotation_view(rotation, document.policy_key), status=status)


async def _shown(hub: Hub, identity: Identity) -> Response[bytes]:
    (described,) = await hub.registry.describe([identity])
    return reply(identity_view(described), etag=identity.etag)


router = Router(
    path="/",
    route_handlers=[
        list_devices,
        list_modules,
        get_identity,
        put_identity,
        delete_identity,
        run_bulk,
        regenerate_keys,
    ],
)
