"""azure-eventhub's consumers, blocking and with coroutines, as readers that run until closed."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from azure.eventhub import EventData, EventHubConsumerClient
from azure.eventhub.aio import EventHubConsumerClient as AioConsumerClient

from .cloud import PATIENCE, Inbox, stamp


class Received(NamedTuple):
    partition: str
    event: EventData
    last_enqueued: dict[str, Any] | None

    @property
    def device(self) -> str:
        return stamp(self.event, "iothub-connection-device-id")

    @property
    def text(self) -> str:
        return self.event.body_as_str()


class Reader:
    """One consumer client in a thread of its own."""

    def __init__(
        self,
        kind: str,
        connection_string: str,
        ca: str,
        *,
        group: str = "$Default",
        client_options: dict[str, Any] | None = None,
        checkpoint: bool = False,
        **receive: Any,
    ) -> None:
        self.received = Inbox()
        self.errors = Inbox()
        self.opened = Inbox()
        self.closed = Inbox()
        self._checkpoint = checkpoint
        options = {
            "consumer_group": group,
            "connection_verify": ca,
            "retry_total": 0,
            "load_balancing_interval": 0.5,
        } | (client_options or {})
        receive = {"starting_position": "-1"} | receive
        run = self._run_aio if kind == "aio" else self._run_sync
        self._stop: Callable[[], None] = lambda: None
        self._ready = threading.Event()
        self._thread = threading.Thread(
            target=run, args=(connection_string, options, receive), daemon=True
        )
        self._thread.start()
        assert self._ready.wait(PATIENCE)

    def _run_sync(self, text: str, options: dict[str, Any], receive: dict[str, Any]) -> None:
        client = EventHubConsumerClient.from_connection_string(text, **options)
        self._stop = client.close
        self._ready.set()

        def on_batch(context: Any, batch: list[EventData]) -> None:
            for event in batch:
                self._keep(context, event)
            if self._checkpoint and batch:
                context.update_checkpoint(batch[-1])

        def on_event(context: Any, event: EventData | None) -> None:
            if event is not None:
                on_batch(context, [event])

        # The blocking client waits for idle partitions between single events of a busy one.
        if "partition_id" in receive:
            start, handler = client.receive, {"on_event": on_event}
        else:
            start, handler = client.receive_batch, {"on_event_batch": on_batch}
        start(
            **handler,
            on_error=lambda _, error: self.errors(error),
            on_partition_initialize=lambda context: self.opened(context.partition_id),
            on_partition_close=lambda context, reason: self.closed(context.partition_id),
            **receive,
        )

    def _run_aio(self, text: str, options: dict[str, Any], receive: dict[str, Any]) -> None:
        async def run() -> None:
            client = AioConsumerClient.from_connection_string(text, **options)
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            self._stop = lambda: loop.call_soon_threadsafe(ended.set)
            self._ready.set()

            async def on_event(context: Any, event: EventData | None) -> None:
                if event is not None:
                    self._keep(context, event)
                    if self._checkpoint:
                        await context.update_checkpoint(event)

            async def on_error(context: Any, error: Exception) -> None:
                self.errors(error)

            async def on_open(context: Any) -> None:
                self.opened(context.partition_id)

            async def on_close(context: Any, reason: Any) -> None:
                self.closed(context.partition_id)

            receiving = asyncio.ensure_future(
                client.receive(
                    on_event=on_event,
                    on_error=on_error,
                    on_partition_initialize=on_open,
                    on_partition_close=on_close,
                    **receive,
                )
            )
            await ended.wait()
            await client.close()
            await asyncio.wait([receiving], timeout=PATIENCE)
            receiving.cancel()

        asyncio.run(run())

    def _keep(self, context: Any, event: EventData) -> None:
        self.received(Received(context.partition_id, event, context.last_enqueued_event_properties))

    def take_from(self, device_id: str) -> Received:
        """The next event that this device sent."""
        return self.received.take_until(lambda item: item.device == device_id)

    def close(self) -> None:
        if self._thread.is_alive():
            self._stop()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the consumer did not end"
