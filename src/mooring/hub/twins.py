"""Twins: each identity's desired and reported properties and tags, with versions and metadata."""

from typing import Any

import msgspec

Json = dict[str, Any]


class Twin(msgspec.Struct, frozen=True, kw_only=True):
    """One twin as stored. `*_meta` mirrors its section with `$lastUpdated` (and, for desired,
    `$lastUpdatedVersion`), see the service-apis reference §2.2. Treat the dicts as immutable."""

    device_id: str
    module_id: str = ""
    etag: int = 1  # bumps on tags and desired writes
    version: int = 2  # bumps on every write
    model_id: str = ""
    tags: Json = {}
    desired: Json = {}
    desired_meta: Json = {}
    desired_version: int = 1
    reported: Json = {}
    reported_meta: Json = {}
    reported_version: int = 1
