"""The routes of twins (service-apis reference §2).

Bodies are read by the domain's own strict reader and not by Litestar: a patch must keep its nulls,
and duplicate keys are refused."""

from typing import Any

from litestar import Response, Router, get, patch, put
from litestar.params import RawBody

from mooring.hub import etags, json_text
from mooring.hub.hub import Hub
from mooring.hub.identity import Ref
from mooring.hub.twins import Twin, document

from .call import IfMatch, TheHub, TheRef
from .replies import reply

PATHS = ["/twins/{device_id:str}", "/twins/{device_id:str}/modules/{module_id:str}"]

# Twins come back whole from clients that change one, indented and with metadata: several times
# what the sections may hold.
MAX_BODY = 512 * 1024


@get(PATHS)
async def get_twin(hub: TheHub, ref: TheRef) -> Response[bytes]:
    """The twin with its metadata."""
    return await _shown(hub, ref, await hub.twins.get(ref))


@patch(PATHS)
async def patch_twin(hub: TheHub, ref: TheRef, body: RawBody, if_match: IfMatch) -> Response[bytes]:
    """Merge tags and desired properties; answers with the whole twin."""
    return await _shown(hub, ref, await hub.twins.patch(ref, _read(body), if_match=if_match))


@put(PATHS)
async def replace_twin(
    hub: TheHub, ref: TheRef, body: RawBody, if_match: IfMatch
) -> Response[bytes]:
    """Replace the sections that the body has; answers with the whole twin."""
    return await _shown(hub, ref, await hub.twins.replace(ref, _read(body), if_match=if_match))


def _read(body: bytes) -> dict[str, Any]:
    return json_text.parse_object(body, max_bytes=MAX_BODY)


async def _shown(hub: Hub, ref: Ref, twin: Twin) -> Response[bytes]:
    (described,) = await hub.registry.describe([await hub.registry.get(ref)])
    return reply(document(twin, *described), etag=etags.twin_etag(twin.etag))


router = Router(path="/", route_handlers=[get_twin, patch_twin, replace_twin])
