"""The hubs that one server carries, found by the host name that a client used."""

from collections.abc import Iterator, Sequence

from mooring.errors import ConfigError

from .hosts import bare_host
from .hub import Hub


class Hubs:
    """The hubs of one server; the first is the default."""

    def __init__(self, hubs: Sequence[Hub]) -> None:
        """Raises ConfigError if there is none, or if two want the same name.

        A hub's own name comes before another's alias: the first hub's aliases include the
        machine's host name, which may be meant for another."""
        if not hubs:
            raise ConfigError("hub.name: a server carries at least one hub")
        self._hubs = tuple(hubs)
        self._by_host: dict[str, Hub] = {}
        for hub in self._hubs:
            if hub.name in self._by_host:
                raise ConfigError(f"hub.others: two hubs cannot both be {hub.name}")
            self._by_host[hub.name] = hub
        for hub in self._hubs:
            for alias in sorted(hub.aliases):
                other = self._by_host.setdefault(alias, hub)
                if other is not hub and other.name != alias:
                    raise ConfigError(f"hub.aliases: two hubs cannot both answer to {alias}")

    @property
    def default(self) -> Hub:
        """The first hub, which also answers as `localhost`."""
        return self._hubs[0]

    def find(self, host: str) -> Hub | None:
        """The hub that answers to `host`, in any case and with or without a port."""
        return self._by_host.get(bare_host(host))

    def aliases(self, hub: Hub) -> frozenset[str]:
        """The further host names that lead to a hub."""
        return frozenset(alias for alias in hub.aliases if self._by_host[alias] is hub)

    def __iter__(self) -> Iterator[Hub]:
        return iter(self._hubs)

    def __len__(self) -> int:
        return len(self._hubs)
