"""The official clients against the AMQP adapter alone: azure-eventhub, and uamqp over TLS."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uamqp
from azure.core.credentials import AccessToken
from azure.eventhub import EventHubConsumerClient
from azure.eventhub.aio import EventHubConsumerClient as AioConsumerClient
from azure.eventhub.exceptions import ConnectError, EventHubError
from tests.gateway.amqp_dialogue import ServedHub, serving
from uamqp import authentication

from mooring.gateway.tls import serve_tls, server_context
from mooring.hub.identity import Ref
from mooring.hub.registry import IdentityRequest
from mooring.pki.local import LocalAuthority, open_local_authority

PATIENCE = 30.0


def read_all(served: ServedHub, count: int, **receive: Any) -> list[Any]:
    """What a blocking consumer gets, until it has so many."""
    client = EventHubConsumerClient.from_connection_string(
        served.connection_string(), "$Default", retry_total=0
    )
    got: list[Any] = []
    errors: list[Exception] = []
    enough = threading.Event()

    def on_event(context: Any, event: Any) -> None:
        got.append((event, context.last_enqueued_event_properties))
        if len(got) >= count:
            enough.set()

    def on_error(context: Any, error: Exception) -> None:
        errors.append(error)
        enough.set()

    thread = threading.Thread(
        target=lambda: client.receive(on_event=on_event, on_error=on_error, **receive)
    )
    thread.start()
    enough.wait(PATIENCE)
    client.close()
    thread.join(PATIENCE)
    if errors:
        raise errors[0]
    return got


async def test_azure_eventhub_reads_everything() -> None:
    async with serving() as served:
        await served.write(*[b"%d" % number for number in range(20)], b"x" * 200_000)
        got = await asyncio.to_thread(
            read_all,
            served,
            21,
            starting_position="-1",
            track_last_enqueued_event_properties=True,
        )
        assert [event.body_as_str() for event, _ in got[:20]] == [str(n) for n in range(20)]
        assert [event.sequence_number for event, _ in got] == list(range(21))
        assert got[20][0].body_as_str() == "x" * 200_000
        event, known = got[0]
        assert known["sequence_number"] == 20
        assert event.properties == {b"p": b"v"}
        assert event.system_properties[b"iothub-connection-device-id"] == b"d1"
        assert event.partition_key == b"d1"


async def test_azure_eventhub_with_coroutines() -> None:
    async with serving(partitions=1) as served:
        await served.write(*[b"%d" % number for number in range(5)])
        got: list[str] = []
        enough = asyncio.Event()

        async def on_event(context: Any, event: Any) -> None:
            got.append(event.body_as_str())
            if len(got) >= 3:
                enough.set()

        async with AioConsumerClient.from_connection_string(
            served.connection_string(), "$Default", retry_total=0
        ) as client:
            assert await client.get_partition_ids() == ["0"]
            info = await client.get_partition_properties("0")
            assert info["last_enqueued_sequence_number"] == 4
            task = asyncio.ensure_future(
                client.receive(on_event, starting_position=2, starting_position_inclusive=True)
            )
            await asyncio.wait_for(enough.wait(), PATIENCE)
            task.cancel()
        assert got == ["2", "3", "4"]


async def test_azure_eventhub_understands_refusals() -> None:
    async with serving(partitions=1) as served:
        with pytest.raises(EventHubError, match="The last sequence number"):
            await asyncio.to_thread(read_all, served, 1, partition_id="0", starting_position=77)

        def wrong_key() -> None:
            text = served.connection_string().replace("SharedAccessKey=", "SharedAccessKey=AAAA")
            with EventHubConsumerClient.from_connection_string(
                text, "$Default", retry_total=0
            ) as client:
                client.get_eventhub_properties()

        with pytest.raises(EventHubError):
            await asyncio.to_thread(wrong_key)

        def wrong_partition() -> None:
            with EventHubConsumerClient.from_connection_string(
                served.connection_string(), "$Default", retry_total=0
            ) as client:
                client.get_partition_properties("9")

        with pytest.raises(ConnectError):
            await asyncio.to_thread(wrong_partition)


# ---- uamqp, as azure-iot-hub and the Azure command line use it --------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> LocalAuthority:
    return open_local_authority(tmp_path_factory.mktemp("ca"), ("localhost",))


class Secured:
    """A served hub on a TLS port, and how clients sign in there."""

    def __init__(self, served: ServedHub, authority: LocalAuthority, port: int) -> None:
        self.served = served
        self._verify = str(authority.ca)
        self._port = port

    def plain(self) -> Any:
        return authentication.SASLPlain(
            "localhost",
            "iothubowner@sas.root.localhost",
            self.served.token(resource="localhost", raw=False),
            port=self._port,
            verify=self._verify,
        )

    def cbs(self) -> Any:
        token = AccessToken(
            self.served.token(resource="localhost", raw=False), int(time.time()) + 3600
        )
        auth = authentication.JWTTokenAuth(
            audience="https://localhost",
            uri="https://localhost",
            get_token=lambda: token,
            token_type=b"servicebus.windows.net:sastoken",
            port=self._port,
            verify=self._verify,
        )
        auth.update_token()
        return auth


@contextlib.asynccontextmanager
async def secured(authority: LocalAuthority, **options: Any) -> AsyncIterator[Secured]:
    async with serving(**options) as served:
        context = server_context([(one.certificates, one.key) for one in authority.chains])
        listener = await serve_tls(
            served.endpoint, context, host="127.0.0.1", port=0, purpose="AMQP"
        )
        try:
            yield Secured(served, authority, listener.port)
        finally:
            listener.close()
            listener.abort_connections()


@pytest.mark.parametrize("sign_in", [Secured.plain, Secured.cbs])
async def test_uamqp_sends_commands_and_reads_their_feedback(
    authority: LocalAuthority, sign_in: Callable[[Secured], Any]
) -> None:
    async with secured(authority, settings={"feedback_batch_interval": 0.0}) as hub:
        served = hub.served
        await served.hub.registry.create(IdentityRequest(device_id="d1"))

        def send(device: str) -> list[uamqp.constants.MessageState]:
            client = uamqp.SendClient("amqps://localhost/messages/devicebound", auth=sign_in(hub))
            message = uamqp.Message(
                b"hello",
                properties=uamqp.message.MessageProperties(
                    to=f"/devices/{device}/messages/devicebound", message_id="m1"
                ),
                application_properties={"iothub-ack": "full"},
            )
            client.queue_message(message)
            states: list[uamqp.constants.MessageState] = client.send_all_messages()
            return states

        complete, failed = (
            uamqp.constants.MessageState.SendComplete,
            uamqp.constants.MessageState.SendFailed,
        )
        assert await asyncio.to_thread(send, "d1") == [complete]
        assert await asyncio.to_thread(send, "nobody") == [failed]
        (delivery,) = await served.hub.commands.receive(Ref("d1"), 10)
        assert delivery.command.body == b"hello"
        await served.hub.commands.complete(delivery.lock_token)

        def receive() -> Any:
            client = uamqp.ReceiveClient(
                "amqps://localhost/messages/serviceBound/feedback", auth=sign_in(hub)
            )
            try:
                while not (batch := client.receive_message_batch(timeout=500)):
                    pass
                record = json.loads(b"".join(batch[0].get_data()))
                batch[0].accept()
                while served.state.tables.feedback:
                    client.do_work()
                return record
            finally:
                client.close()

        (record,) = await asyncio.wait_for(asyncio.to_thread(receive), PATIENCE)
        assert (record["originalMessageId"], record["statusCode"]) == ("m1", "Success")


async def test_uamqp_is_redirected_and_reads_as_the_command_line_does(
    authority: LocalAuthority,
) -> None:
    async with secured(authority, partitions=1) as hub:
        await hub.served.write(*[b"%d" % number for number in range(5)])

        def redirected() -> Any:
            client = uamqp.ReceiveClient(
                "amqps://localhost/messages/events/$management", auth=hub.plain()
            )
            try:
                client.receive_message_batch(timeout=5000)
            except uamqp.errors.LinkRedirect as redirect:
                return redirect
            finally:
                client.close()
            return None

        redirect = await asyncio.to_thread(redirected)
        assert redirect.hostname == b"localhost"
        assert redirect.address == b"amqps://localhost:5671/localhost/$management"

        def monitor() -> list[bytes]:
            source = uamqp.Source(
                "amqps://localhost/localhost/ConsumerGroups/$Default/Partitions/0"
            )
            source.set_filter(b"amqp.annotation.x-opt-enqueuedtimeutc > 0")
            client = uamqp.ReceiveClient(source, auth=hub.cbs(), prefetch=0)
            got: list[bytes] = []
            try:
                while len(got) < 5:
                    batch = client.receive_message_batch(max_batch_size=2, timeout=500)
                    got.extend(b"".join(message.get_data()) for message in batch)
            finally:
                client.close()
            return got

        got = await asyncio.wait_for(asyncio.to_thread(monitor), PATIENCE)
        assert got == [b"0", b"1", b"2", b"3", b"4"]
