"""Cloud-to-device messages: a durable queue per identity with locks, expiry and feedback."""

import msgspec


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One queued cloud-to-device message. Times are milliseconds since 1970 UTC."""

    device_id: str
    module_id: str = ""
    sequence: int = 0  # per identity, increasing, given by the state on enqueue
    message_id: str = ""
    correlation_id: str = ""
    user_id: str = ""
    to: str = ""
    content_type: str = ""
    content_encoding: str = ""
    ack: str = "none"  # "none" | "positive" | "negative" | "full"
    enqueued: int = 0
    expires: int = 0
    delivery_count: int = 0
    generation_id: str = ""
    properties: dict[str, str] = {}
    body: bytes = b""


class FeedbackRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one command whose sender asked to know."""

    id: int = 0  # given by the state on insert; increasing
    message_id: str
    device_id: str
    module_id: str = ""
    generation_id: str
    status: str  # "Success" | "Expired" | "DeliveryCountExceeded" | "Rejected" | "Purged"
    enqueued: int  # ms
    expires: int  # ms: when the record itself is dropped
    delivery_count: int = 0
