"""Finding an identity inside of a unit of work, for whatever needs it to exist."""

from typing import TYPE_CHECKING

from mooring.errors import DeviceNotFound, HubError, ModuleNotFound

from .identity import Identity, Ref

if TYPE_CHECKING:
    from .state import Tx


def known(tx: "Tx", ref: Ref) -> Identity:
    """The identity; raises what `absent` makes."""
    identity = tx.identity(ref)
    if identity is None:
        raise absent(ref)
    return identity


def absent(ref: Ref) -> HubError:
    """`DeviceNotFound` or `ModuleNotFound`. The text is the bare name: Node takes a device's id
    from it (service-apis reference §0.1)."""
    if ref.module_id:
        return ModuleNotFound(str(ref), reason=f"no module {ref}")
    return DeviceNotFound(ref.device_id, reason=f"no device {ref}")
