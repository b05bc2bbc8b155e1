"""What one hub is set to: the limits and times of its domain, with Azure's values as defaults.

Times are seconds and sizes are bytes unless the name says otherwise. The operator's names for
these are in `mooring.config`; this is what the domain sees.
"""

from dataclasses import dataclass

KIB = 1024
HOUR = 3600
DAY = 24 * HOUR


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """The limits of one hub."""

    # Event log
    partition_count: int = 4
    max_device_message: int = 256 * KIB  # body and properties together
    max_consumer_groups: int = 20

    # Cloud-to-device
    c2d_default_ttl: int = HOUR
    c2d_max_ttl: int = 2 * DAY
    c2d_max_delivery_count: int = 10
    c2d_lock: int = 60
    c2d_queue_depth: int = 50
    max_command: int = 64 * KIB  # body and properties together
    expiry_interval: float = 5.0  # how often expired commands and feedback are looked for

    # Feedback
    feedback_ttl: int = HOUR
    feedback_lock: int = 60
    feedback_max_delivery_count: int = 10
    feedback_batch_size: int = 64
    feedback_batch_interval: float = 15.0

    # Twins (service-apis reference §2.4)
    max_tags: int = 8 * KIB
    max_properties: int = 32 * KIB  # desired and reported, each
    max_twin_depth: int = 10
    max_twin_key: int = KIB
    max_twin_string: int = 4 * KIB

    # Methods (service-apis reference §3)
    method_default_response_timeout: int = 30
    method_min_timeout: int = 5
    method_max_timeout: int = 300
    max_method_payload: int = 128 * KIB
    max_inflight_methods: int = 10  # per device

    # Registry and access
    max_modules: int = 50  # per device, without the system modules of IoT Edge
    max_policies: int = 100
    identity_cache: int = 100_000  # identities kept at hand for connects
    token_clock_skew: float = 0.0  # how long past its `se` a token is still taken

    # Presence
    presence_interval: float = 2.0  # connects and disconnects reach the disk
    activity_interval: float = 60.0  # last activity times reach the disk
