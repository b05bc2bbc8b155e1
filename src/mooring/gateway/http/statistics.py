"""The registry's statistics (service-apis reference §1.3)."""

from litestar import Response, Router, get

from .call import TheHub
from .replies import reply


@get("/statistics/devices")
async def device_statistics(hub: TheHub) -> Response[bytes]:
    """How many devices there are; modules do not count."""
    counts = await hub.registry.counts()
    return reply(
        {
            "totalDeviceCount": counts.total,
            "enabledDeviceCount": counts.enabled,
            "disabledDeviceCount": counts.disabled,
        }
    )


@get("/statistics/service")
async def service_statistics(hub: TheHub) -> Response[bytes]:
    """How many devices are connected."""
    return reply({"connectedDeviceCount": hub.sessions.connected_count})


router = Router(path="/", route_handlers=[device_statistics, service_statistics])
