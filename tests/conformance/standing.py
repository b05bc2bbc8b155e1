"""The hub of the conformance session: `Served` on the standard ports, and what is asked of it."""

import json
from pathlib import Path
from typing import Any

from ..served import STANDARD, Served
from .cloud import SECRETS, eventually, parts

PLAIN_AMQP_PORT = 5672  # the Azure SDKs' own emulator convention


class Hub(Served):
    """One hub as `localhost`. What a command prints is kept, since a command takes a while."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            *("--amqp-plain-port", str(PLAIN_AMQP_PORT), "--log-format", "json"),
            ports=STANDARD,
            environ={"MOORING_FEEDBACK_BATCH_INTERVAL": "2"},
        )
        self._strings: dict[tuple[str | None, bool, bool], str] = {}

    def restart(self) -> None:
        """SIGTERM, and a new process on the same data."""
        assert self.stop() == 0
        self.start()

    def policy_string(self, policy: str = "iothubowner") -> str:
        """Connection string of a shared access policy."""
        return self._string(policy, events=False)

    def events_string(self, policy: str = "iothubowner", *, plain: bool = False) -> str:
        """Connection string for azure-eventhub; `plain` for its emulator convention."""
        return self._string(policy, events=True, plain=plain)

    def policy_key(self, policy: str) -> str:
        return parts(self.policy_string(policy))["SharedAccessKey"]

    def _string(self, policy: str, *, events: bool, plain: bool = False) -> str:
        which = (policy, events, plain)
        if which not in self._strings:
            text = self.connection_string(policy, events=events, plain=plain)
            SECRETS.add(parts(text)["SharedAccessKey"])
            self._strings[which] = text
        return self._strings[which]

    def consumer_group(self, name: str) -> str:
        """Make a consumer group, as `mooring consumer-group create` does."""
        with self.control() as http:
            http.put(f"/control/consumer-groups/{name}").raise_for_status()
        return name

    def entries(self) -> list[dict[str, Any]]:
        """Its log, an entry for each line."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def logged(self, *texts: str) -> dict[str, Any]:
        """The first log entry that has all these texts; fails if none comes."""

        def search() -> dict[str, Any] | None:
            for line in self.log().splitlines():
                if all(text in line for text in texts):
                    entry: dict[str, Any] = json.loads(line)
                    return entry
            return None

        entry: dict[str, Any] = eventually(search, f"the log has an entry with {texts}")
        return entry
